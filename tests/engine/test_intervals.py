"""95 % intervals have their nominal coverage."""

from itertools import pairwise

import numpy as np
import pytest

from autotl.engine import intervals


def test_wilsons_interval_is_the_published_one():
    low, high = intervals.wilson(81 / 263, 263)  # Newcombe 1998, table I
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
    assert intervals.wilson(1.0, 10)[1] == pytest.approx(1.0)
    assert intervals.wilson(0.0, 10)[0] == pytest.approx(0.0, abs=1e-12)


def test_a_paired_difference_is_narrower_than_two_intervals():
    draw = np.random.default_rng(3)
    ours = draw.random(1000) < 0.8
    theirs = ours & (draw.random(1000) < 0.95)
    mean, low, high = intervals.paired_difference(ours, theirs, np.arange(1000))
    assert mean == pytest.approx(ours.mean() - theirs.mean())
    assert 0 < low < mean < high
    apart = intervals.wilson(ours.mean(), 1000)
    assert high - low < (apart[1] - apart[0])


def test_a_unit_counts_as_one_image_if_its_images_are_all_right_or_all_wrong():
    right, units = np.arange(40) % 5 > 0, np.repeat(np.arange(40), 10)
    alone = intervals.wilson(0.8, 40)
    assert intervals.share_interval(np.repeat(right, 10), units) == pytest.approx(alone, abs=0.02)
    scattered = np.arange(400) % 5 > 0  # as many in each unit
    low, high = intervals.share_interval(scattered, units)
    assert high - low < 1.2 * (intervals.wilson(0.8, 400)[1] - intervals.wilson(0.8, 400)[0])


def test_few_errors_do_not_prove_that_a_units_images_are_independent():
    """The interval narrows as errors spread over units, step by step."""
    units, widths = np.repeat(np.arange(8), 10), []
    for wrong in range(5):  # each in another unit
        low, high = intervals.share_interval(~np.isin(np.arange(80), 10 * np.arange(wrong)), units)
        widths.append(high - low)
    assert widths == sorted(widths, reverse=True)
    assert widths[0] > 3 * (intervals.wilson(1.0, 80)[1] - intervals.wilson(1.0, 80)[0])
    assert all(before < 1.5 * after for before, after in pairwise(widths))


SIZES = {
    "one": lambda draw, units: np.ones(units, int),
    "ten each": lambda draw, units: np.full(units, 10),
    "unequal": lambda draw, units: draw.choice([1, 2, 5, 30], units),
}


@pytest.mark.parametrize("alike", [0.0, 0.7])
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("count", [12, 40])
def test_150_bootstrap_intervals_have_their_nominal_coverage(monkeypatch, count, sizes, alike):
    """Of a mean of losses, at least 90 %: with 95 %, fewer of 150 contain it by chance once in 200 times."""
    monkeypatch.setattr(intervals, "RESAMPLES", 200)
    draw, held = np.random.default_rng(5), 0
    for _ in range(150):
        units = np.repeat(np.arange(count), SIZES[sizes](draw, count))
        losses = 3 + alike * draw.normal(size=count)[units] + draw.normal(size=len(units))
        low, high = intervals.bootstrap(lambda rows, losses=losses: losses[rows].mean(), units)
        held += low <= 3 <= high
    assert held >= 135


def test_a_bootstrap_draws_whole_units_and_narrows_with_more_of_them():
    values, widths = np.random.default_rng(0).normal(size=400), []
    for units in (np.arange(400), np.arange(400) // 10):  # all images of a unit are alike in the second
        low, high = intervals.bootstrap(lambda rows, units=units: values[units[rows]].mean(), units)
        widths.append(high - low)
    assert 2.5 < widths[1] / widths[0] < 4  # the root of ten is 3.2
    renamed = np.random.default_rng(1).permutation(1000)[:400]
    assert intervals.bootstrap(lambda rows: values[rows].mean(), renamed) is not None


def test_draws_that_do_not_define_a_metric_are_left_out_and_too_many_of_them_give_no_interval():
    def of_both(rows, rare):
        if not (rows < rare).any():
            raise ValueError("none of the rare class")
        return rows.mean()

    units = np.arange(50)
    assert intervals.bootstrap(lambda rows: of_both(rows, rare=3), units) is not None  # 5 % lack it
    assert intervals.bootstrap(lambda rows: of_both(rows, rare=0), units) is None
    assert intervals.bootstrap(lambda rows: 1.0, units) is None  # no draw differs


def test_the_difference_within_one_unit_has_the_widest_interval():
    labels, units = np.arange(20) % 2, np.zeros(20, int)
    assert intervals.paired_difference(labels == 0, labels == 1, units) == (0.0, -1.0, 1.0)
