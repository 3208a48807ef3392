"""The images on which features are compared before any training."""

from dataclasses import dataclass

import torch
from torch import Tensor

from autotl.data.split import Split
from autotl.engine.bench import Bench

SEEN: tuple[Split, ...] = ("train", "early_stop")
LEAST, PER_CLASS, MOST = 1_000, 5, 5_000
"""Limits of the number of images: they rank cuts, and need not measure them precisely."""


@dataclass(frozen=True)
class Sample:
    """Some of the images that trials may learn from, with classes as balanced as possible."""

    shas: list[str]
    labels: Tensor
    """[N] int64."""
    units: Tensor
    """[N] int64, as in `Bench.units`."""

    @classmethod
    def of(cls, bench: Bench, seed: int, most: int = MOST) -> "Sample":
        """At most `most` images, the same for every backbone."""
        shas, labels = bench.shas(*SEEN), bench.labels(*SEEN).cpu()
        chosen = subset(labels, seed, most)
        return cls([shas[at] for at in chosen], labels[chosen], bench.units(*SEEN)[chosen])


def subset(labels: Tensor, seed: int, most: int = MOST) -> Tensor:
    """Sorted indices of at most `most` images, with classes as balanced as possible."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    shuffled = labels.cpu()[order]
    by_class = shuffled.argsort(stable=True)
    first = torch.searchsorted(shuffled[by_class], shuffled[by_class])
    turn = torch.empty_like(order)
    turn[by_class] = torch.arange(len(labels)) - first  # an image's place among those of its class
    count = min(most, max(LEAST, PER_CLASS * len(labels.unique())))
    return order[turn.argsort(stable=True)[:count]].sort().values
