"""Metrics by name, each with an interval."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

Predictor = Callable[[np.ndarray, np.ndarray], float]
RESAMPLES = 2_000
Z = 1.959964  # two-sided 95 %


@dataclass(frozen=True)
class Score:
    """A metric's value on some images and its 95 % interval, all in [0, 1]."""

    metric: str
    value: float
    low: float
    high: float
    images: int


def accuracy(labels: np.ndarray, predicted: np.ndarray) -> float:
    return float((labels == predicted).mean())


class Counts(NamedTuple):
    """How many images of each class there are, each [..., C]: that have its label, that are given it, that are both."""

    labelled: np.ndarray
    given: np.ndarray
    both: np.ndarray


@dataclass(frozen=True)
class ClassMean:
    """A metric that is a mean over classes of what follows from one share of a class's images."""

    whole: Callable[[Counts], np.ndarray]
    """The images that the share is of; it counts those of them that are `both`."""
    of_share: Callable[[Any], Any]

    def __call__(self, labels: np.ndarray, predicted: np.ndarray) -> float:
        return float(self.mean(_counts(labels, predicted)))

    def mean(self, counts: Counts) -> np.ndarray:
        """Over the classes that any image has or is given."""
        whole = self.whole(counts)
        return self.of_share(counts.both / np.maximum(whole, 1)).sum(-1) / (whole > 0).sum(-1)

    def interval(self, labels: np.ndarray, predicted: np.ndarray) -> tuple[float, float]:
        """The middle 95 % over images drawn with replacement within each class (Efron 1979), or wider.

        Where few images of a class are wrong, such draws see too little of what might be. So no end is nearer to the
        value than the ends of Wilson's intervals of all classes together, their distances added in squares (Zou and
        Donner 2008), nor than that of the accuracy: a mean over classes knows no more than all images together.
        """
        counts, share = _counts(labels, predicted), accuracy(labels, predicted)
        value, drawn = float(self.mean(counts)), np.quantile(self.mean(_redrawn(labels, predicted)), [0.025, 0.975])
        low, high = (
            max(sign * (float(drawn[end]) - value), self._together(counts, end), sign * (all_images - share))
            for end, (sign, all_images) in enumerate(zip((-1, 1), wilson(share, len(labels)), strict=True))
        )
        return max(0.0, value - low), min(1.0, value + high)

    def _together(self, counts: Counts, end: int) -> float:
        """How far the end of the interval is from the mean, by Wilson's interval of each class."""
        whole = self.whole(counts)
        shares = [(both / of, wilson(both / of, of)[end]) for both, of in zip(counts.both, whole, strict=True) if of]
        distances = [self.of_share(bound) - self.of_share(share) for share, bound in shares]
        return math.sqrt(sum(distance**2 for distance in distances)) / len(distances)


balanced_accuracy = ClassMean(lambda counts: counts.labelled, lambda share: share)
"""The mean over classes of the share of their images that were recognised."""
macro_f1 = ClassMean(lambda counts: counts.labelled + counts.given - counts.both, lambda share: 2 * share / (1 + share))
"""The mean over classes of the harmonic mean of precision and recall."""
METRICS: dict[str, Predictor] = {
    "accuracy": accuracy,
    "balanced-accuracy": balanced_accuracy,
    "macro-f1": macro_f1,
}


def score(name: str, labels: np.ndarray, predicted: np.ndarray) -> Score:
    """labels, predicted: [N] class indices. Wilson's interval for accuracy; `ClassMean.interval` for the others."""
    metric, n = METRICS[name], len(labels)
    value = metric(labels, predicted)
    low, high = metric.interval(labels, predicted) if isinstance(metric, ClassMean) else wilson(value, n)
    return Score(name, value, low, high, n)


def wilson(share: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a share of `n` trials (Wilson 1927)."""
    centre = share + Z * Z / (2 * n)
    half = Z * math.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    return max(0.0, (centre - half) / (1 + Z * Z / n)), min(1.0, (centre + half) / (1 + Z * Z / n))


def paired_difference(right: np.ndarray, other: np.ndarray) -> tuple[float, float, float]:
    """Difference in accuracy of two classifiers on the same images, with its 95 % interval.

    right, other: [N] booleans, whether each classifier was right on each image. The interval is that of
    Agresti and Min (2005), which adds half an image to each of the four outcomes, so that it holds for
    few images too.
    """
    n = len(right)
    ours, theirs = float((right & ~other).sum()), float((other & ~right).sum())
    middle = (ours - theirs) / (n + 2)
    half = Z * math.sqrt((ours + theirs + 1) / (n + 2) - middle**2) / math.sqrt(n + 2)
    return (ours - theirs) / n, max(-1.0, middle - half), min(1.0, middle + half)


def log_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative log-likelihood in nats. logits: [N, C], labels: [N]."""
    shifted = logits - logits.max(1, keepdims=True)
    normaliser = np.log(np.exp(shifted).sum(1))
    return float((normaliser - shifted[np.arange(len(labels)), labels]).mean())


def _counts(labels: np.ndarray, predicted: np.ndarray) -> Counts:
    classes = max(labels.max(), predicted.max()) + 1
    return Counts(*(np.bincount(of, minlength=classes) for of in (labels, predicted, labels[labels == predicted])))


def _redrawn(labels: np.ndarray, predicted: np.ndarray) -> Counts:
    """What there is of each class when its images are drawn with replacement from its own, [RESAMPLES, C]."""
    draw = np.random.default_rng(0)
    labelled = _counts(labels, predicted).labelled
    given, both = (np.zeros((RESAMPLES, len(labelled)), int) for _ in range(2))
    for label in np.flatnonzero(labelled):
        guesses, images = np.unique(predicted[labels == label], return_counts=True)
        drawn = draw.multinomial(labelled[label], images / labelled[label], RESAMPLES)
        given[:, guesses] += drawn
        both[:, label] = drawn[:, guesses == label].sum(1)
    return Counts(np.broadcast_to(labelled, given.shape), given, both)
