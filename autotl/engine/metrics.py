"""Metrics by name, each with a 95 % interval."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtrit

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
    units: int
    """Groups of images, such as copies, that are as informative as one image; see `design_effect`."""


def accuracy(labels: np.ndarray, predicted: np.ndarray) -> float:
    return float((labels == predicted).mean())


class Counts(NamedTuple):
    """Images per class, each [..., C]: with its label, with its prediction, and with both."""

    labelled: np.ndarray
    given: np.ndarray
    both: np.ndarray


@dataclass(frozen=True)
class ClassMean:
    """A metric that is a mean over classes of a function of one share of a class's images."""

    whole: Callable[[Counts], np.ndarray]
    """The denominator of the share; its numerator is `both`."""
    of_share: Callable[[Any], Any]

    def __call__(self, labels: np.ndarray, predicted: np.ndarray) -> float:
        return float(self.mean(_counts(labels, predicted)))

    def mean(self, counts: Counts) -> np.ndarray:
        """The mean over the classes that any image has as label or prediction."""
        whole = self.whole(counts)
        return self.of_share(counts.both / np.maximum(whole, 1)).sum(-1) / (whole > 0).sum(-1)

    def interval(self, labels: np.ndarray, predicted: np.ndarray, units: np.ndarray) -> tuple[float, float]:
        """The 95 % bootstrap interval over images resampled within each class (Efron 1979), or wider.

        If few images of a class are wrong, the bootstrap is too narrow. So each end is at least as far from the value
        as two others: that of the classes' Wilson intervals, combined by the root of the sum of squared distances (Zou
        and Donner 2008), and that of the accuracy, because a mean over classes is no more certain than the accuracy of
        all images. If units have several images, the effective number of images of each class is smaller.
        """
        counts, right = _counts(labels, predicted), labels == predicted
        effect = design_effect(right, units, labels)
        value, drawn = float(self.mean(counts)), np.quantile(self.mean(_redrawn(labels, predicted)), [0.025, 0.975])
        low, high = (
            max(
                sign * (float(drawn[end]) - value) * math.sqrt(effect),
                self._together(counts, effect, end),
                sign * (all_images - right.mean()),
            )
            for end, (sign, all_images) in enumerate(zip((-1, 1), share_interval(right, units), strict=True))
        )
        return max(0.0, value - low), min(1.0, value + high)

    def _together(self, counts: Counts, effect: float, end: int) -> float:
        """Distance of the interval's end from the mean, combined from Wilson's interval of each class."""
        classes = zip(counts.both, self.whole(counts), strict=True)
        shares = [(both / of, wilson(both / of, of / effect)[end]) for both, of in classes if of]
        distances = [self.of_share(bound) - self.of_share(share) for share, bound in shares]
        return math.sqrt(sum(distance**2 for distance in distances)) / len(distances)


balanced_accuracy = ClassMean(lambda counts: counts.labelled, lambda share: share)
"""The mean recall of the classes."""
macro_f1 = ClassMean(lambda counts: counts.labelled + counts.given - counts.both, lambda share: 2 * share / (1 + share))
"""The mean over classes of F1, the harmonic mean of precision and recall."""
METRICS: dict[str, Predictor] = {
    "accuracy": accuracy,
    "balanced-accuracy": balanced_accuracy,
    "macro-f1": macro_f1,
}


def score(name: str, labels: np.ndarray, predicted: np.ndarray, units: np.ndarray) -> Score:
    """A metric with its interval: `share_interval` for accuracy, `ClassMean.interval` for the others.

    labels, predicted: [N] class indices. units: [N] the index of each image's unit, from 0.
    """
    metric, n, several = METRICS[name], len(labels), len(np.unique(units))
    value = metric(labels, predicted)
    if several == 1 < n:  # one unit says nothing about others
        low, high = 0.0, 1.0
    elif isinstance(metric, ClassMean):
        low, high = metric.interval(labels, predicted, units)
    else:
        low, high = share_interval(labels == predicted, units)
    return Score(name, value, low, high, n, several)


def most_frequent(name: str, labels: np.ndarray) -> float:
    """The metric of a model that always predicts the most frequent class of these images."""
    return METRICS[name](labels, np.full_like(labels, np.bincount(labels).argmax()))


def by_class(labels: np.ndarray, predicted: np.ndarray) -> list[tuple[int, int, int]]:
    """For each class that any image has: its index, its number of images, and how many of them are correct."""
    counts = _counts(labels, predicted)
    found = enumerate(zip(counts.labelled.tolist(), counts.both.tolist(), strict=True))
    return [(number, images, right) for number, (images, right) in found if images]


def share_interval(right: np.ndarray, units: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of the share of correct images; Wilson's interval if each image is its own unit."""
    return wilson(float(right.mean()), len(right) / design_effect(right, units))


def wilson(share: float, n: float) -> tuple[float, float]:
    """Wilson's 95 % score interval of a share of `n` trials (Wilson 1927)."""
    centre = share + Z * Z / (2 * n)
    half = Z * math.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    return max(0.0, (centre - half) / (1 + Z * Z / n)), min(1.0, (centre + half) / (1 + Z * Z / n))


def design_effect(values: np.ndarray, units: np.ndarray, classes: np.ndarray | None = None) -> float:
    """How many of these images are as informative as one independent image; 1 if each is its own unit, never less.

    values: [N], what is averaged over all images; with `classes`, [N], first over each class, then over the classes.

    The variance of the mean over units divided by that over images (Kish 1965). Deviations are from the mean of the
    other units of the same class. The effective number of images is reduced by Student's t for few units (Korn and
    Graubard 1998, Survey Methodology 24). Two corrections: few deviations say little about how similar the images of a
    unit are, so one more deviating image, with all of its unit, is added; and a few large units may all be right by
    chance, so the similarity within small units counts too.
    """
    values, classes = values.astype(float), np.zeros_like(units) if classes is None else classes
    units = np.unique(units, return_inverse=True)[1]
    weights = 1 / np.bincount(classes)[classes]
    sizes, squares = np.bincount(units, weights), np.bincount(units, weights**2)
    alone, together = squares.sum(), (sizes**2).sum()
    deviations = weights * (values - _mean_of_others(values, units, classes))
    own, whole = np.bincount(units, deviations**2), np.bincount(units, deviations) ** 2
    pairs = ((sizes**2 - squares) / sizes).sum()
    alike = ((whole - own) / sizes).sum() / pairs if pairs > 0 else 0.0
    variance = max(whole.sum(), own.sum() + alike * (together - alone))
    one = alone / len(values)
    effect = max(1.0, (variance + one * together / alone) / (own.sum() + one))
    few, many = (_students_t(weights.sum() ** 2 / each - 1) for each in (together, alone))
    return float(effect * (few / many) ** 2)


def _mean_of_others(values: np.ndarray, units: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """For each image the mean of its class over other units, [N]; over all images if there is no other unit."""
    cells = classes * (units.max() + 1) + units
    total, images = (
        np.bincount(classes, weights)[classes] - np.bincount(cells, weights)[cells]
        for weights in (values, np.ones_like(values))
    )
    return np.where(images > 0, total / np.maximum(images, 1), values.mean())


def _students_t(freedom: float) -> float:
    """The two-sided 95 % quantile for this many degrees of freedom, at least 0.05."""
    return float(stdtrit(max(0.05, freedom), 0.975))


def paired_difference(right: np.ndarray, other: np.ndarray, units: np.ndarray) -> tuple[float, float, float]:
    """Difference in accuracy of two classifiers on the same images, with its 95 % interval.

    right, other: [N] booleans, whether each classifier was right on each image. units: as in `score`. The interval is
    that of Agresti and Min (2005), which adds half an image to each of the four outcomes and so is valid for few
    images; if units have several images, it is computed for the effective number of images.
    """
    difference = right.astype(float) - other
    if len(np.unique(units)) == 1 < len(right):
        return float(difference.mean()), -1.0, 1.0
    effect = design_effect(difference, units)
    n, ours, theirs = (float(count) / effect for count in (len(right), (right & ~other).sum(), (other & ~right).sum()))
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
    """The counts after drawing the images of each class with replacement, [RESAMPLES, C]."""
    draw = np.random.default_rng(0)
    labelled = _counts(labels, predicted).labelled
    given, both = (np.zeros((RESAMPLES, len(labelled)), int) for _ in range(2))
    for label in np.flatnonzero(labelled):
        guesses, images = np.unique(predicted[labels == label], return_counts=True)
        drawn = draw.multinomial(labelled[label], images / labelled[label], RESAMPLES)
        given[:, guesses] += drawn
        both[:, label] = drawn[:, guesses == label].sum(1)
    return Counts(np.broadcast_to(labelled, given.shape), given, both)
