"""Measures how long a backbone takes for one image, up to each of its stages, on the device of a search.

Timings do not enter a plan. They are measured once on a machine and kept in the cache.
"""

import json
import platform
import statistics
import time
from pathlib import Path

import torch

from autotl.backbones.catalogue import Catalogue
from autotl.backbones.stages import Stages
from autotl.engine.device import kind
from autotl.engine.exact import exact
from autotl.engine.features import on_device
from autotl.engine.precision import depends_on
from autotl.files import seal, unseal
from autotl.plan import Input, digest

WARM_UP, LEAST, MOST = 3, 10, 100
"""Passes of one image that are not counted; the fewest and the most that are."""
ENOUGH = 0.5
"""Seconds after which no pass starts beyond the fewest."""


def milliseconds(catalogue: Catalogue, backbone: str, input: Input, device: str, cache_dir: Path) -> tuple[float, ...]:
    """The latency of a backbone cut after each stage, without a head, as it was first measured on this machine."""
    key = digest([*depends_on(catalogue, backbone, input, device), platform.node()])
    file = cache_dir / "latency" / key
    if found := unseal(file):
        return tuple(json.loads(found))
    measured = measure(on_device(catalogue.structure(backbone, input), device), input, device)
    seal(file, json.dumps(measured))
    return measured


def measure(stages: Stages, input: Input, device: str) -> tuple[float, ...]:
    """Milliseconds from an image, [1, 3, S, S] float32 on the device, to the output of each stage: medians."""
    image = torch.randn(1, 3, input.size, input.size, generator=torch.Generator().manual_seed(0))
    image = image.to(device, memory_format=torch.channels_last)
    passes: list[list[float]] = []
    began = time.perf_counter()
    with exact(device), torch.inference_mode():
        for turn in range(WARM_UP + MOST):
            if turn >= WARM_UP + LEAST and time.perf_counter() - began > ENOUGH:
                break
            started = time.perf_counter()
            passes.append([_seconds_since(started, device) for _ in stages.walk(image)])
    return tuple(1000 * statistics.median(ends) for ends in zip(*passes[WARM_UP:], strict=True))


def _seconds_since(started: float, device: str) -> float:
    """When the device has done what it was given."""
    if kind(device) != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter() - started
