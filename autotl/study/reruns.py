"""Reruns of the best plans with new seeds, so that no plan wins by the luck of its seed."""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from autotl.engine.scale import Scale
from autotl.files import append_line, read_lines
from autotl.plan import TransferPlan
from autotl.study import select
from autotl.study.crew import Crew
from autotl.study.opening import Opened
from autotl.study.worker import Training, why_not
from autotl.tracking.folder import Rerun, StudyFolder
from autotl.tracking.log import TrialRecord


@dataclass(frozen=True)
class SeedRun:
    """A plan that was run with one seed."""

    plan: TransferPlan
    value: float
    metrics: dict[str, float]


@dataclass(frozen=True)
class Contender:
    """One of the best plans with its trial and all its runs, the trial's own first."""

    record: TrialRecord
    runs: tuple[SeedRun, ...]

    @property
    def mean(self) -> float:
        return float(np.mean([run.value for run in self.runs]))

    def median(self, scale: Scale) -> SeedRun:
        """The median run; the worse of two."""
        return sorted(self.runs, key=lambda run: -scale.order(run.value))[(len(self.runs) - 1) // 2]

    @classmethod
    def alone(cls, record: TrialRecord) -> "Contender":
        """A trial with its own run only."""
        return cls(record, (SeedRun(select.plan_of(record), select.value_of(record), record.metrics),))


class Reruns:
    """Reruns of the best plans of a study. Those that there is no time for are in `skipped`, with the reason."""

    def __init__(self, opened: Opened, crew: Crew) -> None:
        self.folder, self.settings, self.bench = opened.folder, opened.settings, opened.bench
        self.budget, self.crew = opened.budget, crew
        self.skipped: list[str] = []
        self._known = _known(self.folder)

    def contenders(self, best: Sequence[TrialRecord]) -> list[Contender]:
        """The plans by their mean over seeds, without those that fail with another seed; without reruns as given."""
        again = [record for record in best if select.depends_on_seed(select.plan_of(record))]
        turns = self.settings.turns if again and len(best) > 1 else 0
        failed = self._run_again(again, turns, most=self.bench.refit_factor * max(map(_seconds, best)))
        left = [record for record in again if record.number not in failed]
        # A round counts if every plan has been trained in it.
        rounds = min((len(list(self._runs_again(record, turns))) for record in left), default=turns)
        if rounds < turns:
            missing = f"{turns - rounds} of {turns} rounds"
            self.skipped.append(f"no time for {missing} of reruns of the best plans with new seeds")
        contenders = [
            Contender(record, (*Contender.alone(record).runs, *self._runs_again(record, rounds)))
            for record in best
            if record.number not in failed
        ]
        return sorted(contenders, key=lambda contender: self.bench.scale.order(contender.mean)) if turns else contenders

    def _run_again(self, again: Sequence[TrialRecord], turns: int, most: float) -> set[int]:
        """Train plans with new seeds as far as there is time; the trials whose plans failed.

        `most`: seconds that a refit takes at most.
        """
        by_plan: dict[str, TrialRecord] = {}
        failed: set[int] = set()
        in_time = True
        seconds = [*map(_seconds, again)]

        def jobs() -> Iterator[Training]:
            for turn in range(1, turns + 1):
                plans = {record.number: _with_turn(record, turn) for record in again}
                lacking = [record for record in again if plans[record.number].hash not in self._known]
                if lacking and self.budget.left() < max(*seconds, sum(seconds) / self.crew.size) + most:
                    return
                for record in lacking:
                    if not in_time:
                        return
                    if record.number not in failed:
                        plan = plans[record.number]
                        by_plan[plan.hash] = record
                        yield Training(f"trial {record.number} with seed {plan.seed}", plan)

        for job, outcome in self.crew.carry_out(jobs()):
            assert isinstance(job, Training)
            record, plan = by_plan[job.plan.hash], job.plan
            if isinstance(outcome, dict):
                self._known[plan.hash] = outcome
                event = {"time": time.time(), "trial": record.number, "plan": plan.hash}
                event |= {"metrics": outcome, "carried_out": plan.model_dump(mode="json")}
                append_line(self.folder.reruns, json.dumps(event))
            elif why := why_not(outcome, job.task, self.settings):
                failed.add(record.number)
                self.skipped.append(f"trial {record.number}, which failed with seed {plan.seed}: {why}")
            else:
                in_time = False
        return failed

    def _runs_again(self, record: TrialRecord, turns: int) -> Iterator[SeedRun]:
        """The first runs of a plan with new seeds, up to the first that is missing."""
        for turn in range(1, turns + 1):
            plan = _with_turn(record, turn)
            if plan.hash not in self._known:
                return
            measured = self._known[plan.hash]
            yield SeedRun(plan.as_run(measured), measured[f"val.{self.settings.metric}"], measured)


def _with_turn(record: TrialRecord, turn: int) -> TransferPlan:
    """The plan of a trial with another seed in each turn."""
    plan = select.plan_of(record)
    return select.with_seed(plan, plan.seed + turn)


def _known(folder: StudyFolder) -> dict[str, dict[str, float]]:
    """The metrics of reruns with new seeds, by the hash of the plan."""
    return {event["plan"]: event["metrics"] for event in read_lines(folder.reruns, Rerun.model_validate)}


def _seconds(record: TrialRecord) -> float:
    return record.metrics["seconds"]
