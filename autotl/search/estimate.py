"""How long a search will take, from a short measurement."""

import math
import time
from collections.abc import Sequence

import torch

from autotl.engine.features import batch_size, every_feature, normalise, on_device
from autotl.engine.fit import Bench
from autotl.engine.heads import logistic_path
from autotl.search.watch import Estimate

HEAD_IMAGES = 128


def estimate(backbones: Sequence[str], bench: Bench, seed: int, trials: int) -> Estimate:
    """Seconds for the feature passes that are still to be made, and for the trials."""
    features = sum(_pass_seconds(name, bench, seed) for name in backbones)
    return Estimate(features, trials * _head_seconds(backbones, bench))


def _pass_seconds(name: str, bench: Bench, seed: int) -> float:
    """Seconds to put every image through a backbone, from one batch; 0 when they are stored."""
    catalogue = bench.features.catalogue
    missing = bench.features.missing(name, catalogue.weights(name, seed), bench.shas("train", "stop", "rank", "test"))
    if not missing:
        return 0.0
    info = catalogue.info(name)
    device = bench.features.device
    stages = on_device(catalogue.structure(name), device)
    batch, size = batch_size(info.input, device), info.input.size
    images = torch.zeros(batch, 3, size, size, dtype=torch.uint8, device=device)
    seconds = []
    for _ in range(2):  # the first pays for what is loaded and allocated once
        began = time.perf_counter()
        every_feature(stages, info, normalise(images, info.input)).cpu()
        seconds.append(time.perf_counter() - began)
    return math.ceil(missing / batch) * seconds[-1]


def _head_seconds(backbones: Sequence[str], bench: Bench) -> float:
    """Seconds for one head along six penalties, on blurred classes in features of a typical width."""
    widths = sorted(stage.channels for name in backbones for stage in bench.features.catalogue.info(name).stages)
    images = min(HEAD_IMAGES, len(bench.shas("train")))
    draw = torch.Generator().manual_seed(0)
    classes, width = len(bench.dataset.classes), widths[len(widths) // 2]
    labels = torch.arange(images) % classes
    features = torch.randn(classes, width, generator=draw)[labels] + torch.randn(images, width, generator=draw)
    device = bench.features.device
    began = time.perf_counter()
    logistic_path(features.to(device), labels.to(device), classes, [10.0**power for power in range(-4, 2)])
    return (time.perf_counter() - began) * len(bench.shas("train")) / images
