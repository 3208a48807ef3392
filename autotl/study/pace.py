"""How long plans take: measured seconds of each stage, corrected by the trials that have ended."""

import math
import statistics
from collections import defaultdict, deque
from collections.abc import Callable
from typing import NamedTuple

from autotl.backbones.catalogue import RANDOM
from autotl.contracts import StageInfo
from autotl.engine import head_kinds
from autotl.engine.activations import fits
from autotl.engine.bench import Bench
from autotl.engine.stage_times import StageTimes
from autotl.plan import NO_AUGMENTATION, Phase, TransferPlan
from autotl.tracking.log import TrialRecord

RECENT = 5
"""How many of the last trials are used to estimate speed, because the machine may be busy at times."""
BACKWARD = 3
"""The operations of forward and backward together, relative to forward alone, approximately."""


class _Each(NamedTuple):
    """Seconds for one image in a phase."""

    frozen: float
    trained: float
    """Forward and backward through the trained stages and the head."""
    judged: float
    """Forward through them."""


_Taken = tuple[TransferPlan, list[tuple[Phase, list[float]]]]


class Pace:
    """How long plans take on this machine, as busy as it was in recent trials."""

    def __init__(self, bench: Bench, stage_times: Callable[[str], StageTimes]) -> None:
        """`stage_times(backbone)`: those at its own input size."""
        self._bench = bench
        self._stage_times = stage_times
        self._epochs: dict[str, deque[_Taken]] = defaultdict(lambda: deque(maxlen=RECENT))
        """Trained plans with the seconds of each epoch of each phase, by backbone."""
        self._heads: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=RECENT))
        """Seconds per unit of work, by method."""

    def learn(self, record: TrialRecord) -> None:
        """Record how long a trial took."""
        plan = record.plan
        if plan is None or plan.data.fingerprint != self._bench.dataset.fingerprint:
            return
        timed = [epoch for epoch in record.epochs if "seconds" in epoch]
        if timed:
            phases = [
                (phase, [epoch["seconds"] for epoch in timed if epoch["phase"] == number])
                for number, phase in enumerate(plan.phases, 1)
            ]
            self._epochs[_trained(plan.backbone)].append((plan, phases))
        elif len(plan.phases) == 1 and "seconds" in record.metrics:
            self._heads[plan.phases[0].method].append(record.metrics["seconds"] / self._head(plan))

    def seconds(self, plan: TransferPlan) -> float:
        """Seconds to run a plan with all its epochs; heads count as 0 until a trial has fitted one by their method."""
        bench, heads = self._bench, [phase for phase in plan.phases if not phase.training]
        total = sum(statistics.median(self._heads.get(phase.method, (0.0,))) * self._head(plan) for phase in heads)
        if plan.trainings:
            measured = 1.0 * len(bench.shas("val")) * self._each(plan, None).judged
            for phase in plan.phases:
                if phase.training:
                    measured += self._once(plan, phase) + phase.training.epochs * self._epoch(plan, phase)
            total += measured * self._slowness(plan.backbone)
        return total

    def _slowness(self, backbone: str) -> float:
        """Seconds that recent trials took, divided by what the measured seconds of the stages add up to."""
        taken = self._epochs.get(_trained(backbone))
        if not taken:
            return 1.0
        found = []
        for plan, phases in taken:
            measured = [(seconds, self._epoch(plan, phase)) for phase, seconds in phases if seconds]
            found.append(statistics.median(each / epoch for seconds, epoch in measured for each in seconds))
        return statistics.median(found)

    def _epoch(self, plan: TransferPlan, phase: Phase) -> float:
        """Seconds of one epoch: train images forward and backward, and evaluation images forward."""
        each, images = self._each(plan, phase.frozen), len(self._bench.shas(*plan.train_on))
        fresh = plan.augmentation != NO_AUGMENTATION and not (phase.training and phase.training.views)
        again = fresh or not self._fits(plan, phase, images)
        return images * (each.trained + again * each.frozen) + self._judging(plan) * each.judged

    def _once(self, plan: TransferPlan, phase: Phase) -> float:
        """Seconds to compute the outputs of the frozen stages, for each view of an image."""
        views = min(phase.training.epochs, phase.training.views or 1) if phase.training else 1
        images = len(self._bench.shas(*plan.train_on)) * views + self._judging(plan)
        return images * self._each(plan, phase.frozen).frozen

    def _fits(self, plan: TransferPlan, phase: Phase, images: int) -> bool:
        """Whether the outputs of the frozen stages, if any, can be kept in memory."""
        if phase.frozen is None:
            return True
        stage: StageInfo = self._bench.catalogue.info(plan.backbone, plan.input).stage(phase.frozen)
        views = max(1, phase.training.views) if phase.training else 1
        return fits(stage, images * views, plan.boundary_dtype, self._bench.memory)

    def _each(self, plan: TransferPlan, frozen: str | None) -> _Each:
        """Seconds for one image in the frozen stages and in the others."""
        catalogue, times = self._bench.catalogue, self._stage_times(_trained(plan.backbone))
        own, info = catalogue.info(plan.backbone), catalogue.info(plan.backbone, plan.input)
        larger = info.flops(plan.cut) / max(1, own.flops(plan.cut))
        kept = [times[stage.name] for stage in info.upto(plan.cut)]
        first = info.names.index(frozen) + 1 if frozen else 0
        flops = head_kinds.flops(plan.head, info, plan.cut, len(self._bench.dataset.classes))
        head = math.fsum(each.training for each in kept) * flops / max(1, BACKWARD * info.flops(plan.cut))
        return _Each(
            frozen=larger * math.fsum(each.forward for each in kept[:first]),
            trained=larger * (math.fsum(each.training for each in kept[first:]) + BACKWARD * head),
            judged=larger * (math.fsum(each.forward for each in kept[first:]) + head),
        )

    def _judging(self, plan: TransferPlan) -> int:
        return len(self._bench.shas(*self._bench.judges(plan)[:1]))

    def _head(self, plan: TransferPlan) -> float:
        """The work of fitting a head: images × features × classes."""
        info = self._bench.catalogue.info(plan.backbone, plan.input)
        width = sum(info.stage(name).channels for name in (*plan.head.taps, plan.cut))
        return len(self._bench.shas("train", "early_stop")) * width * len(self._bench.dataset.classes)


def _trained(backbone: str) -> str:
    """The name without `@random`: random weights take as long to train as others."""
    return backbone.removesuffix(RANDOM)
