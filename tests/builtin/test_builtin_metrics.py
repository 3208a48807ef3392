"""The metrics that ship: their values in cases worked by hand, scikit-learn's, and their intervals."""

import math

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score, log_loss, roc_auc_score, top_k_accuracy_score

from autotl.builtin import class_means
from autotl.engine import intervals, metrics
from autotl.host import Host

ENTRIES = Host().metrics
SHARES = ("accuracy", "balanced-accuracy", "macro-f1")
"""Those of the predicted classes alone."""


def value(name, labels, probabilities):
    return metrics.measure(ENTRIES[name], np.array(labels), np.array(probabilities, float))


def scored(name, labels, predicted, units):
    classes = max(labels.max(), predicted.max()) + 1
    return metrics.score(ENTRIES[name], labels, np.eye(classes)[predicted], units)


@pytest.fixture
def guesses():
    draw = np.random.default_rng(1)
    labels = draw.choice(5, size=300, p=[0.5, 0.3, 0.15, 0.04, 0.01])
    predicted = np.where(draw.random(300) < 0.7, labels, draw.integers(5, size=300))
    return labels, predicted


FOUR = [[0.9, 0.1], [0.6, 0.4], [0.7, 0.3], [0.2, 0.8]]
"""Four images, of which the third is of the second class and predicted as the first."""


@pytest.mark.parametrize(
    ("name", "by_hand"),
    [
        ("accuracy", 3 / 4),
        ("balanced-accuracy", (2 / 2 + 1 / 2) / 2),
        ("macro-f1", (2 * 2 / 5 + 2 * 1 / 3) / 2),
        ("log-loss", -math.log(0.9 * 0.6 * 0.3 * 0.8) / 4),
        ("roc-auc", 3 / 4),  # of four pairs, 0.3 of the second class is below 0.4 of the first in one
    ],
)
def test_two_classes_by_hand(name, by_hand):
    assert value(name, [0, 0, 1, 1], FOUR) == pytest.approx(by_hand)


def test_roc_auc_of_several_classes_by_hand():
    """Class 2 has no image and is left out; class 0 is right in both pairs, class 1 in one of two; ties count half."""
    three = [[0.5, 0.3, 0.2], [0.4, 0.2, 0.4], [0.1, 0.3, 0.6]]
    assert value("roc-auc", [0, 1, 1], three) == pytest.approx((1 + (0 + 0.5) / 2) / 2)
    with pytest.raises(Exception, match="fails: ValueError: it needs images of two classes"):
        value("roc-auc", [1, 1], FOUR[:2])


def test_top_5_by_hand():
    falling = np.arange(7, 0, -1) / 28
    assert value("top-5", [0, 4, 5, 6], np.tile(falling, (4, 1))) == 2 / 4
    assert value("top-5", [0, 4, 5, 6], np.full((4, 7), 1 / 7)) == 2 / 4  # of equal ones the first five count
    for classes in (2, 5):
        with pytest.raises(Exception, match=f"it needs more than 5 classes, and there are {classes}"):
            value("top-5", [0, 1], np.full((2, classes), 1 / classes))


def test_a_wrong_prediction_without_doubt_has_a_finite_loss():
    assert value("log-loss", [1], [[1.0, 0.0]]) == pytest.approx(36.04, abs=0.01)


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_they_are_scikit_learns(classes):
    draw = np.random.default_rng(2)
    labels, probabilities = draw.integers(classes, size=300), draw.dirichlet(np.ones(classes), 300).round(2) + 1e-3
    probabilities /= probabilities.sum(1, keepdims=True)
    predicted = probabilities.argmax(1)
    second = probabilities[:, 1] if classes == 2 else probabilities
    theirs = {
        "balanced-accuracy": balanced_accuracy_score(labels, predicted),
        "macro-f1": f1_score(labels, predicted, average="macro"),
        "log-loss": log_loss(labels, probabilities),
        "roc-auc": roc_auc_score(labels, second, multi_class="ovr"),
    }
    if classes > 5:
        theirs["top-5"] = top_k_accuracy_score(labels, probabilities + np.arange(classes, 0, -1) * 1e-9, k=5)
    assert {name: value(name, labels, probabilities) for name in theirs} == pytest.approx(theirs)


def test_which_are_better_where_smaller_and_which_are_shares():
    scales = {entry.name: metrics.scale_of(entry) for entry in ENTRIES}
    assert [name for name, scale in scales.items() if not scale.greater_is_better] == ["log-loss"]
    assert [name for name, scale in scales.items() if not scale.percent] == ["log-loss", "roc-auc"]
    balanced = [entry.name for entry in ENTRIES if metrics.class_weights_of(entry) == "balanced"]
    assert balanced == ["balanced-accuracy", "macro-f1", "roc-auc"]


def test_top_5_has_the_interval_of_a_share():
    labels, units = np.arange(200) % 10, np.arange(200) // 2
    probabilities = np.random.default_rng(0).random((200, 10))
    found = metrics.score(ENTRIES["top-5"], labels, probabilities / probabilities.sum(1, keepdims=True), units)
    right = (np.argsort(-probabilities, axis=1)[:, :5] == labels[:, None]).any(1)
    assert (found.low, found.high) == intervals.share_interval(right, units)


@pytest.mark.parametrize("name", ["log-loss", "roc-auc"])
def test_those_of_probabilities_have_a_bootstrap_interval(name):
    draw, found = np.random.default_rng(3), {}
    for images in (60, 600):
        labels = draw.integers(3, size=images)
        probabilities = draw.random((images, 3)) + 0.3 * np.eye(3)[labels]
        probabilities /= probabilities.sum(1, keepdims=True)
        found[images] = metrics.score(ENTRIES[name], labels, probabilities, np.arange(images))
        assert found[images].low < found[images].value < found[images].high
    assert found[600].high - found[600].low < 0.6 * (found[60].high - found[60].low)


@pytest.mark.parametrize("name", SHARES)
def test_intervals_contain_the_value_and_narrow_with_more_images(name, guesses):
    labels, predicted = guesses
    few, many = (scored(name, labels[:n], predicted[:n], np.arange(n)) for n in (60, 300))
    for score in (few, many):
        assert 0 <= score.low <= score.value <= score.high <= 1
    assert many.high - many.low < few.high - few.low


@pytest.mark.parametrize("name", SHARES)
def test_the_interval_of_a_few_images_without_an_error_is_wide(name):
    labels = np.arange(12) % 2
    score = scored(name, labels, labels, np.arange(12))
    assert (score.value, score.high) == (1.0, pytest.approx(1.0))
    lowest = intervals.wilson(1.0, 12)[0]
    assert score.low == pytest.approx(lowest) if name == "accuracy" else lowest - 0.05 < score.low <= lowest


@pytest.mark.parametrize("name", ["balanced-accuracy", "macro-f1"])
@pytest.mark.parametrize(
    ("images", "recalls"),
    [
        ((300, 100, 5), (0.99, 0.98, 0.9)),
        ((300, 100, 5), (0.97, 0.9, 0.6)),
        ((200, 10), (0.95, 0.9)),
        ((100, 100, 100), (0.9, 0.9, 0.9)),
        ((5,) * 10, (0.9,) * 10),
    ],
)
def test_150_intervals_have_their_nominal_coverage(name, images, recalls):
    """At least 90 %: with a coverage of 95 %, fewer of 150 intervals contain the value by chance once in 200 times."""
    draw, n, recalls = np.random.default_rng(4), np.array(images), np.array(recalls)
    labels = np.repeat(np.arange(len(n)), n)
    both = n * recalls
    given = both + np.roll(n - both, 1)
    truth = np.mean(recalls if name == "balanced-accuracy" else 2 * both / (n + given))
    held = 0
    for _ in range(150):
        right = draw.random(len(labels)) < recalls[labels]
        score = scored(name, labels, np.where(right, labels, (labels + 1) % len(n)), np.arange(len(labels)))
        held += score.low <= truth <= score.high
    assert held >= 135


SIZES = {
    "ten each": lambda draw, units: np.full(units, 10),
    "unequal": lambda draw, units: draw.choice([1, 2, 5, 30], units),
}


def chances(draw, share, alike, count):
    """For each unit the probability that an image of it is right: on average `share`, with a spread by `alike`."""
    if alike in (0, 1):
        return np.full(count, share) if alike == 0 else (draw.random(count) < share).astype(float)
    return draw.beta(share * (1 - alike) / alike, (1 - share) * (1 - alike) / alike, count)


@pytest.mark.parametrize("alike", [0, 0.3, 1])
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("count", [8, 40])
@pytest.mark.parametrize("name", [*SHARES, "difference"])
def test_intervals_have_their_nominal_coverage_if_units_have_several_images(monkeypatch, name, count, sizes, alike):
    """Units of one class each, as if a batch of a product is all good or all bad: at least 90 %, as above."""
    monkeypatch.setattr(class_means, "RESAMPLES", 200)
    draw, shares, held = np.random.default_rng(5), np.array([0.9, 0.8]), 0
    given = shares + 1 - shares[::-1]
    truth = {"macro-f1": np.mean(2 * shares / (1 + given)), "difference": 0.15}.get(name, np.mean(shares))
    for _ in range(150):
        units = np.repeat(np.arange(count), SIZES[sizes](draw, count))
        of_class = [chances(draw, share, alike, count) for share in shares]
        labels = units % 2
        right = draw.random(len(units)) < np.where(labels == 0, of_class[0][units], of_class[1][units])
        if name == "difference":
            other = draw.random(len(units)) < chances(draw, 0.7, alike, count)[units]
            _, low, high = intervals.paired_difference(right, other, units)
        else:
            score = scored(name, labels, np.where(right, labels, 1 - labels), units)
            low, high = score.low, score.high
        held += low <= truth <= high
    assert held >= 135


@pytest.mark.parametrize("name", SHARES)
def test_images_that_are_units_of_their_own_make_no_interval_wider(name, guesses):
    labels, predicted = guesses
    numbers = np.random.default_rng(0).permutation(1000)[:300]
    assert intervals.design_effect(labels == predicted, numbers, labels) == 1
    assert scored(name, labels, predicted, numbers) == scored(name, labels, predicted, np.arange(300))
    assert intervals.share_interval(labels == predicted, numbers) == intervals.wilson((labels == predicted).mean(), 300)
