"""The tests for every metric."""

import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from autotl.contracts import Metric
from autotl.engine.metrics import class_weights_of, scale_of
from autotl.testing.lab import SEED, Lab, stir, well_behaved
from autotl.testing.plugins import PluginTests

IMAGES = 60
CLASSES = (2, 3, 12)
"""A metric must be defined for one of these numbers of classes; for the others it may raise ValueError."""
STEPS = (0.0, 0.1, 0.3, 0.6, 1.0)
"""How far the probabilities are moved to the right classes."""
ROUNDING = 1e-9


class MetricTests(PluginTests):
    kind = "metrics"

    def test_it_is_a_finite_number(self, lab: Lab, name: str) -> None:
        for labels, probabilities in _cases(_metric(lab, name), name):
            value = _metric(lab, name)(labels, probabilities)
            finite = isinstance(value, int | float | np.number) and math.isfinite(value)
            assert finite, f"'{name}' returns {value!r}, not a finite number. Raise ValueError where it is not defined."

    def test_its_attributes_have_valid_values(self, lab: Lab, name: str) -> None:
        scale_of(lab.host.metrics[name])
        class_weights_of(lab.host.metrics[name])

    def test_a_better_prediction_is_never_worse(self, lab: Lab, name: str) -> None:
        """Every step makes the right class of every image more probable, and the others less."""
        metric, scale = _metric(lab, name), scale_of(lab.host.metrics[name])
        which = "greater" if scale.greater_is_better else "smaller"
        for labels, probabilities in _cases(metric, name):
            right = np.eye(probabilities.shape[1])[labels]
            values = [float(metric(labels, (1 - step) * probabilities + step * right)) for step in STEPS]
            places = [scale.order(value) for value in values]
            for before, after in pairwise(places):
                assert after <= before + ROUNDING, (
                    f"'{name}' says that {which} is better, but predictions that become better give {values}."
                )
            assert places[-1] < places[0], f"'{name}' gives {values[0]} for every prediction."

    def test_the_order_of_the_images_does_not_matter(self, lab: Lab, name: str) -> None:
        metric = _metric(lab, name)
        for labels, probabilities in _cases(metric, name):
            other = np.random.default_rng(SEED).permutation(len(labels))
            one, two = metric(labels, probabilities), metric(labels[other], probabilities[other])
            assert math.isclose(one, two, rel_tol=ROUNDING, abs_tol=ROUNDING), (
                f"'{name}' depends on the order of the images: {one} and {two}."
            )

    def test_nothing_is_left_to_chance(self, lab: Lab, name: str) -> None:
        metric = _metric(lab, name)
        for labels, probabilities in _cases(metric, name):
            values = []
            for seed in range(4):  # two seeds might draw the same
                stir(seed)
                values.append(metric(labels, probabilities))
            assert len(set(values)) == 1, f"'{name}' gives different values for the same predictions: {values}."

    def test_it_prints_nothing_and_leaves_global_generators_alone(self, lab: Lab, name: str) -> None:
        metric = _metric(lab, name)
        for labels, probabilities in _cases(metric, name):
            with well_behaved(f"'{name}'"):
                metric(labels, probabilities)

    def test_its_input_stays_as_it_is(self, lab: Lab, name: str) -> None:
        metric = _metric(lab, name)
        for labels, probabilities in _cases(metric, name):
            kept = labels.copy(), probabilities.copy()
            metric(labels, probabilities)
            for what, array, before in zip(("labels", "probabilities"), (labels, probabilities), kept, strict=True):
                assert np.array_equal(array, before), f"'{name}' changes its input {what} in place."

    def test_its_interval_is_around_its_value(self, lab: Lab, name: str) -> None:
        """If it has one of its own: for images alone and in groups."""
        metric = _metric(lab, name)
        own = getattr(metric, "interval", None)
        if own is None:
            return
        for labels, probabilities in _cases(metric, name):
            value = metric(labels, probabilities)
            for units in (np.arange(IMAGES), np.arange(IMAGES) // 5):
                low, high = own(labels, probabilities, units)
                assert math.isfinite(high - low), f"'{name}' has the interval {low} to {high}."
                assert low - ROUNDING <= value <= high + ROUNDING, (
                    f"'{name}' is {value}, outside its interval {low} to {high}."
                )


def _metric(lab: Lab, name: str) -> Metric:
    metric: Metric = lab.host.metrics[name].item
    return metric


def _cases(metric: Metric, name: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Labels and mediocre probabilities, for each of `CLASSES` for which the metric is defined."""
    found, why = 0, ""
    for classes in CLASSES:
        draw = np.random.default_rng(SEED)
        labels = draw.permutation(np.arange(IMAGES) % classes)
        drawn = draw.random((IMAGES, classes)) + 0.2 * np.eye(classes)[labels]
        probabilities = drawn / drawn.sum(1, keepdims=True)
        try:
            metric(labels, probabilities)
        except ValueError as error:
            why = str(error)
            continue
        found += 1
        yield labels, probabilities
    assert found, f"'{name}' is not defined for {', '.join(map(str, CLASSES))} classes: {why}"
