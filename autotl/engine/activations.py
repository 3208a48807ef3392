"""Activations, the output of the frozen stages for each image, which training reads.

They are kept in memory and shared by all trials if they fit; otherwise they are computed for each batch. Both give
bit-identical numbers, because the frozen stages always get full batches of one size (unless a GPU's memory is too small
for such a batch).
"""

import math
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from autotl.contracts import Boundary, Mixed
from autotl.data.split import Split
from autotl.engine import feed, precision
from autotl.engine.draws import Draws, keys
from autotl.engine.features import batch_size, normalise
from autotl.engine.feed import to_device
from autotl.engine.memory import Memory
from autotl.engine.tools import Transform
from autotl.plan import Precision, digest

if TYPE_CHECKING:
    from autotl.engine.model import Model


def fits(stage: Boundary, images: int, dtype: Precision, memory: Memory) -> bool:
    """Whether the outputs of a stage for all images of a split that is trained on can be kept in memory.

    The rest is for the split that is evaluated, which is read alternately with this one.
    """
    return _bytes_of(stage, images, dtype) <= 0.8 * memory.room


def _bytes_of(stage: Boundary, images: int, dtype: Precision) -> int:
    return images * math.prod(stage.shape) * precision.DTYPES[dtype].itemsize


class Source:
    """The images of some splits as one phase reads them.

    With a `transform`, each epoch gets a new augmented view of every image, or one of `views` fixed ones in turn.
    """

    def __init__(
        self,
        model: "Model",
        frozen: str | None,
        splits: Sequence[Split],
        *,
        transform: Transform | None = None,
        views: int = 0,
    ) -> None:
        bench = self._bench = model.bench
        self._model = model
        self._frozen = frozen
        self._transform = transform
        self._views = views
        self._shas = bench.shas(*splits)
        self._keys = keys(self._shas).to(bench.device)
        self._pixels = partial(bench.features.pixels.read, model.plan.input)
        self._chunk = batch_size(model.plan.input, bench.device)
        self.labels = bench.labels(*splits)
        self.kept = self._can_be_kept()
        """Whether the values are read from memory; no longer once the memory was needed for something else."""
        self._key = self._identity() if self.kept else ""
        self._made: set[int] = set()
        # What images were mixed with, in the order in which they are read: partners, among all images, and own shares.
        self._mixed: list[tuple[Tensor, Tensor]] = []

    def __len__(self) -> int:
        return len(self._shas)

    def mixed(self, count: int) -> tuple[Tensor, Tensor]:
        """What the augmentation mixed the latest batch, of `count` images, with: the rows of the images' partners, [N]
        int64, and their own shares, [N] float32. Called once for each batch."""
        partners, shares = (torch.cat(part) for part in zip(*self._mixed, strict=True))
        self._mixed = [(partners[count:], shares[count:])]
        return partners[:count], shares[:count]

    @property
    def mixes(self) -> bool:
        """Whether the augmentation mixes images."""
        return self._transform is not None and self._transform.mixes

    def batches(self, rows: Tensor, steps: int, epoch: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """The images `rows`, [N] indices, in `steps` batches of equal size, as (values, labels).

        The values are float32; if nothing is frozen, they are the normalised images.
        """
        self._mixed.clear()
        view = 0 if self._transform is None else (epoch - 1) % self._views if self._views else epoch - 1
        order = to_device(rows, self.labels.device)
        values = self._values(rows.tensor_split(steps), order.tensor_split(steps), view)
        for value, labels in zip(values, self.labels[order].tensor_split(steps), strict=True):
            yield value.float(), labels

    def _values(self, batches: tuple[Tensor, ...], order: tuple[Tensor, ...], view: int) -> Iterator[Tensor]:
        """The values of each batch, which is given as indices on the CPU and on the device."""
        for number, on_device in enumerate(order):
            value = self._stored(on_device, view)
            if value is None:
                yield from self._computed_batches(batches[number:], view)
                return
            yield value

    def _stored(self, batch: Tensor, view: int) -> Tensor | None:
        """A batch of the values that are kept; None if they are not."""
        key, memory = f"{self._key}/{view}", self._bench.memory
        if view in self._made and key not in memory:  # computing all of them again would take the memory again
            self.kept = False
        if not self.kept:
            return None
        kept = memory.keep(key, self._bytes, lambda: next(self._computed([torch.arange(len(self))], view)))
        self._made.add(view)
        self.kept = kept is not None
        return None if kept is None else self._laid_out(kept[batch])

    def _computed_batches(self, batches: tuple[Tensor, ...], view: int) -> Iterator[Tensor]:
        # Frozen stages get full batches, regardless of the batch size of training.
        together = 1 if self._frozen is None else max(1, self._chunk // len(batches[0]))
        groups = [batches[first : first + together] for first in range(0, len(batches), together)]
        for group, values in zip(groups, self._computed(list(map(torch.cat, groups)), view), strict=True):
            yield from values.split(list(map(len, group)))

    def _computed(self, parts: Sequence[Tensor], view: int) -> Iterator[Tensor]:
        """The values of each part of the images in turn."""
        chunks = [rows.split(self._chunk) for rows in parts]
        shas = ([self._shas[row] for row in chunk.tolist()] for part in chunks for chunk in part)
        images = feed.images(self._pixels, shas, self._bench.device)
        for rows, part in zip(parts, chunks, strict=True):
            values: Tensor | None = None
            done = 0
            for chunk in part:
                value = self._laid_out(self._forward(self._transformed(next(images), chunk, view)))
                if values is None:
                    shape, form = (len(rows), *value.shape[1:]), self._memory_format(value)
                    values = torch.empty(shape, dtype=value.dtype, device=value.device, memory_format=form)
                values[done : done + len(chunk)] = value
                done += len(chunk)
                if len(part) > 1:
                    self._model.observer.step()
            assert values is not None, "a split without images"
            yield values

    def _transformed(self, images: Tensor, rows: Tensor, view: int) -> Tensor:
        """[N, 3, S, S] uint8, on the device, as the augmentation leaves them."""
        if self._transform is None:
            return images
        rows = to_device(rows, images.device)
        found = self._transform(images, Draws(self._model.plan.seed, view, self._keys[rows]))
        if isinstance(found, Mixed):
            self._mixed.append((rows[found.partners], found.shares))
            return found.images
        if self.mixes:
            self._mixed.append((rows, torch.ones(len(rows), device=rows.device)))
        return found

    @torch.no_grad()
    def _forward(self, images: Tensor) -> Tensor:
        plan = self._model.plan
        memory_format = precision.MEMORY_FORMATS[plan.memory_format]
        if self._frozen is None:
            return normalise(images, plan.input, memory_format)
        padded = torch.cat([images, images[-1:].expand(self._chunk - len(images), -1, -1, -1)])
        with precision.computing(plan.compute_dtype, self._bench.device):
            value = self._bench.memory.in_parts(
                lambda part: self._model.stages(normalise(part, plan.input, memory_format), to=self._frozen), padded
            )
        return value[: len(images)].to(precision.DTYPES[plan.boundary_dtype])

    def _laid_out(self, value: Tensor) -> Tensor:
        """The value in the plan's memory format, so that stored and newly computed values have the same layout."""
        return value.contiguous(memory_format=self._memory_format(value))

    def _memory_format(self, value: Tensor) -> torch.memory_format:
        """The plan's memory format for 4-dimensional values, otherwise contiguous."""
        return precision.MEMORY_FORMATS[self._model.plan.memory_format] if value.dim() == 4 else torch.contiguous_format

    def _can_be_kept(self) -> bool:
        if self._frozen is None or self.mixes or (self._transform is not None and not self._views):
            return False
        plan, views = self._model.plan, self._views if self._transform else 1
        return fits(self._stage, views * len(self), plan.boundary_dtype, self._bench.memory)

    @cached_property
    def _bytes(self) -> int:
        """Bytes of one view of all images at the end of the frozen stages."""
        return _bytes_of(self._stage, len(self), self._model.plan.boundary_dtype)

    @property
    def _stage(self) -> Boundary:
        """The last frozen stage."""
        plan = self._model.plan
        assert self._frozen is not None
        return self._bench.catalogue.info(plan.backbone, plan.input).stage(self._frozen)

    def _identity(self) -> str:
        plan = self._model.plan
        assert self._frozen is not None
        transformed = [plan.augmentation.model_dump(mode="json"), plan.seed] if self._transform else None
        return digest(
            {
                "network": [plan.backbone, plan.weights, plan.input.model_dump(mode="json"), self._frozen],
                "precision": [plan.compute_dtype, plan.boundary_dtype, plan.memory_format],
                "changed": self._model.changed(self._frozen),
                "transformed": transformed,
                "images": self._shas,
            }
        )
