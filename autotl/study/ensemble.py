"""The ensemble: plans whose models are averaged with the winner's, chosen by their predictions for `val`."""

import math
import shutil
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from autotl.engine import metrics
from autotl.engine.calibration import Calibration
from autotl.engine.fit import on_all_images
from autotl.engine.temperature import Predicted, calibrate, has_temperature
from autotl.export import bundle
from autotl.files import replacing
from autotl.plan import Ensemble, TransferPlan
from autotl.study import select
from autotl.study.costs import COSTS
from autotl.study.crew import Crew
from autotl.study.opening import Opened
from autotl.study.pick import contending
from autotl.study.worker import Training, why_not
from autotl.tracking import predictions
from autotl.tracking.log import TrialRecord
from autotl.tracking.result import Averaged

CANDIDATES = 12
"""How many of the best plans an ensemble is chosen from, without those that are certainly worse than the best."""

Order = tuple[float, float, float]
"""A sort key as of `select.order`: the best has the smallest."""


def greedy(first: int, others: Sequence[int], size: int, order: Callable[[Sequence[int]], Order | None]) -> list[int]:
    """The first with up to `size - 1` of the others, added one by one: always the one with which the ensemble is best.

    `order(members)` is None for an ensemble that is not allowed. Caruana et al. (2004) may add one several times.
    """
    chosen = [first]
    while len(chosen) < size:
        keys = {other: order([*chosen, other]) for other in others if other not in chosen}
        possible = [(key, other) for other, key in keys.items() if key is not None]
        if not possible:
            break
        chosen.append(min(possible)[1])
    return chosen


class Ensembling:
    """Makes the bundle that of an ensemble. What there is no time for is in `skipped`, with the reason."""

    def __init__(self, opened: Opened, crew: Crew) -> None:
        self.folder, self.settings, self.bench = opened.folder, opened.settings, opened.bench
        self.budget, self.watcher, self.crew = opened.budget, opened.watcher, crew
        self.skipped: list[str] = []
        self._records: dict[int, TrialRecord] = {}
        self._known: dict[int, np.ndarray] = {}
        """The predictions for `val`, by trial."""

    def made(self, winner: TrialRecord, final: TransferPlan, board: Sequence[TrialRecord]) -> Averaged | None:
        """Make the bundle, which is that of the winner's plan `final`, the bundle of its ensemble with other plans.

        None if the user wants no ensemble, or if there is no other member.
        """
        found = self._made(winner, final, board) if self.settings.ensemble > 1 else None
        self._keep_only(found.plan.members if found else ())
        return found

    def restore(self, final: TransferPlan) -> bool:
        """Whether a model was a member of an earlier ensemble; its own bundle then is the bundle again."""
        if not self._is_there(final):
            return False
        with replacing(self.folder.bundle) as place:
            bundle.copy(self.folder.member(final), place)
        return True

    def _made(self, winner: TrialRecord, final: TransferPlan, board: Sequence[TrialRecord]) -> Averaged | None:
        size, views = self.settings.ensemble, final.test_views
        units = self.bench.dataset.independent("val")
        able = contending(board[:CANDIDATES], units, self.bench.scale)
        others = [record for record in able if record.number != winner.number]
        self._records = {record.number: record for record in (winner, *others)}
        self._predict()
        if winner.number not in self._known:
            self.skipped.append(f"the ensemble: there are no predictions of trial {winner.number} for val")
            return None
        known = [record.number for record in others if record.number in self._known]
        chosen = greedy(winner.number, known, size, lambda members: self._order(members, views))
        if len(chosen) < size:
            why = (
                "with another the limits would be exceeded"
                if len(known) >= size - 1
                else "no other plan is about as good"
            )
            self.watcher.note(f"The ensemble has {len(chosen)} of {size} models: {why}.")
        plans = {winner.number: final, **{number: self._final(number, views) for number in chosen[1:]}}
        self._train(chosen[1:], plans)
        members = [number for number in chosen if number == winner.number or self._is_there(plans[number])]
        if len(members) == 1:
            return None
        self._keep(final)
        measured = self._measured(members, views)
        made = Ensemble(members=tuple(plans[number] for number in members))
        places = [self.folder.member(plan) for plan in made.members]
        bundle.join(self.folder.bundle, places, {"validation": measured}, self._calibration(members))
        validation = measured[f"val.{self.settings.metric}"]
        return Averaged(trials=tuple(members), plan=made, validation=validation, metrics=measured)

    def _predict(self) -> None:
        """Read the predictions for `val`; plans without any are trained again, as far as there is time."""
        last = (self.settings.ensemble - 1) * max(map(self._seconds_again, self._records))

        def lacking() -> Iterator[tuple[int, Training]]:
            for number, record in self._records.items():
                plan = select.plan_of(record)
                if self._read(number):
                    continue
                if self.budget.left() < record.metrics["seconds"] + last:
                    self.skipped.append(f"trial {number} as a candidate for the ensemble: no time to run it again")
                    continue
                task = f"predictions of trial {number}"
                yield number, Training(task, plan, val=True)

        for number in self._carried_out(lacking(), "as a candidate for the ensemble"):
            self._read(number)

    def _train(self, numbers: Sequence[int], plans: dict[int, TransferPlan]) -> None:
        """Train the members whose bundles are not there yet."""

        def lacking() -> Iterator[tuple[int, Training]]:
            for number in numbers:
                plan = plans[number]
                if self._is_there(plan):
                    continue
                if self.budget.left() < self._seconds_again(number):
                    self.skipped.append(f"trial {number} as a member of the ensemble: no time to train it")
                    continue
                task, measured = f"trial {number} for the ensemble", self._records[number].metrics
                place, calibration = self.folder.member(plan), self._calibration([number])
                yield number, Training(task, plan, bundle=place, validation=measured, calibration=calibration)

        for _ in self._carried_out(lacking(), "as a member of the ensemble"):
            pass

    def _carried_out(self, asked: Iterator[tuple[int, Training]], role: str) -> Iterator[int]:
        """Train plans of trials; the trials for which that succeeds."""
        number_of: dict[str, int] = {}

        def jobs() -> Iterator[Training]:
            for number, job in asked:
                number_of[job.task] = number
                yield job

        for job, outcome in self.crew.carry_out(jobs()):
            assert isinstance(job, Training)
            number = number_of[job.task]
            if isinstance(outcome, dict):
                yield number
            else:
                why = why_not(outcome, job.task, self.settings)
                self.skipped.append(f"trial {number} {role}: {f'it failed: {why}' if why else 'the time ended'}")

    def _read(self, number: int) -> bool:
        images, classes = len(self.bench.shas("val")), len(self.bench.dataset.classes)
        file = self.folder.predictions_of(select.plan_of(self._records[number]))
        found = predictions.read_whole(file, images, classes)
        if found is not None:
            self._known[number] = found
        return found is not None

    def _order(self, members: Sequence[int], views: int) -> Order | None:
        measured, limits = self._measured(members, views), self.settings.limits
        if any(measured.get(cost.metric, 0.0) > limits.get(cost.limit, math.inf) for cost in COSTS.values()):
            return None
        return select.order(measured[f"val.{self.settings.metric}"], measured, self.bench.scale)

    def _measured(self, members: Sequence[int], views: int) -> dict[str, float]:
        """The metrics of an ensemble on `val`, and its costs, which are the sums of those of its members."""
        labels, records = self.bench.dataset.labels("val"), [self._records[number] for number in members]
        mean = self._mean(members)
        found = {f"val.{entry.name}": metrics.measure(entry, labels, mean) for entry in self.bench.metrics}
        found["val.loss"] = metrics.log_loss(np.log(np.maximum(mean, np.finfo(float).tiny)), labels)
        for cost in COSTS.values():
            if all(cost.metric in record.metrics for record in records):
                times = views if cost.by_view else 1
                found[cost.metric] = times * sum(record.metrics[cost.metric] for record in records)
        return found

    def _mean(self, members: Sequence[int]) -> np.ndarray:
        """The mean of their predictions for `val`, [N, C]."""
        return np.mean([self._known[number] for number in members], axis=0)

    def _calibration(self, members: Sequence[int]) -> Calibration:
        """Of the mean of these models, as in `Fitted`."""
        first = self._records[members[0]]
        own = len(members) == 1 and has_temperature(select.plan_of(first), first.metrics)
        dataset = self.bench.dataset
        return calibrate([Predicted(self._mean(members), dataset.labels("val"), dataset.units("val"))], own)

    def _final(self, number: int, views: int) -> TransferPlan:
        """The plan that a member is trained by."""
        record = self._records[number]
        plan = select.plan_of(record).model_copy(update={"test_views": views})
        return on_all_images(plan, record.metrics, self.bench) if self.settings.refit else plan

    def _seconds_again(self, number: int) -> float:
        return (self.bench.refit_factor if self.settings.refit else 1.0) * self._records[number].metrics["seconds"]

    def _is_there(self, plan: TransferPlan) -> bool:
        return bundle.plan_of(self.folder.member(plan)) == plan

    def _keep(self, final: TransferPlan) -> None:
        """Keep the bundle of the winner alone as that of a member."""
        if not self._is_there(final):
            with replacing(self.folder.member(final)) as place:
                bundle.copy(self.folder.bundle, place)

    def _keep_only(self, plans: Sequence[TransferPlan]) -> None:
        """Remove the bundles of models that are no members any more."""
        wanted = {self.folder.member(plan) for plan in plans}
        for path in self.folder.members.glob("*"):
            if path not in wanted:
                shutil.rmtree(path)
        if not wanted and self.folder.members.exists():
            self.folder.members.rmdir()
