from itertools import pairwise

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score
from sklearn.metrics import log_loss as their_log_loss

from autotl.engine import metrics


@pytest.fixture
def guesses():
    draw = np.random.default_rng(1)
    labels = draw.choice(5, size=300, p=[0.5, 0.3, 0.15, 0.04, 0.01])
    predicted = np.where(draw.random(300) < 0.7, labels, draw.integers(5, size=300))
    return labels, predicted


def test_metrics_are_scikit_learns(guesses):
    labels, predicted = guesses
    assert metrics.accuracy(labels, predicted) == pytest.approx((labels == predicted).mean())
    assert metrics.balanced_accuracy(labels, predicted) == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert metrics.macro_f1(labels, predicted) == pytest.approx(f1_score(labels, predicted, average="macro"))
    logits = np.random.default_rng(2).normal(0, 5, (300, 5))
    shares = np.exp(logits - logits.max(1, keepdims=True))
    expected = their_log_loss(labels, shares / shares.sum(1, keepdims=True), labels=range(5))
    assert metrics.log_loss(logits, labels) == pytest.approx(expected, rel=1e-3)


def test_wilsons_interval_is_the_published_one():
    low, high = metrics.wilson(81 / 263, 263)  # Newcombe 1998, table I
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
    assert metrics.wilson(1.0, 10)[1] == pytest.approx(1.0)
    assert metrics.wilson(0.0, 10)[0] == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("name", metrics.METRICS)
def test_intervals_contain_the_value_and_narrow_with_more_images(name, guesses):
    labels, predicted = guesses
    few, many = (metrics.score(name, labels[:n], predicted[:n], np.arange(n)) for n in (60, 300))
    for score in (few, many):
        assert 0 <= score.low <= score.value <= score.high <= 1
    assert many.high - many.low < few.high - few.low


@pytest.mark.parametrize("name", metrics.METRICS)
def test_the_interval_of_a_few_images_without_an_error_is_wide(name):
    labels = np.arange(12) % 2
    score = metrics.score(name, labels, labels, np.arange(12))
    assert (score.value, score.high) == (1.0, pytest.approx(1.0))
    lowest = metrics.wilson(1.0, 12)[0]
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
        score = metrics.score(name, labels, np.where(right, labels, (labels + 1) % len(n)), np.arange(len(labels)))
        held += score.low <= truth <= score.high
    assert held >= 135


def test_a_paired_difference_is_narrower_than_two_intervals():
    draw = np.random.default_rng(3)
    ours = draw.random(1000) < 0.8
    theirs = ours & (draw.random(1000) < 0.95)
    mean, low, high = metrics.paired_difference(ours, theirs, np.arange(1000))
    assert mean == pytest.approx(ours.mean() - theirs.mean())
    assert 0 < low < mean < high
    apart = metrics.wilson(ours.mean(), 1000)
    assert high - low < (apart[1] - apart[0])


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
@pytest.mark.parametrize("name", [*metrics.METRICS, "difference"])
def test_intervals_have_their_nominal_coverage_if_units_have_several_images(monkeypatch, name, count, sizes, alike):
    """Units of one class each, as if a batch of a product is all good or all bad: at least 90 %, as above."""
    monkeypatch.setattr(metrics, "RESAMPLES", 200)
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
            _, low, high = metrics.paired_difference(right, other, units)
        else:
            score = metrics.score(name, labels, np.where(right, labels, 1 - labels), units)
            low, high = score.low, score.high
        held += low <= truth <= high
    assert held >= 135


def test_a_unit_counts_as_one_image_if_its_images_are_all_right_or_all_wrong():
    right, units = np.arange(40) % 5 > 0, np.repeat(np.arange(40), 10)
    alone = metrics.wilson(0.8, 40)
    assert metrics.share_interval(np.repeat(right, 10), units) == pytest.approx(alone, abs=0.02)
    scattered = np.arange(400) % 5 > 0  # as many in each unit
    low, high = metrics.share_interval(scattered, units)
    assert high - low < 1.2 * (metrics.wilson(0.8, 400)[1] - metrics.wilson(0.8, 400)[0])


@pytest.mark.parametrize("name", metrics.METRICS)
def test_images_that_are_units_of_their_own_make_no_interval_wider(name, guesses):
    labels, predicted = guesses
    numbers = np.random.default_rng(0).permutation(1000)[:300]
    assert metrics.design_effect(labels == predicted, numbers, labels) == 1
    assert metrics.score(name, labels, predicted, numbers) == metrics.score(name, labels, predicted, np.arange(300))
    assert metrics.share_interval(labels == predicted, numbers) == metrics.wilson((labels == predicted).mean(), 300)


@pytest.mark.parametrize("name", metrics.METRICS)
def test_one_unit_alone_gives_the_widest_interval(name):
    labels, units = np.arange(20) % 2, np.zeros(20, int)
    score = metrics.score(name, labels, labels, units)
    assert (score.value, score.low, score.high, score.images, score.units) == (1.0, 0.0, 1.0, 20, 1)
    assert metrics.paired_difference(labels == 0, labels == 1, units) == (0.0, -1.0, 1.0)


def test_few_errors_do_not_prove_that_a_units_images_are_independent():
    """The interval narrows as errors spread over units, step by step."""
    units, widths = np.repeat(np.arange(8), 10), []
    for wrong in range(5):  # each in a different unit
        low, high = metrics.share_interval(~np.isin(np.arange(80), 10 * np.arange(wrong)), units)
        widths.append(high - low)
    assert widths == sorted(widths, reverse=True)
    assert widths[0] > 3 * (metrics.wilson(1.0, 80)[1] - metrics.wilson(1.0, 80)[0])
    assert all(before < 1.5 * after for before, after in pairwise(widths))


def test_the_recall_of_each_class_and_the_share_of_the_most_frequent():
    labels = np.array([0] * 19 + [2])
    assert metrics.most_frequent("accuracy", labels) == 0.95
    assert metrics.most_frequent("balanced-accuracy", labels) == 0.5
    assert metrics.by_class(labels, np.array([0] * 18 + [1, 0])) == [(0, 19, 18), (2, 1, 0)]
