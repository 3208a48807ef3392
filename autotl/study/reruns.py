"""Reruns of the best plans with new seeds and other images in `val`, so that no plan wins by the luck of either."""

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
from autotl.study.pick import contending, simplest
from autotl.study.settings import RERUN, SIMPLEST
from autotl.study.worker import Training, why_not
from autotl.tracking.folder import Rerun, StudyFolder
from autotl.tracking.log import TrialRecord
from autotl.tracking.result import Simplest


@dataclass(frozen=True)
class SeedRun:
    """A plan that was run with one seed and one division of the images."""

    plan: TransferPlan
    value: float
    metrics: dict[str, float]


@dataclass(frozen=True)
class Contender:
    """One of the best plans with its trial and its runs, the trial's own first."""

    record: TrialRecord
    runs: tuple[SeedRun, ...]

    @property
    def mean(self) -> float:
        return float(np.mean([run.value for run in self.runs]))

    def median(self, scale: Scale) -> SeedRun:
        """The median run by its value, then by its loss; the worse of two."""

        def place(run: SeedRun) -> tuple[float, float]:
            return -scale.order(run.value), -run.metrics.get("val.loss", 0.0)

        return sorted(self.runs, key=place)[(len(self.runs) - 1) // 2]

    @classmethod
    def alone(cls, record: TrialRecord) -> "Contender":
        """A trial with its own run only."""
        return cls(record, (SeedRun(select.plan_of(record), select.value_of(record), record.metrics),))


class Reruns:
    """Reruns of the best plans of a study. Those that there is no time for are in `skipped`, with the reason.

    The runs of a turn have the same seed, and the same division of the images outside the test split into `train`,
    `early_stop` and `val`, for every plan; a `val` split that the user chose stays.
    """

    def __init__(self, opened: Opened, crew: Crew) -> None:
        self.folder, self.settings, self.bench = opened.folder, opened.settings, opened.bench
        self.budget, self.crew = opened.budget, crew
        self.skipped: list[str] = []
        self._known = _known(self.folder)
        self._failed: set[int] = set()
        self.simplest: Simplest | None = None
        self._units = self.bench.dataset.independent("val")

    def contenders(self, best: Sequence[TrialRecord]) -> list[Contender]:
        """The plans of `picked` by their mean over runs, without those that fail in one; without reruns as given.

        With `--pick simplest` those that are at most one standard error worse than the best come first, the simplest of
        them before the others.
        """
        found = self._by_mean(best)
        if self.settings.pick not in RERUN or not found:
            return found
        dataset = self.bench.dataset
        # On the same images the spread between runs is not that between images.
        values = [[run.value for run in each.runs] if dataset.divisible else [each.mean] for each in found]
        complexity = [select.complexity(each.record) for each in found]
        order, noise = simplest(np.array(values), complexity, self._units, self.bench.scale)
        first, top = found[order[0]], found[0]
        if first is not top:
            self.simplest = Simplest(
                trial=first.record.number,
                value=first.mean,
                best=top.record.number,
                value_of_best=top.mean,
                noise=noise,
                runs=len(top.runs),
            )
        return [found[at] for at in order] if self.settings.pick == SIMPLEST else found

    def _by_mean(self, best: Sequence[TrialRecord]) -> list[Contender]:
        """The plans by their mean over runs; without those that are certainly worse than the best, if that leaves some.

        Of the heads on frozen features only the best one is left, by its mean over more runs than the others have.
        """
        turns = self.settings.turns
        left = contending(best, self._units, self.bench.scale) if turns else []
        if len(left) < 2:
            return [Contender.alone(record) for record in best]
        most = self.bench.refit_factor * max(map(_seconds, best))
        heads = [record for record in left if not select.plan_of(record).trainings]
        if len(heads) > 1:
            heads = [each.record for each in self._rerun(heads, max(turns, select.HEAD_TURNS), most, "heads")][:1]
        left = [record for record in left if record in heads or select.plan_of(record).trainings]
        return self._rerun(left, turns, most, "the best plans")

    def _rerun(self, best: Sequence[TrialRecord], turns: int, most: float, what: str) -> list[Contender]:
        """The plans by their mean over as many runs as all of them have.

        `most`: seconds that a refit takes at most.
        """
        again = [record for record in best if self._varies(record)]
        self._run_again(again, turns, most)
        left = [record for record in best if record.number not in self._failed]
        # A round counts if every plan has been trained in it.
        counts = [len(list(self._runs_again(record, turns))) for record in left if record in again]
        rounds = min(counts, default=turns)
        if rounds < turns:
            missing = f"{turns - rounds} of {turns} rounds"
            self.skipped.append(f"no time for {missing} of reruns of {what} with new seeds")
        contenders = [
            Contender(record, (*Contender.alone(record).runs, *self._runs_again(record, rounds))) for record in left
        ]
        return sorted(contenders, key=lambda contender: self.bench.scale.order(contender.mean))

    def _varies(self, record: TrialRecord) -> bool:
        """Whether another turn would give another result."""
        return self.bench.dataset.divisible or select.depends_on_seed(select.plan_of(record))

    def _run_again(self, again: Sequence[TrialRecord], turns: int, most: float) -> None:
        """Train plans in new turns as far as there is time."""
        by_plan: dict[str, TrialRecord] = {}
        in_time = True
        seconds = [*map(_seconds, again)]

        def jobs() -> Iterator[Training]:
            for turn in range(1, turns + 1):
                plans = {record.number: self._with_turn(record, turn) for record in again}
                lacking = [record for record in again if plans[record.number].hash not in self._known]
                if lacking and self.budget.left() < max(*seconds, sum(seconds) / self.crew.size) + most:
                    return
                for record in lacking:
                    if not in_time:
                        return
                    if record.number not in self._failed:
                        plan = plans[record.number]
                        by_plan[plan.hash] = record
                        yield Training(f"trial {record.number} with seed {plan.seed}", plan, val=True)

        for job, outcome in self.crew.carry_out(jobs()):
            assert isinstance(job, Training)
            record, plan = by_plan[job.plan.hash], job.plan
            if isinstance(outcome, dict):
                self._known[plan.hash] = outcome
                event = {"time": time.time(), "trial": record.number, "plan": plan.hash}
                event |= {"metrics": outcome, "carried_out": plan.model_dump(mode="json")}
                append_line(self.folder.reruns, json.dumps(event))
            elif why := why_not(outcome, job.task, self.settings):
                self._failed.add(record.number)
                self.skipped.append(f"trial {record.number}, which failed with seed {plan.seed}: {why}")
            else:
                in_time = False

    def _runs_again(self, record: TrialRecord, turns: int) -> Iterator[SeedRun]:
        """The first runs of a plan in new turns, up to the first that is missing."""
        for turn in range(1, turns + 1):
            plan = self._with_turn(record, turn)
            if plan.hash not in self._known:
                return
            measured = self._known[plan.hash]
            yield SeedRun(plan.as_run(measured), measured[f"val.{self.settings.metric}"], measured)

    def _with_turn(self, record: TrialRecord, turn: int) -> TransferPlan:
        """The plan of a trial with another seed in each turn, and if possible another division of the images."""
        return with_turn(select.plan_of(record), turn, divided=self.bench.dataset.divisible)


def with_turn(plan: TransferPlan, turn: int, *, divided: bool) -> TransferPlan:
    """The plan as it is rerun in a turn, counted from 1."""
    data = plan.data.model_copy(update={"division": turn}) if divided else plan.data
    return select.with_seed(plan, plan.seed + turn).model_copy(update={"data": data})


def _known(folder: StudyFolder) -> dict[str, dict[str, float]]:
    """The metrics of reruns with new seeds, by the hash of the plan."""
    return {event["plan"]: event["metrics"] for event in read_lines(folder.reruns, Rerun.model_validate)}


def _seconds(record: TrialRecord) -> float:
    return record.metrics["seconds"]
