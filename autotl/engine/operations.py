"""Which operations on images their classes allow, measured on the features of a frozen backbone.

A digit that is mirrored may be another digit or none; a photo of a cat remains one. That a classifier does not
recognise changed images does not show it: the backbone may only be worse on them. So two classifiers, one for the
images as they are and one for the changed images, are compared with a single one for both. If the single one is less
accurate, images of different classes have become similar, or those of one class too different.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from autotl.contracts import BatchTransform, Draw
from autotl.engine import feed
from autotl.engine.bench import Bench
from autotl.engine.draws import Draws, keys
from autotl.engine.features import batch_size, normalise, on_device, seen_by
from autotl.engine.intervals import paired_difference
from autotl.engine.sample import Sample
from autotl.plan import Head, Network, Pooling
from autotl.registry import Entry

MOST = 500
"""Images to measure on: each operation costs a pass of them through the backbone."""
FOLDS = 5
PENALTIES = tuple(float(f"1e{power}") for power in range(-1, 5))
"""Of ridge regression on standardised features; each fit chooses one by its leave-one-out error."""


@dataclass(frozen=True)
class Effect:
    """The effect of an operation on held-out train images, as they are and changed."""

    operation: str
    apart: float
    """Accuracy of two classifiers, one for the images as they are and one for the changed images."""
    together: float
    """Accuracy of one classifier for both."""
    low: float
    high: float
    """The 95 % interval of the difference, for all operations together."""
    confused: tuple[str, str] | None
    """The class whose changed images the classifier for both most often takes for another one, and that other one."""

    @property
    def harmful(self) -> bool:
        """Whether the classifier for both is less accurate, beyond chance."""
        return self.high < 0


def said(effects: Sequence[Effect]) -> str:
    """Which operations the images allow, in one line."""
    allowed = [each.operation for each in effects if not each.harmful]
    harmful = [
        f"{each.operation}{' ({} as {})'.format(*map(repr, each.confused)) if each.confused else ''}"
        for each in effects
        if each.harmful
    ]
    if not harmful:
        return f"The images allow {', '.join(allowed)}."
    return f"Not searched, because they make classes harder to tell apart: {', '.join(harmful)}." + (
        f" The images allow {', '.join(allowed)}." if allowed else ""
    )


def operations_of(augmentations: Iterable[Entry]) -> dict[str, BatchTransform]:
    """The operations that augmentations want measured, by name. An error in one names its plugin.

    Raises: PluginError.
    """
    found: dict[str, BatchTransform] = {}
    for entry in augmentations:
        with entry.owner.answers_for(f"Augmentation '{entry.name}'"):
            for name, operation in getattr(entry.item, "operations", dict)().items():
                found.setdefault(name, _guarded(entry, name, operation))
    return found


def _guarded(entry: Entry, name: str, operation: BatchTransform) -> BatchTransform:
    def transform(images: Tensor, draw: Draw) -> Tensor:
        with entry.owner.answers_for(f"Operation '{name}' of augmentation '{entry.name}'"):
            changed = operation(images, draw)
            if not isinstance(changed, Tensor) or (changed.shape, changed.dtype) != (images.shape, images.dtype):
                raise TypeError("it must return images of the same shape and type")
            return changed

    return transform


def measured(
    bench: Bench,
    network: Network,
    cut: str,
    pooling: Pooling,
    operations: Mapping[str, BatchTransform],
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Effect]:
    """The effect of each operation, by features of the backbone at a cut.

    `progress(done, total)` is called after each operation, and may raise.
    """
    sample = Sample.of(bench, seed, MOST)
    shas, labels, units = sample.shas, sample.labels.numpy(), sample.units.numpy()
    plain = bench.features.read(network, cut, pooling, shas).cpu().numpy()
    folds = list(_folds(labels, units, seed))
    alone, found = _guessed([plain], labels, folds), []
    for done, (name, operation) in enumerate(operations.items(), 1):
        changed = _features(bench, network, cut, pooling, shas, operation, seed)
        apart = np.concatenate([*alone, *_guessed([changed], labels, folds)])
        both = np.concatenate(_guessed([plain, changed], labels, folds))
        twice = np.tile(labels, 2)
        right, other = both == twice, apart == twice
        _, low, high = paired_difference(right, other, np.tile(units, 2), len(operations))
        wrong = Counter(
            pair for pair in zip(labels.tolist(), both[len(labels) :].tolist(), strict=True) if pair[0] != pair[1]
        )
        pair = tuple(bench.dataset.classes[label] for label in max(wrong, key=wrong.__getitem__)) if wrong else None
        found.append(Effect(name, float(other.mean()), float(right.mean()), low, high, pair))
        progress(done, len(operations))
    return found


def _features(
    bench: Bench,
    network: Network,
    cut: str,
    pooling: Pooling,
    shas: Sequence[str],
    operation: BatchTransform,
    seed: int,
) -> np.ndarray:
    """The features of changed images, [N, D]."""
    stages = on_device(bench.catalogue.build(network).cut(cut), bench.device)
    size = batch_size(network.input, bench.device)
    batches = [shas[start : start + size] for start in range(0, len(shas), size)]

    def pixels(batch: Sequence[str]) -> np.ndarray:
        return bench.features.pixels.read(network.input, batch)

    def see(images: Tensor) -> Tensor:
        return seen_by(Head(pooling=pooling), stages, normalise(images, network.input))

    found = []
    with torch.no_grad():
        for batch, images in zip(batches, feed.images(pixels, batches, bench.device), strict=True):
            changed = operation(images, Draws(seed, 0, keys(batch).to(images.device)))
            assert isinstance(changed, Tensor)
            found.append(bench.memory.in_parts(see, changed).cpu())
    return torch.cat(found).numpy()


def _folds(labels: np.ndarray, units: np.ndarray, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The images to fit on and those that are held out, in turn; copies and groups are on one side."""
    from sklearn.model_selection import StratifiedGroupKFold

    folds = StratifiedGroupKFold(max(2, min(FOLDS, np.bincount(labels).max())), shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of classes with fewer images than folds
        yield from folds.split(labels, labels, units)


def _guessed(
    views: Sequence[np.ndarray], labels: np.ndarray, folds: Sequence[tuple[np.ndarray, np.ndarray]]
) -> list[np.ndarray]:
    """The predictions of a classifier that is fitted on all views of other images: for each view, [N]."""
    from sklearn.linear_model import RidgeClassifierCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    guesses = [np.empty_like(labels) for _ in views]
    for fitted, held_out in folds:
        classifier = make_pipeline(StandardScaler(), RidgeClassifierCV(PENALTIES))
        classifier.fit(np.concatenate([view[fitted] for view in views]), np.tile(labels[fitted], len(views)))
        for guess, view in zip(guesses, views, strict=True):
            guess[held_out] = classifier.predict(view[held_out])
    return guesses
