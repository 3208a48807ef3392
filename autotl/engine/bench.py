"""The bench: the data set and the stores with which all plans are trained."""

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from autotl.backbones.catalogue import Catalogue
from autotl.data.dataset import Dataset, open_dataset
from autotl.data.listing import BY_NAME, Columns
from autotl.data.pixels import PixelStore, Progress
from autotl.data.split import OPEN, SPLITS, Split
from autotl.engine import metrics
from autotl.engine.features import FeatureStore
from autotl.engine.scale import Scale
from autotl.plan import Input, NearCopies, Network, TransferPlan


class Bench:
    """A data set with the feature store of its images, the memory of the device, and what plans are measured by."""

    def __init__(self, dataset: Dataset, features: FeatureStore, metric: str = metrics.ALWAYS) -> None:
        """`metric`: the name of the metric that selects.

        Raises: PluginError if it is unknown.
        """
        self.dataset = dataset
        self.features = features
        self.catalogue = features.catalogue
        self.device = features.device
        self.memory = features.memory
        self.metrics = metrics.chosen(self.catalogue.host, metric)
        """The one that selects comes first."""
        self.pass_seconds: dict[Network, float] = {}
        """Measured seconds for one image through a frozen backbone."""
        features.pixels.locate = dataset.locate
        self._divisions = [self]
        self._further = dataset.divisions()

    def of_division(self, division: int) -> "Bench":
        """The bench with another division of the images outside the test split, as in `DataRef`."""
        while len(self._divisions) <= division:
            divided = copy.copy(self)
            divided.dataset = next(self._further)
            self._divisions.append(divided)
        return self._divisions[division]

    @classmethod
    def open(
        cls,
        data: Path,
        inputs: Sequence[Input],
        catalogue: Catalogue,
        device: str,
        *,
        seed: int,
        columns: Columns = BY_NAME,
        previous: Mapping[str, Split] | None = None,
        near_copies: NearCopies = "together",
        metric: str = metrics.ALWAYS,
        progress: Progress | None = None,
        note: Callable[[str], None] = lambda text: None,
    ) -> "Bench":
        """The images of `data` with their pixels for `inputs`, as `open_dataset` reads them.

        `note` is called with what a user should know about the stores, such as that one is damaged.

        Raises: DataError; PluginError as in `Bench`.
        """
        pixels = PixelStore(catalogue.cache_dir, note)
        dataset = open_dataset(
            data,
            seed=seed,
            inputs=inputs,
            pixels=pixels,
            columns=columns,
            previous=previous,
            near_copies=near_copies,
            progress=progress,
        )
        return cls(dataset, FeatureStore(catalogue.cache_dir, catalogue, pixels, device), metric)

    def shas(self, *splits: Split) -> list[str]:
        return self.dataset.shas(*splits)

    @cached_property
    def scale(self) -> Scale:
        """The scale of the metric that selects.

        Raises: PluginError.
        """
        return metrics.scale_of(self.metrics[0])

    @property
    def refit_factor(self) -> float:
        """Images outside the test split divided by those of `train`: how much longer a refit takes."""
        return len(self.shas(*OPEN)) / len(self.shas("train"))

    def labels(self, *splits: Split) -> Tensor:
        """[N] int64, on the device."""
        return torch.from_numpy(self.dataset.labels(*splits)).to(self.device)

    def units(self, *splits: Split) -> Tensor:
        """[N] int64, on the CPU: images with the same number are copies of each other, or of one group."""
        return torch.from_numpy(self.dataset.units(*splits))

    def decode(self, input: Input, progress: Progress | None = None) -> None:
        """Decode every image that the pixel store does not have for `input`.

        Raises: DataError for a file that has changed since the data set was opened.
        """
        self.features.pixels.add(self.dataset.files(*SPLITS), [input], progress)

    def judges(self, plan: TransferPlan) -> list[Split]:
        """The splits on which a training of this plan is evaluated, first the one that chooses the epoch."""
        held_out: tuple[Split, ...] = ("early_stop", "val")
        return [split for split in held_out if split not in plan.train_on and self.shas(split)]
