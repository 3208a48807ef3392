"""The metrics that plugins registered: their values on some images, with 95 % intervals."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import softmax

from autotl.contracts import Metric
from autotl.engine.intervals import RESAMPLES, bootstrap
from autotl.engine.scale import Scale
from autotl.errors import DataError, PluginError, TrainingError
from autotl.host import Host
from autotl.plan import ClassWeights
from autotl.registry import Entry

ALWAYS = "accuracy"
"""The metric that every training is measured by, besides the one that selects."""
ROUNDING = 1e-9
"""How far a value may be outside its interval by rounding."""


@dataclass(frozen=True)
class Score:
    """A metric's value on some images and its 95 % interval."""

    metric: str
    value: float
    low: float | None
    """None, as `high` is: there is no interval."""
    high: float | None
    images: int
    units: int
    """Groups of images, such as copies, that are as informative as one image; see `design_effect`."""


def chosen(host: Host, name: str) -> list[Entry]:
    """The metrics of a training: first the named one, which selects, then `ALWAYS`.

    Raises: PluginError for an unknown name.
    """
    others = [host.metrics[ALWAYS]] if ALWAYS in host.metrics and name != ALWAYS else []
    return [host.metrics[name], *others]


def scale_of(entry: Entry) -> Scale:
    """The scale of a metric.

    Raises: PluginError if the plugin's metric cannot be loaded, or does not say which values are better.
    """
    with entry.owner.answers_for(f"Metric '{entry.name}'", "cannot be used"):
        metric: Metric = entry.item
        return Scale(greater_is_better=metric.greater_is_better, percent=getattr(metric, "percent", False))


def class_weights_of(entry: Entry) -> ClassWeights:
    """The class weights that suit a metric.

    Raises: PluginError.
    """
    with entry.owner.answers_for(f"Metric '{entry.name}'", "cannot be used"):
        weights: ClassWeights = getattr(entry.item, "class_weights", "none")
        if weights not in ("none", "balanced"):
            raise ValueError(f"its class_weights must be none or balanced, not {weights!r}")
        return weights


def probabilities(logits: np.ndarray) -> np.ndarray:
    """[N, C] → [N, C] float64; rows sum to 1.

    Raises: TrainingError for logits that are not finite.
    """
    if not np.isfinite(logits).all():
        raise TrainingError("The trained model does not give finite numbers for these images.")
    return softmax(logits.astype(np.float64), axis=1)


def measure(entry: Entry, labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The value of a metric. labels: [N] int64; probabilities: [N, C] float64.

    Raises: PluginError, naming the plugin, if it fails or returns anything but a finite number.
    """
    with entry.owner.answers_for(f"Metric '{entry.name}'"):
        return _value(entry.item, labels, probabilities)


def _value(metric: Metric, labels: np.ndarray, probabilities: np.ndarray) -> float:
    value = float(metric(labels, probabilities))
    if not math.isfinite(value):
        raise ValueError(f"it returned {value}, not a finite number")
    return value


def require_defined(entry: Entry, split: str, counts: Sequence[int]) -> None:
    """Check, before anything is trained, that a metric can be computed for so many images of each class of a split.

    Raises: DataError if not; PluginError if the metric fails with anything but a ValueError.
    """
    try:
        measure(entry, *_invented(counts))
    except PluginError as error:
        if isinstance(error.__cause__, ValueError):
            raise DataError(
                f"Metric '{entry.name}' of {entry.owner} is not defined for the images of {split}: "
                f"{error.__cause__}. Use another metric; list them: autotl plugins metrics"
            ) from error
        raise


def interval_seconds(entry: Entry, counts: Sequence[int]) -> float:
    """About how long the interval of a metric takes for so many images of each class."""
    images = _invented(counts)
    began = time.perf_counter()
    measure(entry, *images)
    seconds = time.perf_counter() - began
    return seconds if hasattr(entry.item, "interval") else RESAMPLES * seconds


def _invented(counts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and random probabilities."""
    labels = np.repeat(np.arange(len(counts)), counts)
    drawn = np.random.default_rng(0).random((len(labels), len(counts))) + 1e-3
    return labels, drawn / drawn.sum(1, keepdims=True)


def score(entry: Entry, labels: np.ndarray, probabilities: np.ndarray, units: np.ndarray) -> Score:
    """A metric with its interval: the metric's own if it has a method for it, otherwise that of `bootstrap`.

    labels, probabilities: as for `measure`. units: [N] the index of each image's unit, from 0. One unit says nothing
    about others, so it has no interval.
    """
    value, several = measure(entry, labels, probabilities), len(np.unique(units))
    with entry.owner.answers_for(f"Metric '{entry.name}'", "has no interval"):
        if several == 1:
            ends = None
        elif own := getattr(entry.item, "interval", None):
            ends = _sound(value, *own(labels, probabilities, units))
        else:
            ends = bootstrap(lambda rows: _value(entry.item, labels[rows], probabilities[rows]), units)
    low, high = (min(ends[0], value), max(ends[1], value)) if ends else (None, None)
    return Score(entry.name, value, low, high, len(labels), several)


def _sound(value: float, low: float, high: float) -> tuple[float, float]:
    """Raises: ValueError if this is no interval with the value in it."""
    if not low - ROUNDING <= value <= high + ROUNDING or math.isinf(high - low):
        raise ValueError(f"it returned {low} to {high} for the value {value}")
    return float(low), float(high)


def most_frequent(entry: Entry, labels: np.ndarray, classes: int) -> float:
    """The metric of a model that predicts the most frequent class for every image: with the classes' shares of these
    images as probabilities."""
    shares = np.bincount(labels, minlength=classes) / len(labels)
    return measure(entry, labels, np.tile(shares, (len(labels), 1)))


def by_class(labels: np.ndarray, predicted: np.ndarray) -> list[tuple[int, int, int]]:
    """For each class that any image has: its index, its number of images, and how many of them are correct."""
    images, right = (np.bincount(of) for of in (labels, labels[labels == predicted]))
    right = np.pad(right, (0, len(images) - len(right)))
    return [(at, int(images[at]), int(right[at])) for at in range(len(images)) if images[at]]


def log_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative log-likelihood in nats. logits: [N, C], labels: [N]."""
    shifted = logits - logits.max(1, keepdims=True)
    normaliser = np.log(np.exp(shifted).sum(1))
    return float((normaliser - shifted[np.arange(len(labels)), labels]).mean())
