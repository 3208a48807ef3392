"""Seeds: the random numbers of a training depend only on the plan's seed, the phase and the epoch."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from autotl.engine.device import kind


def seed_of(*parts: int) -> int:
    """A seed of 63 bits that depends on all `parts`."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


def generator(*parts: int) -> torch.Generator:
    """A generator on the CPU, seeded with `parts`."""
    return torch.Generator().manual_seed(seed_of(*parts))


@contextmanager
def seeded(device: str, *parts: int) -> Iterator[None]:
    """In this context torch's global random numbers, such as dropout's, depend only on `parts`."""
    seed = seed_of(*parts)
    devices = [torch.device(device)] if kind(device) == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        if kind(device) == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        elif kind(device) == "mps":
            torch.mps.manual_seed(seed)
        yield
