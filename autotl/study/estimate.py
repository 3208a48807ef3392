"""How long things will take, from short measurements."""

import math
import time
from collections.abc import Sequence
from contextlib import suppress

import torch

from autotl.data.split import SPLITS
from autotl.engine.bench import Bench
from autotl.engine.device import of_kind
from autotl.engine.features import batch_size, extractor
from autotl.engine.heads import logistic_path
from autotl.errors import PluginError
from autotl.plan import PENALTIES, Network
from autotl.study.watch import Estimate

HEAD_IMAGES = {"cpu": 128, "cuda": 8192}
"""On how many images a head is timed: a GPU takes hardly longer for many than for few."""


def estimate(networks: Sequence[Network], bench: Bench) -> Estimate:
    """What a study of these backbones will spend its time on."""
    features = 0.0
    for network in networks:
        with suppress(PluginError):  # which is said when its features are computed
            features += pass_seconds(network, bench)
    return Estimate(features, linear_probe=_head_seconds(networks, bench))


def pass_seconds(network: Network, bench: Bench) -> float:
    """Seconds to put every image through a backbone, from one batch; 0 when they are stored."""
    missing = bench.features.missing(network, bench.shas(*SPLITS))
    if not missing:
        return 0.0
    catalogue, input = bench.catalogue, network.input
    extract = extractor(catalogue.structure(network.backbone, input), network, catalogue, bench.device, bench.make_room)
    batch = batch_size(input, bench.device)
    images = torch.zeros(batch, 3, input.size, input.size, dtype=torch.uint8)
    seconds = []
    for _ in range(2):  # the first pays for what is loaded and allocated once
        began = time.perf_counter()
        extract(images)
        seconds.append(time.perf_counter() - began)
    return math.ceil(missing / batch) * seconds[-1]


def _head_seconds(networks: Sequence[Network], bench: Bench) -> float:
    """Seconds for one head along six penalties, on blurred classes in features of a typical width."""
    infos = [bench.catalogue.info(network.backbone) for network in networks]
    widths = sorted(stage.channels for info in infos for stage in info.stages)
    device, everything = bench.device, len(bench.shas("train"))
    images = min(of_kind(HEAD_IMAGES, device), everything)
    draw = torch.Generator().manual_seed(0)
    classes, width = len(bench.dataset.classes), widths[len(widths) // 2]
    labels = torch.arange(images) % classes
    features = torch.randn(classes, width, generator=draw)[labels] + torch.randn(images, width, generator=draw)
    seconds = []
    for _ in range(2):  # as for the features, the first pays for what is loaded once
        began = time.perf_counter()
        logistic_path(features.to(device), labels.to(device), classes, PENALTIES)
        seconds.append(time.perf_counter() - began)
    return seconds[-1] * everything / images
