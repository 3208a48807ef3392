"""The model: the network and head that the phases of a plan train."""

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import get_args

import torch
from torch import Tensor

from autotl.backbones.stages import Stages
from autotl.data.split import Split
from autotl.engine import feed
from autotl.engine.bench import Bench
from autotl.engine.features import batch_size, normalise, on_device, seen_by
from autotl.engine.head_kinds import AnyHead
from autotl.engine.observe import Observer
from autotl.engine.views import averaged, view
from autotl.plan import StoredPooling, TransferPlan


class Model:
    """A backbone's stages up to the cut, with a head once a phase has made one."""

    def __init__(self, plan: TransferPlan, bench: Bench, observer: Observer) -> None:
        self.plan = plan
        self.bench = bench
        self.observer = observer
        self.head: AnyHead | None = None
        self._changes: dict[str, str] = {}

    @cached_property
    def stages(self) -> Stages:
        """The stages on the bench's device, with the plan's initial weights until a phase trains them."""
        stages = self.bench.catalogue.build(self.plan.network).cut(self.plan.cut)
        return on_device(stages, self.bench.device)

    @property
    def trained(self) -> bool:
        """Whether a phase has trained any stage."""
        return bool(self._changes)

    def change(self, frozen: str | None, how: str) -> None:
        """Record that a phase, named `how`, trains the stages after `frozen`."""
        for name in self.stages.after(frozen):
            self._changes[name] = f"{self._changes.get(name, '')}/{how}"

    def changed(self, upto: str) -> str:
        """The phases that trained the stages up to and including `upto`, as a string; empty if none did."""
        names = self.stages.names
        return "".join(self._changes.get(name, "") for name in names[: names.index(upto) + 1])

    def features(self, *splits: Split) -> Tensor:
        """The pooled features of the images of these splits, [N, D] float32 on the device."""
        shas, plan = self.bench.shas(*splits), self.plan
        if not self.trained and plan.head.pooling in get_args(StoredPooling):
            self.bench.features.fill(plan.network, shas, lambda done, total: self.observer.step())
            read = self.bench.features.read
            seen = (*plan.head.taps, plan.cut)
            return torch.cat([read(plan.network, stage, plan.head.pooling, shas) for stage in seen], 1)
        return self._computed(splits, lambda seen: seen)

    def logits(self, *splits: Split) -> Tensor:
        """[N, C] for the images of these splits, in the data set's order, averaged over the plan's views."""
        return averaged([self.of_view(number, *splits) for number in range(self.plan.test_views)])

    def of_view(self, number: int, *splits: Split) -> Tensor:
        """The logits of one view of each image."""
        assert self.head is not None, "no phase has made a head yet"
        # The maps of a whole split could be too large for the memory, and only features of whole images are stored.
        if self.plan.head.kind == "conv" or number:
            return self._computed(splits, self.head, number)
        logits: Tensor = self.head(self.features(*splits))
        return logits

    def _computed(self, splits: Sequence[Split], use: Callable[[Tensor], Tensor], number: int = 0) -> Tensor:
        """`use` of what the head sees of a view of the images of these splits, from their pixels."""
        shas, plan = self.bench.shas(*splits), self.plan
        pixels = partial(self.bench.features.pixels.read, plan.input)
        stages = on_device(self.stages, self.bench.device)
        size = batch_size(plan.input, self.bench.device)
        batches = (shas[start : start + size] for start in range(0, len(shas), size))

        def see(images: Tensor) -> Tensor:
            return use(seen_by(plan.head, stages, normalise(view(images, number), plan.input)))

        with torch.no_grad():  # not inference mode: a method may use them in gradient descent
            images = feed.images(pixels, batches, self.bench.device)
            return torch.cat([self.bench.memory.in_parts(see, batch) for batch in images])
