"""Chooses the precision (float32 or bfloat16) and the memory format of training by measuring which is fastest.

Which one is fastest depends on the network and the machine in ways that are hard to predict: a depthwise network may
take twice as long in bfloat16 on a processor that has instructions for it. So it is measured, once.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, get_args

import torch
from torch import Tensor

from autotl.backbones.catalogue import Catalogue
from autotl.backbones.stages import Stages
from autotl.engine.device import kind, of_kind
from autotl.engine.memory import TOO_LITTLE, Memory
from autotl.errors import TrainingError, out_of_memory
from autotl.files import seal, unseal
from autotl.plan import Input, MemoryFormat, Precision, digest

T = TypeVar("T")
DTYPES: dict[Precision, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MEMORY_FORMATS: dict[MemoryFormat, torch.memory_format] = {
    "contiguous": torch.contiguous_format,
    "channels_last": torch.channels_last,
}
Way = tuple[Precision, MemoryFormat]
WAYS: tuple[Way, ...] = tuple((dtype, layout) for dtype in get_args(Precision) for layout in get_args(MemoryFormat))
WORTH = 0.87
"""A faster way is used if it needs at most this share of the time of float32, channels_last."""
BATCH = {"cpu": 8, "cuda": 64}
TURNS, ENOUGH = 3, 2.0
"""The number of turns, with one step each way per turn, and the seconds after which no further turn starts."""


@dataclass(frozen=True)
class Arithmetic:
    """How a backbone is trained on a device."""

    compute_dtype: Precision = "float32"
    memory_format: MemoryFormat = "channels_last"
    image_seconds: float = math.nan
    """Measured seconds for one image forward and backward through the whole network."""


@contextmanager
def computing(dtype: Precision, device: str) -> Iterator[None]:
    """Multiplications in `dtype`, weights and sums in float32 (Micikevicius et al. 2018, arXiv 1710.03740)."""
    with torch.autocast(kind(device), DTYPES[dtype], enabled=dtype != "float32"):
        yield


def stored(catalogue: Catalogue, backbone: str, memory: Memory, cache_dir: Path) -> Arithmetic | None:
    """What `choose` has found on this machine before."""
    found = unseal(_file(catalogue, backbone, memory, cache_dir))
    return Arithmetic(**json.loads(found)) if found else None


def choose(catalogue: Catalogue, backbone: str, memory: Memory, cache_dir: Path) -> Arithmetic:
    """Measure the fastest way to train a backbone on this device, and store it in `cache_dir`.

    Raises: TrainingError if a step does not fit into the device's memory.
    """
    input = catalogue.card(backbone).input
    chosen = fastest(catalogue.structure(backbone, input), input, memory)
    seal(_file(catalogue, backbone, memory, cache_dir), json.dumps(asdict(chosen)))
    return chosen


def _file(catalogue: Catalogue, backbone: str, memory: Memory, cache_dir: Path) -> Path:
    key = digest(depends_on(catalogue, backbone, catalogue.card(backbone).input, memory.device))
    return cache_dir / "arithmetic" / key


def depends_on(catalogue: Catalogue, backbone: str, input: Input, device: str) -> list[Any]:
    """What timings of a backbone depend on: its code, its input, the device."""
    facts, versions = catalogue.facts(backbone, input), catalogue.requires(backbone)
    code = [versions, facts.graph, facts.source]
    return [backbone, input.model_dump(mode="json"), code, device, _name_of(device)]


def fastest(stages: Stages, input: Input, memory: Memory, ways: Sequence[Way] = WAYS) -> Arithmetic:
    """The fastest way, measured with as large a batch as fits into memory.

    Raises: TrainingError if 2 images do not fit.
    """
    stages = stages.train().to(memory.device)
    return as_many_as_fit(of_kind(BATCH, memory.device), memory, partial(_fastest, stages, input, memory.device, ways))


def as_many_as_fit(batch: int, memory: Memory, measure: Callable[[int], T]) -> T:
    """What `measure` finds with this batch, halved until it fits into memory; 2 images at least, because of batch norm.

    Raises: TrainingError if 2 images do not fit.
    """
    while batch > 1:
        if found := memory.attempt(partial(measure, batch)):
            return found
        batch //= 2
    raise TrainingError(TOO_LITTLE)


def _fastest(stages: Stages, input: Input, device: str, ways: Sequence[Way], batch: int) -> Arithmetic:
    """Takes the shortest of a few steps for each way. Ways alternate, so that a busy moment affects all of them."""
    seconds = dict.fromkeys(ways, math.inf)
    images = torch.zeros(batch, 3, input.size, input.size, device=device)
    started = math.inf
    for turn in range(TURNS + 1):
        if turn == 1:
            started = time.perf_counter()
            seconds = dict.fromkeys(ways, math.inf)  # discard the first turn, a warm-up
        if turn > 1 and time.perf_counter() - started > ENOUGH:
            break
        for dtype, layout in ways:
            stages = stages.to(memory_format=MEMORY_FORMATS[layout])
            laid_out = images.contiguous(memory_format=MEMORY_FORMATS[layout])
            seconds[dtype, layout] = min(seconds[dtype, layout], _step_seconds(stages, laid_out, dtype, device))
    usual: Way = ("float32", "channels_last")
    best = min(seconds, key=seconds.__getitem__)
    chosen = best if usual not in seconds or seconds[best] < WORTH * seconds[usual] else usual
    return Arithmetic(chosen[0], chosen[1], seconds[chosen] / batch)


def _step_seconds(stages: Stages, images: Tensor, dtype: Precision, device: str) -> float:
    """Seconds for one step forward and backward; infinite if the device does not support it."""
    started = time.perf_counter()
    try:
        with computing(dtype, device):
            value = stages(images)
        if value.requires_grad:
            value.float().mean().backward()
        value.flatten()[0].item()  # waits for the device
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except RuntimeError as error:
        if out_of_memory(error):
            raise
        return math.inf
    finally:
        stages.zero_grad()
    return time.perf_counter() - started


def _name_of(device: str) -> str:
    """The device's name, because the fastest way differs between GPUs."""
    if kind(device) == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
