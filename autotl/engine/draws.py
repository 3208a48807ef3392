"""Counter-based random numbers: what an image's augmentation draws depends only on seed, view and image.

So it does not depend on the image's batch, or on whether it is computed now or was stored before.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_FIRST = -4658895280553007687  # 0xBF58476D1CE4E5B9
_SECOND = -7723592293110705685  # 0x94D049BB133111EB


def keys(shas: Sequence[str]) -> Tensor:
    """[N] int64: an image's number, from its hash."""
    return torch.tensor([int(sha[:15], 16) for sha in shas], dtype=torch.int64)


class Draws:
    """Uniform numbers for a batch of images; see `autotl.contracts.Draw`."""

    def __init__(self, seed: int, view: int, keys: Tensor) -> None:
        """keys: [N] int64, on the device where the numbers are needed."""
        start = torch.tensor([seed, view], dtype=torch.int64) * _GOLDEN  # on the CPU, to avoid waiting for a GPU
        self._state = _mix(keys + int(_mix(_mix(start[0]) + start[1])))
        self._drawn = 0

    def __call__(self, count: int) -> Tensor:
        """[N, count] float32 in [0, 1)."""
        places = torch.arange(self._drawn + 1, self._drawn + count + 1, device=self._state.device)
        self._drawn += count
        return (_shift(_mix(self._state[:, None] + places * _GOLDEN), 40)).float() / 2**24


def _mix(value: Tensor) -> Tensor:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): every bit of the result depends on every bit."""
    value = (value ^ _shift(value, 30)) * _FIRST
    value = (value ^ _shift(value, 27)) * _SECOND
    return value ^ _shift(value, 31)


def _shift(value: Tensor, bits: int) -> Tensor:
    """Logical shift to the right: int64 has only an arithmetic one."""
    return (value >> bits) & (2 ** (64 - bits) - 1)
