"""95 % confidence intervals of metrics and of differences, for images in units such as groups and copies."""

import math
from collections.abc import Callable
from contextlib import suppress

import numpy as np
from scipy.special import ndtr, ndtri, stdtrit

RESAMPLES = 1_000
Z = 1.959964  # two-sided 95 %


def share_interval(right: np.ndarray, units: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of the share of correct images; Wilson's interval if each image is its own unit.

    right: [N] booleans. units: [N] integers, the same for images of one group, which are less informative.
    """
    return wilson(float(right.mean()), len(right) / design_effect(right, units))


def wilson(share: float, n: float) -> tuple[float, float]:
    """Wilson's 95 % score interval of a share of `n` trials (Wilson 1927)."""
    centre = share + Z * Z / (2 * n)
    half = Z * math.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    return max(0.0, (centre - half) / (1 + Z * Z / n)), min(1.0, (centre + half) / (1 + Z * Z / n))


def design_effect(values: np.ndarray, units: np.ndarray, classes: np.ndarray | None = None) -> float:
    """How many of these images are as informative as one independent image; 1 if each is its own unit, never less.

    values: [N], what is averaged over all images; with `classes`, [N], first over each class, then over the classes.
    units: as for `share_interval`.

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


def paired_difference(
    right: np.ndarray, other: np.ndarray, units: np.ndarray, questions: int = 1
) -> tuple[float, float, float]:
    """Difference in accuracy of two classifiers on the same images, with its 95 % interval.

    right, other: [N] booleans, whether each classifier was right on each image. units: as for `share_interval`.
    `questions`: of so many intervals together all are right with 95 % confidence (Bonferroni). The
    interval is that of Agresti and Min (2005), which adds half an image to each of the four outcomes and so is valid
    for few images; if units have several images, it is computed for the effective number of images.
    """
    difference = right.astype(float) - other
    if len(np.unique(units)) == 1 < len(right):
        return float(difference.mean()), -1.0, 1.0
    effect = design_effect(difference, units)
    n, ours, theirs = (float(count) / effect for count in (len(right), (right & ~other).sum(), (other & ~right).sum()))
    middle = (ours - theirs) / (n + 2)
    z = Z if questions == 1 else float(ndtri(1 - 0.025 / questions))
    half = z * math.sqrt((ours + theirs + 1) / (n + 2) - middle**2) / math.sqrt(n + 2)
    return (ours - theirs) / n, max(-1.0, middle - half), min(1.0, middle + half)


def bootstrap(measure: Callable[[np.ndarray], float], units: np.ndarray) -> tuple[float, float] | None:
    """The 95 % bootstrap interval of any metric, over units drawn with replacement (Efron 1979).

    `measure(rows)` is the metric of these rows; it raises ValueError if they do not define it. Such draws, of one class
    only for example, are skipped. There is no interval if they are more than half, and if no draw differs, such as
    when all images are equally good: then few images say as much as many. The percentiles are further apart for few
    units (the expanded percentile interval: Hesterberg 2015, arXiv 1411.5279); of eight it holds nine times in ten.
    """
    draw, order = np.random.default_rng(0), np.argsort(units, kind="stable")
    members = np.split(order, np.unique(units, return_counts=True)[1].cumsum()[:-1])
    values = []
    for _ in range(RESAMPLES):
        drawn = draw.integers(len(members), size=len(members))
        with suppress(ValueError):
            values.append(measure(np.concatenate([members[unit] for unit in drawn])))
    if len(values) <= RESAMPLES / 2 or np.ptp(values) == 0:
        return None
    freedom = len(members) - 1
    tail = float(ndtr(-math.sqrt((freedom + 1) / freedom) * stdtrit(freedom, 0.975)))
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)
