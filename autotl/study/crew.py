"""Everybody who works on a study, seen by the search: its own workers, and those that others have started."""

import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Protocol

from optuna.trial import TrialState

from autotl.study import select
from autotl.study.budget import OutOfTime
from autotl.study.storage import SharedStudy, TakenAway, is_of_search
from autotl.study.trials import Trials
from autotl.study.worker import Job, NextTrial, Outcome, Ran, Worker
from autotl.tracking.folder import StudyFolder
from autotl.tracking.log import ENDED

LOOK = 0.5
"""Seconds between two checks of the workers when there is nothing else to do."""


class Hands(Protocol):
    """Whoever does the jobs that the search gives out."""

    size: int
    """How many jobs are done at the same time."""

    @property
    def alive(self) -> frozenset[str]:
        """The names in the storage of the processes that run trials for the search, except its own."""

    def carry_out(self, jobs: Iterable[Job | None]) -> Iterator[tuple[Job, Outcome]]:
        """Do jobs, and yield each with its outcome when it is done.

        A job is taken from `jobs` when somebody is free to do it; None: there is none at the moment, but there may be
        one later.

        Raises: an error that ends the search.
        """

    def end(self) -> None:
        """Stop all work, the jobs that are being done included."""


class Alone:
    """The search does every job itself, one after another."""

    size = 1
    alive: frozenset[str] = frozenset()

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def carry_out(self, jobs: Iterable[Job | None]) -> Iterator[tuple[Job, Outcome]]:
        for job in jobs:
            if job is None:
                time.sleep(LOOK)
            else:
                yield job, self._worker.do(job)

    def end(self) -> None: ...


class Crew:
    """All processes that work on a study, seen by the one that holds its lock."""

    def __init__(self, study: SharedStudy, folder: StudyFolder, trials: Trials, hands: Hands) -> None:
        self.study, self.folder, self.trials, self.hands = study, folder, trials, hands
        self._over = False
        self.catch_up()

    @property
    def size(self) -> int:
        """How many jobs are done at the same time."""
        return self.hands.size

    def carry_out(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Outcome]]:
        """As `Hands.carry_out`."""
        return self.hands.carry_out(jobs)

    def run(self, total: int) -> None:
        """Run trials until `total` have ended, those of other workers included.

        Raises: OutOfTime.
        """
        self._over = False
        for _, ran in self.hands.carry_out(self._next_trials(total)):
            if isinstance(ran, Ran):
                self.trials.passed_over |= set(ran.passed_over)
            elif isinstance(ran, OutOfTime):
                self._over = True  # those who are still at work end by themselves
            self.catch_up()
        if self._over:
            raise OutOfTime

    def _next_trials(self, total: int) -> Iterator[NextTrial | None]:
        while not self._over:
            if self.study.has_unclaimed(total):
                yield NextTrial(total)
            elif self._others_are_running(total):
                self._over = self.trials.budget.left_to_search() < 0
                yield None
            else:
                self.catch_up()  # also after the last check: a worker may have ended the last trial just before it
                return
            self.catch_up()

    def catch_up(self) -> None:
        """Make the study folder and Optuna's storage agree on which trials have ended, and who ran them."""
        for trial in self.study.ended():
            if trial.number in self.trials.told:
                continue
            if events := self.study.events_of(trial):
                self.folder.log.adopt(trial.number, events)
            self.trials.tell(trial.number)
        for left in self.study.left_behind(self.hands.alive):
            number = left.number
            if number in self.trials.passed_over:
                continue
            if not is_of_search(left.who):
                self.folder.log.begin(number, left.who)  # the failed attempt
                if left.place:
                    phase, epoch = left.place
                    self.folder.log.epoch(number, phase, epoch, {})
            record = self.folder.log.read(number)
            if record.state not in ENDED and record.kills >= self.trials.settings.max_kills:
                why = f"its process was killed {record.kills} times {record.killed_at}"
                self.folder.log.end(number, "failed", reason=why)
                record = self.folder.log.read(number)
            if record.state in ENDED:  # logged, but killed before it was reported to Optuna
                with suppress(TakenAway):  # its process is still alive
                    self.study.tell(number, record.state, select.values_of(record, self.trials.settings.minimize))
            else:
                self.study.give_back(number)

    def let_go(self) -> None:
        """Release the trials that there was no time for, and those of workers that were stopped, for the next run."""
        for number in self.trials.passed_over:
            self.study.give_back(number)
        for left in self.study.left_behind(self.hands.alive):
            if is_of_search(left.who):
                self.folder.log.end(left.number, "interrupted", reason="the search was stopped")
                self.study.give_back(left.number)

    def _others_are_running(self, total: int) -> bool:
        """Whether a trial is running or waits to be claimed, except those that there was no time for."""
        going_on = self.study.trials(TrialState.RUNNING, TrialState.WAITING)
        return any(trial.number < total and trial.number not in self.trials.passed_over for trial in going_on)
