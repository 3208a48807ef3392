"""Metrics in which every class counts equally, and their intervals."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from autotl import design_effect, share_interval, wilson

RESAMPLES = 2_000


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
    greater_is_better: ClassVar = True
    percent: ClassVar = True
    class_weights: ClassVar = "balanced"

    def __call__(self, labels, probabilities):
        return float(self.mean(_counts(labels, probabilities.argmax(1))))

    def mean(self, counts: Counts) -> np.ndarray:
        """The mean over the classes that any image has as label or prediction."""
        whole = self.whole(counts)
        return self.of_share(counts.both / np.maximum(whole, 1)).sum(-1) / (whole > 0).sum(-1)

    def interval(self, labels, probabilities, units):
        """The 95 % bootstrap interval over images resampled within each class (Efron 1979), or wider.

        If few images of a class are wrong, the bootstrap is too narrow. So each end is at least as far from the value
        as two others: that of the classes' Wilson intervals, combined by the root of the sum of squared distances (Zou
        and Donner 2008), and that of the accuracy, because a mean over classes is no more certain than the accuracy of
        all images. If units have several images, the effective number of images of each class is smaller.
        """
        predicted = probabilities.argmax(1)
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


def balanced_accuracy() -> ClassMean:
    """The mean recall of the classes."""
    return ClassMean(lambda counts: counts.labelled, lambda share: share)


def macro_f1() -> ClassMean:
    """The mean over classes of F1, the harmonic mean of precision and recall."""
    return ClassMean(lambda counts: counts.labelled + counts.given - counts.both, lambda share: 2 * share / (1 + share))


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
