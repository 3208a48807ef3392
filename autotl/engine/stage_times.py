"""Measures how long each stage of a backbone takes, frozen and trained, in the arithmetic that it is trained in.

FLOPs would not do: the first stages, with their large maps, and depthwise convolutions take several times longer for
each operation than others.
"""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from autotl.backbones.stages import Stages
from autotl.contracts import BackboneInfo
from autotl.engine.device import of_kind
from autotl.engine.memory import Memory
from autotl.engine.precision import ENOUGH, MEMORY_FORMATS, TURNS, Arithmetic, as_many_as_fit, computing
from autotl.plan import Input

BATCH = {"cpu": 16, "cuda": 64}
"""As many images as in a usual batch of training: the last stages take longer for each one if there are fewer."""


class Times(NamedTuple):
    """Seconds for one image through one stage."""

    forward: float
    training: float
    """Forward and backward."""


StageTimes = Mapping[str, Times]
"""Those of each stage, by name."""


def measured(stages: Stages, input: Input, arithmetic: Arithmetic, memory: Memory) -> StageTimes:
    """The shortest time of a few turns for each stage, with as large a batch as fits into memory.

    Batch norm is in evaluation mode, as in frozen stages and first guesses.

    Raises: TrainingError if 2 images do not fit.
    """
    stages = stages.eval().to(memory.device).to(memory_format=MEMORY_FORMATS[arithmetic.memory_format])
    return as_many_as_fit(of_kind(BATCH, memory.device), memory, partial(_measured, stages, input, arithmetic, memory))


def by_flops(info: BackboneInfo, seconds: float) -> StageTimes:
    """`seconds` for one image through the whole network as if each operation took the same time."""
    whole = max(1, info.flops(info.names[-1]))
    return {stage.name: Times(*2 * [seconds * stage.flops / whole]) for stage in info.stages}


def _measured(stages: Stages, input: Input, arithmetic: Arithmetic, memory: Memory, batch: int) -> StageTimes:
    images = torch.zeros(batch, 3, input.size, input.size, device=memory.device)
    images = images.contiguous(memory_format=MEMORY_FORMATS[arithmetic.memory_format])
    _turn(stages, images, arithmetic, memory.device)  # includes one-time loading and allocation
    turns: list[list[Times]] = []
    started = time.perf_counter()
    while len(turns) < TURNS and not (turns and time.perf_counter() - started > ENOUGH):
        turns.append(_turn(stages, images, arithmetic, memory.device))
    best = ([min(turn[at][way] for turn in turns) / batch for way in (0, 1)] for at in range(len(stages.names)))
    return {name: Times(*times) for name, times in zip(stages.names, best, strict=True)}


def _turn(stages: Stages, value: Tensor, arithmetic: Arithmetic, device: str) -> list[Times]:
    """Seconds for a batch through one stage after the other."""
    found, before = [], None
    with computing(arithmetic.compute_dtype, device):
        for name in stages.names:
            run = partial(stages, to=name, start=before)
            with torch.no_grad():
                forward, _ = _timed(partial(run, value))
            training, value = _timed(partial(_trained, run, value))
            found.append(Times(forward, training))
            before = name
    stages.zero_grad()
    return found


def _trained(run: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
    """The output of a stage after its backward pass, without its graph."""
    output = run(value)
    if output.requires_grad:
        output.backward(torch.ones_like(output))
    return output.detach().requires_grad_(output.is_floating_point())


def _timed(run: Callable[[], Tensor]) -> tuple[float, Tensor]:
    started = time.perf_counter()
    value = run()
    value.flatten()[0].item()  # waits for the device
    return time.perf_counter() - started, value
