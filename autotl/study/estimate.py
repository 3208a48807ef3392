"""Estimates of how long work takes, from short measurements and from finished trials."""

import statistics
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np
import torch

from autotl.backbones.catalogue import RANDOM
from autotl.data.split import OPEN
from autotl.engine import head_kinds
from autotl.engine.bench import Bench
from autotl.engine.device import of_kind
from autotl.engine.features import batch_size, extractor
from autotl.engine.heads import logistic_path
from autotl.errors import PluginError
from autotl.plan import NO_AUGMENTATION, PENALTIES, Network, Phase, TransferPlan
from autotl.study import select
from autotl.study.controls import PROBE_SECONDS
from autotl.study.pick import contending
from autotl.study.settings import Settings
from autotl.study.watch import Estimate
from autotl.tracking.log import TrialRecord

HEAD_IMAGES = {"cpu": 128, "cuda": 8192}
"""On how many images a head is timed; a GPU takes hardly longer for many than for few."""
RECENT = 5
"""How many of the last trials are used to estimate speed, because the machine may be busy at times."""
BACKWARD = 3
"""The operations of forward and backward together, relative to forward alone, approximately."""


def estimate(networks: Sequence[Network], bench: Bench) -> Estimate:
    """What a study of these backbones will spend its time on."""
    features = 0.0
    for network in networks:
        with suppress(PluginError):  # which is reported when its features are computed
            features += pass_seconds(network, bench)
    return Estimate(features, linear_probe=_head_seconds(networks, bench))


def pass_seconds(network: Network, bench: Bench) -> float:
    """Seconds of the first pass through a backbone, estimated from one batch; 0 if all features are stored."""
    missing = len(bench.features.missing(network, bench.shas(*OPEN)))
    return missing and missing * image_seconds(network, bench)


def image_seconds(network: Network, bench: Bench) -> float:
    """Seconds for one image through a frozen backbone, measured once in each run."""
    if network not in bench.pass_seconds:
        bench.pass_seconds[network] = _measured(network, bench)
    return bench.pass_seconds[network]


def _measured(network: Network, bench: Bench) -> float:
    """Seconds for one image through a backbone, measured with a full batch."""
    catalogue, input = bench.catalogue, network.input
    extract = extractor(catalogue.structure(network.backbone, input), network, catalogue, bench.memory)
    batch = batch_size(input, bench.device)
    images = torch.zeros(batch, 3, input.size, input.size, dtype=torch.uint8, device=bench.device)
    seconds = []
    for _ in range(2):  # the first run includes one-time loading and allocation
        began = time.perf_counter()
        extract(images).cpu()
        seconds.append(time.perf_counter() - began)
    return seconds[-1] / batch


def _head_seconds(networks: Sequence[Network], bench: Bench) -> float:
    """Seconds to fit one head for all penalties, on overlapping classes in features of a typical width."""
    infos = [bench.catalogue.info(network.backbone) for network in networks]
    widths = sorted(stage.channels for info in infos for stage in info.stages)
    device, everything = bench.device, len(bench.shas("train"))
    images = min(of_kind(HEAD_IMAGES, device), everything)
    draw = torch.Generator().manual_seed(0)
    classes, width = len(bench.dataset.classes), widths[len(widths) // 2]
    labels = torch.arange(images) % classes
    features = torch.randn(classes, width, generator=draw)[labels] + torch.randn(images, width, generator=draw)
    seconds = []
    for _ in range(2):  # as for the features, the first run includes one-time loading
        began = time.perf_counter()
        logistic_path(features.to(device), labels.to(device), classes, PENALTIES)
        seconds.append(time.perf_counter() - began)
    return seconds[-1] * everything / images


def seconds_at_the_end(board: Sequence[TrialRecord], settings: Settings, bench: Bench) -> float:
    """Seconds that reruns, refit and comparisons will take, estimated from the trials so far, best first."""
    best = select.finalists(board)
    again = 0.0
    if best and settings.turns:
        units = len(np.unique(bench.dataset.units("val")))
        for record in contending(best, units, bench.scale):
            turns = settings.turns if select.plan_of(record).trainings else max(settings.turns, select.HEAD_TURNS)
            again += turns * _seconds(record)
    last = bench.refit_factor * max(map(_seconds, best), default=0.0)
    probe = (1 + bench.refit_factor) * PROBE_SECONDS
    test = seconds_to_test(best, settings, bench)
    return again + settings.ensemble * last + settings.compare * (last + probe) + test


def seconds_to_test(best: Sequence[TrialRecord], settings: Settings, bench: Bench) -> float:
    """Seconds to evaluate the bundle of one of the best trials, and its controls, on the test images."""
    models = settings.ensemble + (settings.ensemble > 1)  # the winner alone is tested, too
    looks = models + 3 * settings.compare
    share = len(bench.shas("test")) / len(bench.shas("val"))
    seconds = looks * share * max((record.metrics.get("val.seconds", 0.0) for record in best), default=0.0)
    # A frozen backbone was evaluated on stored features; those of the test images are not stored yet.
    passes = max((bench.pass_seconds.get(select.plan_of(record).network, 0.0) for record in best), default=0.0)
    return max(seconds, (models + settings.compare) * passes * len(bench.shas("test")))


def _seconds(record: TrialRecord) -> float:
    return record.metrics["seconds"]


class Pace:
    """How long plans take, from recent trials on their backbone or, before the first one, from a few steps."""

    def __init__(self, bench: Bench, image_seconds: Callable[[str], float]) -> None:
        """`image_seconds(backbone)`: seconds for one image forward and backward through the whole network."""
        self._bench = bench
        self._image_seconds = image_seconds
        self._taken: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=RECENT))
        """Seconds per unit of work, by backbone; by method for heads."""

    def learn(self, record: TrialRecord) -> None:
        """Record how long a trial took."""
        plan = record.plan
        if plan is None or plan.data.fingerprint != self._bench.dataset.fingerprint:
            return
        timed = [epoch for epoch in record.epochs if "seconds" in epoch]
        if timed:
            work = [self._epoch(plan, plan.phases[int(epoch["phase"]) - 1]) for epoch in timed]
            each = [epoch["seconds"] / work for epoch, work in zip(timed, work, strict=True)]
            self._taken[_trained(plan.backbone)].append(statistics.median(each))
        elif len(plan.phases) == 1 and "seconds" in record.metrics:
            self._taken[plan.phases[0].method].append(record.metrics["seconds"] / self._head(plan))

    def epoch_seconds(self, backbone: str) -> float:
        """Seconds for an epoch of a whole network at its own input size."""
        info = self._bench.catalogue.info(backbone)
        return BACKWARD * info.flops(info.names[-1]) * len(self._bench.shas("train")) * self._unit(backbone)

    def seconds(self, plan: TransferPlan) -> float:
        """Seconds to run a plan with all its epochs; heads count as 0 until a trial has fitted one by their method."""
        bench, heads = self._bench, [phase for phase in plan.phases if not phase.training]
        total = sum(statistics.median(self._taken.get(phase.method, (0.0,))) * self._head(plan) for phase in heads)
        if plan.trainings:
            work = 1.0 * len(bench.shas("val")) * bench.catalogue.info(plan.backbone, plan.input).flops(plan.cut)
            for phase in plan.phases:
                if phase.training:
                    work += self._once(plan, phase) + phase.training.epochs * self._epoch(plan, phase)
            total += work * self._unit(plan.backbone)
        return total

    def _unit(self, backbone: str) -> float:
        """Seconds per floating-point operation of training."""
        name = _trained(backbone)
        if name in self._taken:
            return statistics.median(self._taken[name])
        info = self._bench.catalogue.info(name)
        return self._image_seconds(name) / max(1, BACKWARD * info.flops(info.names[-1]))

    def _epoch(self, plan: TransferPlan, phase: Phase) -> float:
        """Operations of one epoch: train images forward and backward, and evaluation images forward."""
        frozen, trained = self._stages(plan, phase)
        fresh = plan.augmentation != NO_AUGMENTATION and not (phase.training and phase.training.views)
        each = BACKWARD * trained + fresh * frozen
        return len(self._bench.shas(*plan.train_on)) * each + self._judging(plan) * trained

    def _once(self, plan: TransferPlan, phase: Phase) -> float:
        """Operations to compute the outputs of the frozen stages, for each view of an image."""
        frozen, _ = self._stages(plan, phase)
        views = min(phase.training.epochs, phase.training.views or 1) if phase.training else 1
        return frozen * (len(self._bench.shas(*plan.train_on)) * views + self._judging(plan))

    def _stages(self, plan: TransferPlan, phase: Phase) -> tuple[int, int]:
        """Operations per image in the frozen stages, and in the other stages with the head."""
        info = self._bench.catalogue.info(plan.backbone, plan.input)
        frozen = info.flops(phase.frozen) if phase.frozen else 0
        head = head_kinds.flops(plan.head, info, plan.cut, len(self._bench.dataset.classes))
        return frozen, info.flops(plan.cut) - frozen + head

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
