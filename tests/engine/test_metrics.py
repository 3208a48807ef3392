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
def test_intervals_hold_the_value_and_narrow_with_more_images(name, guesses):
    labels, predicted = guesses
    few, many = metrics.score(name, labels[:60], predicted[:60]), metrics.score(name, labels, predicted)
    for score in (few, many):
        assert 0 <= score.low <= score.value <= score.high <= 1
    assert many.high - many.low < few.high - few.low


@pytest.mark.parametrize("name", metrics.METRICS)
def test_a_few_images_without_an_error_prove_little(name):
    labels = np.arange(12) % 2
    score = metrics.score(name, labels, labels)
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
def test_of_150_intervals_as_many_hold_the_truth_as_they_say(name, images, recalls):
    """Nine in ten at least: of 150 intervals that hold it at 95 %, fewer do so by chance once in 200 times."""
    draw, n, recalls = np.random.default_rng(4), np.array(images), np.array(recalls)
    labels = np.repeat(np.arange(len(n)), n)
    both = n * recalls
    given = both + np.roll(n - both, 1)
    truth = np.mean(recalls if name == "balanced-accuracy" else 2 * both / (n + given))
    held = 0
    for _ in range(150):
        right = draw.random(len(labels)) < recalls[labels]
        score = metrics.score(name, labels, np.where(right, labels, (labels + 1) % len(n)))
        held += score.low <= truth <= score.high
    assert held >= 135


def test_a_paired_difference_is_narrower_than_two_intervals():
    draw = np.random.default_rng(3)
    ours = draw.random(1000) < 0.8
    theirs = ours & (draw.random(1000) < 0.95)
    mean, low, high = metrics.paired_difference(ours, theirs)
    assert mean == pytest.approx(ours.mean() - theirs.mean())
    assert 0 < low < mean < high
    apart = metrics.wilson(ours.mean(), 1000)
    assert high - low < (apart[1] - apart[0])
