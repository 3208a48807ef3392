"""The feature store: pooled features at every boundary of a backbone, computed once and shared by all trials."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from autotl.backbones.catalogue import Catalogue
from autotl.backbones.stages import Stages
from autotl.contracts import BackboneInfo, Boundary
from autotl.data.pixels import PixelStore
from autotl.data.rows import FORMAT as ROWS
from autotl.data.rows import DamagedRows, RowStore
from autotl.engine import feed
from autotl.engine.device import kind, of_kind
from autotl.engine.memory import Memory
from autotl.plan import Head, Input, Network, Pooling, digest
from autotl.registry import Owner

FORMAT = 2
"""Increase it when the content of a row changes: stored rows of other formats are not read."""

SAME = 1e-3
"""How much recomputed features may differ, as a share of their norm: the last digits depend on the batch and the
processor."""

BATCH_PIXELS = {"cpu": 2**20, "cuda": 2**24}
"""Pixels per batch through a backbone: small enough for a CPU's caches, large enough for a GPU."""

GEM_POWER, GEM_LEAST = 3.0, 1e-6
"""The power of the generalised mean, and the value to which smaller ones are raised, as in timm."""


class FeatureStore:
    """Features of images by SHA-256, for each backbone with its weights.

    A row has the features of every boundary with every pooling that it allows, so that one pass over the images is
    enough for every cut. `computed` counts the images that went through a backbone.
    """

    def __init__(self, cache_dir: Path, catalogue: Catalogue, pixels: PixelStore, device: str) -> None:
        self.cache_dir = cache_dir
        self.catalogue = catalogue
        self.pixels = pixels
        self.device = device
        self.computed = 0
        self.memory = Memory(device, cache_dir)
        self._stores: dict[str, RowStore] = {}
        self._tried_out: set[Network] = set()

    def fill(
        self,
        network: Network,
        shas: Sequence[str],
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Compute missing features of the images `shas`, whose pixels must be in the pixel store.

        `progress(done, total)` is called after every batch.
        """
        if not shas or (network in self._tried_out and not self.missing(network, shas)):
            return
        extract = self._extractor(network)
        if network not in self._tried_out:
            self._compare(network, shas, extract)
        rows = self._rows(network)  # another one, if building the network showed that the facts about it are outdated
        missing = rows.missing(shas)
        batch = batch_size(network.input, self.device)
        pixels = partial(self.pixels.read, network.input)
        batches = [missing[start : start + batch] for start in range(0, len(missing), batch)]

        def computed() -> Iterator[Tensor]:
            for images in feed.images(pixels, batches, self.device):
                # The last batch is padded, so that an image's features do not depend on which other images were
                # missing. Only a batch that is too large for a GPU's memory is split.
                full = images if len(images) == batch else _padded(images, batch)
                yield extract(full)[: len(images)]

        def write(keys: Sequence[str], features: np.ndarray) -> None:
            check(features, network, self.catalogue)
            rows.append(keys, features)

        done = 0
        with ThreadPoolExecutor(1) as writer:  # writes one batch while the next is computed
            written: Future[None] | None = None
            for keys, features in zip(batches, feed.results(computed(), self.device), strict=True):
                if written:
                    written.result()
                written = writer.submit(write, keys, features.numpy())
                self.computed += len(keys)
                done += len(keys)
                if progress:
                    progress(done, len(missing))
            if written:
                written.result()

    def try_out(self, network: Network, shas: Sequence[str]) -> None:
        """Run a backbone on one of the images `shas`, if possible on one with stored features, and keep nothing.

        If the stored features differ from the new ones, all stored features are deleted.

        Raises: WeightsError, PluginError or TrainingError if the backbone cannot be used.
        """
        self._compare(network, shas, self._extractor(network))

    def _compare(self, network: Network, shas: Sequence[str], extract: Callable[[Tensor], Tensor]) -> None:
        """As `try_out`, with the network that `extract` runs."""
        rows = self._rows(network)
        rows.refresh()
        sha = next((sha for sha in shas if sha in rows), shas[0])
        image = torch.from_numpy(self.pixels.read(network.input, [sha])).to(self.device)
        features = extract(image).cpu().numpy()
        check(features, network, self.catalogue)
        found = features[0]
        if sha in rows and not self._alike(network, found, self._read(network, [sha])[0]):
            self.pixels.note(
                f"Warning: {network.backbone} gives other features than the stored ones. All are computed again."
            )
            rows.clear()
        self._tried_out.add(network)

    def _alike(self, network: Network, one: np.ndarray, other: np.ndarray) -> bool:
        """Whether two rows are equal except for rounding, at each boundary."""
        stages = self.catalogue.info(network.backbone, network.input).stages
        ends = np.cumsum([stage.channels * len(stage.poolings) for stage in stages])[:-1]
        parts = zip(np.split(one, ends), np.split(other, ends), strict=True)
        return all(np.linalg.norm(a - b) <= SAME * np.linalg.norm(a) for a, b in parts)

    def open(self, network: Network) -> None:
        """Open the store of a backbone's features, so that it counts as in use."""
        self._rows(network)

    def missing(self, network: Network, shas: Sequence[str]) -> list[str]:
        """Those of the images `shas` that have no stored features."""
        return self._rows(network).missing(shas)

    def read(self, network: Network, stage: str, pooling: Pooling, shas: Sequence[str]) -> Tensor:
        """Pooled features at the end of a stage, [N, D] float32 on the store's device; missing ones are computed."""
        self.fill(network, shas)
        columns = _columns(self.catalogue.info(network.backbone, network.input))[stage, pooling]
        return torch.from_numpy(self._read(network, shas, columns)).to(self.device)

    def _read(self, network: Network, shas: Sequence[str], columns: slice | None = None) -> np.ndarray:
        """Stored rows, [N, D]; damaged ones are computed again."""
        rows = self._rows(network)
        try:
            return rows.read(shas, columns)
        except DamagedRows as damaged:
            self.pixels.note(damaged.note)
            self.fill(network, shas)
            return rows.read(shas, columns)

    def _extractor(self, network: Network) -> Callable[[Tensor], Tensor]:
        return extractor(self.catalogue.build(network), network, self.catalogue, self.memory)

    def _rows(self, network: Network) -> RowStore:
        facts = self.catalogue.facts(network.backbone, network.input)
        width = _width(self.catalogue.info(network.backbone, network.input))
        key = digest(
            {
                "backbone": network.backbone,
                "weights": network.weights,
                "requires": self.catalogue.requires(network.backbone),
                "code": [facts.graph, facts.source],
                "input": network.input.model_dump(),
                "pixels": self.pixels.rows(network.input).folder.name,
                "format": [FORMAT, ROWS],
                "dtype": "float32",
                "device": kind(self.device),
                "batch": batch_size(network.input, self.device),
            }
        )
        if key not in self._stores:
            self._stores[key] = RowStore(self.cache_dir / "features" / key, (width,), np.float32)
        return self._stores[key]


def extractor(stages: Stages, network: Network, catalogue: Catalogue, memory: Memory) -> Callable[[Tensor], Tensor]:
    """The function that computes rows of images: [N, 3, S, S] uint8 → [N, sum of D] float32, both on the device.

    It does not wait for a GPU. A batch that is too large for its memory is split. `check` the rows before they are
    used.
    """
    info, owner = catalogue.info(network.backbone, network.input), catalogue.owner(network.backbone)
    ready = on_device(stages, memory.device)

    def features(images: Tensor) -> Tensor:
        return every_feature(ready, info, normalise(images, network.input), owner)

    return partial(memory.in_parts, features)


def check(features: np.ndarray, network: Network, catalogue: Catalogue) -> None:
    """Raises: PluginError if features of a network, [N, D], are not finite."""
    if not np.isfinite(features).all():
        how = "returns values that are not finite. Use --backbones without it."
        raise catalogue.owner(network.backbone).fault(f"Backbone '{network.backbone}'", how)


@torch.inference_mode()
def every_feature(stages: Stages, info: BackboneInfo, images: Tensor, owner: Owner) -> Tensor:
    """The features of every boundary with every pooling, in the order of `_columns`: normalised images → [N, sum of D].

    Raises: PluginError, naming the `owner`, if the network fails, or returns values that do not fit its stages.
    """
    with owner.answers_for(f"Backbone '{info.name}'", "fails on images"):
        values = [
            pool(value, boundary, pooling)
            for (boundary, value), stage in zip(stages.walk(images), info.stages, strict=True)
            for pooling in stage.poolings
        ]
    features = torch.cat(values, dim=1)
    width = _width(info)
    if features.shape[1] != width:
        how = f"returns {features.shape[1]} features per image, but the stages that were traced have {width}."
        raise owner.fault(f"Backbone '{info.name}'", how)
    return features


def _padded(images: Tensor, batch: int) -> Tensor:
    """`batch` images: these and repetitions of the last."""
    return torch.cat([images, images[-1:].expand(batch - len(images), -1, -1, -1)])


def batch_size(preparation: Input, device: str) -> int:
    """Images per batch through a backbone: a power of two from 8 to 64, on a GPU to 1,024."""
    pixels = of_kind(BATCH_PIXELS, device)
    fitting = max(8, min(pixels // preparation.size**2, pixels // 2**14))
    return 1 << (fitting.bit_length() - 1)


def on_device(stages: Stages, device: str) -> Stages:
    """The stages in evaluation mode on the device, with weights in the layout in which convolutions are fastest."""
    return stages.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def normalise(images: Tensor, preparation: Input, memory_format: torch.memory_format = torch.channels_last) -> Tensor:
    """[N, 3, S, S] uint8 → float32 in this memory format, as the backbone's training data was prepared."""
    mean, std = _by_channel(preparation.mean, images.device), _by_channel(preparation.std, images.device)
    return ((images.float() / 255 - mean) / std).contiguous(memory_format=memory_format)


@cache
def _by_channel(values: tuple[float, float, float], device: torch.device) -> Tensor:
    """[1, 3, 1, 1] on the device, copied once: a copy per batch would wait for the device's computation."""
    with torch.inference_mode(False):
        return torch.tensor(values, device=device).view(1, 3, 1, 1)


def seen_by(head: Head, stages: Stages, images: Tensor) -> Tensor:
    """What a head on the last boundary sees of normalised images: [N, 3, S, S] → as `seen_at`."""
    seen = (*head.taps, stages.names[-1])
    return torch.cat(
        [seen_at(boundary, value, head) for boundary, value in stages.walk(images) if boundary.name in seen], 1
    )


def seen_at(boundary: Boundary, value: Tensor, head: Head) -> Tensor:
    """What a head sees of a boundary's value: pooled features [N, D], or the map [N, C, H, W] if it is `conv`."""
    if head.kind == "conv":
        return value if boundary.layout == "NCHW" else value.movedim(-1, 1)
    return pool(value, boundary, head.pooling)


def pool(value: Tensor, boundary: Boundary, pooling: Pooling) -> Tensor:
    """A boundary's value, with batch → [N, D]. Prefix tokens are used only by `token`."""
    if boundary.layout == "tokens":
        if pooling == "token":
            return value[:, 0]
        value, places = value[:, boundary.prefix_tokens :], [1]
    else:
        places = [2, 3] if boundary.layout == "NCHW" else [1, 2]
    return pooled(value, places, pooling)


def pooled(value: Tensor, places: list[int], pooling: Pooling) -> Tensor:
    """A value, with batch, pooled over the dimensions `places`."""
    match pooling:
        case "avg":
            return value.mean(places)
        case "max":
            return value.amax(places)
        case "gem":
            return value.clamp(min=GEM_LEAST).pow(GEM_POWER).mean(places).pow(1 / GEM_POWER)
        case "flatten":
            return value.flatten(1)
        case _:
            raise ValueError(f"'{pooling}' does not pool positions")


def _width(info: BackboneInfo) -> int:
    """The number of columns of a row."""
    return max(columns.stop for columns in _columns(info).values())


def _columns(info: BackboneInfo) -> dict[tuple[str, Pooling], slice]:
    """The columns of a row for each stage and pooling."""
    columns = {}
    start = 0
    for stage in info.stages:
        for pooling in stage.poolings:
            columns[stage.name, pooling] = slice(start, start + stage.channels)
            start += stage.channels
    return columns
