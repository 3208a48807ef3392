"""The search and its workers: it collects their finished trials and recovers the trials of workers that died."""

import time
from contextlib import suppress

from optuna.trial import TrialState

from autotl.study.storage import SEARCH, SharedStudy, TakenAway
from autotl.study.trials import Trials
from autotl.tracking.folder import StudyFolder
from autotl.tracking.log import ENDED

LOOK = 0.5
"""Seconds between two checks of the workers when there is nothing else to do."""


class Crew:
    """All processes that run trials of a study, seen by the one that holds its lock."""

    def __init__(self, study: SharedStudy, folder: StudyFolder, trials: Trials) -> None:
        self.study, self.folder, self.trials = study, folder, trials
        self._ended: set[int] = set()
        self.catch_up()

    def run(self, total: int) -> None:
        """Run trials, together with the workers, until `total` have ended.

        Raises: OutOfTime.
        """
        more = True
        while more:
            more = self.trials.run_one(total) or self._wait_for_others(total)
            self.catch_up()  # also after the last check: a worker may have ended the last trial just before it

    def catch_up(self) -> None:
        """Make the study folder and Optuna's storage agree on which trials have ended, and who ran them."""
        for number, events in self.study.collected(self._has_ended):
            self.folder.log.adopt(number, events)
            self.trials.tell(number)
        for left in self.study.left_behind():
            number = left.number
            if number in self.trials.passed_over:
                continue
            if left.who != SEARCH:
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
                    self.study.tell(number, record.state, record.value)
            else:
                self.study.give_back(number)

    def let_go(self) -> None:
        """Release the trials that there was no time for, so that the next run can claim them."""
        for number in self.trials.passed_over:
            self.study.give_back(number)

    def _has_ended(self, number: int) -> bool:
        if number not in self._ended and self.folder.log.read(number).state in ENDED:
            self._ended.add(number)
        return number in self._ended

    def _wait_for_others(self, total: int) -> bool:
        """Wait a little if a worker is running a trial; whether one is."""
        going_on = self.study.trials(TrialState.RUNNING, TrialState.WAITING)
        if not any(trial.number < total and trial.number not in self.trials.passed_over for trial in going_on):
            return False
        self.trials.budget.check_search()
        time.sleep(LOOK)
        return True
