"""Estimates of how long work takes, from short measurements and from finished trials."""

import time
from collections.abc import Sequence
from contextlib import suppress

import torch

from autotl.data.split import OPEN
from autotl.engine.bench import Bench
from autotl.engine.device import of_kind
from autotl.engine.features import batch_size, extractor
from autotl.engine.heads import logistic_path
from autotl.errors import PluginError
from autotl.plan import PENALTIES, Network
from autotl.study import select
from autotl.study.controls import PROBE_SECONDS
from autotl.study.pick import contending
from autotl.study.settings import Settings
from autotl.study.watch import Estimate
from autotl.tracking.log import TrialRecord

HEAD_IMAGES = {"cpu": 128, "cuda": 8192}
"""On how many images a head is timed; a GPU takes hardly longer for many than for few."""


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
        units = bench.dataset.independent("val")
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
