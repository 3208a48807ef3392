"""Metrics by name, each with an interval."""

import math
from collections.abc import Callable
from dataclasses import dataclass

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


def balanced_accuracy(labels: np.ndarray, predicted: np.ndarray) -> float:
    """The mean over classes of the share of their images that were recognised."""
    right = np.bincount(labels, weights=labels == predicted)
    count = np.bincount(labels)
    return float((right[count > 0] / count[count > 0]).mean())


def macro_f1(labels: np.ndarray, predicted: np.ndarray) -> float:
    """The mean over classes of the harmonic mean of precision and recall."""
    classes = max(labels.max(), predicted.max()) + 1
    both = np.bincount(labels[labels == predicted], minlength=classes)
    either = np.bincount(labels, minlength=classes) + np.bincount(predicted, minlength=classes)
    return float((2 * both[either > 0] / either[either > 0]).mean())


METRICS: dict[str, Predictor] = {
    "accuracy": accuracy,
    "balanced-accuracy": balanced_accuracy,
    "macro-f1": macro_f1,
}


def score(metric: str, labels: np.ndarray, predicted: np.ndarray) -> Score:
    """labels, predicted: [N] class indices. Wilson's interval for accuracy; bootstrap for the others.

    Where few images are wrong, a bootstrap sees too little of what might be: no end of its interval is nearer than
    that of Wilson's, for a mean over classes knows no more than all images together.
    """
    value, share, n = METRICS[metric](labels, predicted), accuracy(labels, predicted), len(labels)
    low, high = wilson(share, n)
    if metric != "accuracy":
        lowest, highest = _bootstrap(METRICS[metric], labels, predicted)
        low, high = max(0.0, min(lowest, value + low - share)), min(1.0, max(highest, value + high - share))
    return Score(metric, value, low, high, n)


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


def _bootstrap(metric: Predictor, labels: np.ndarray, predicted: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of the metric over images drawn with replacement (Efron 1979)."""
    draw = np.random.default_rng(0)
    values = []
    for _ in range(RESAMPLES):
        row = draw.integers(len(labels), size=len(labels))
        values.append(metric(labels[row], predicted[row]))
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
