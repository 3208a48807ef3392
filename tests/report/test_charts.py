"""Charts of the report: where their dots and labels are."""

import math

import pytest

from autotl.report.page import chart


@pytest.mark.parametrize(
    ("values", "log", "texts"),
    [
        ([0.0, 1.0], False, ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
        ([0.871, 0.874], False, ["0.871", "0.872", "0.873", "0.874"]),
        ([3.0], False, None),
        ([0.0], False, None),
        ([1e-5, 1e-1], True, ["1e-05", "0.0001", "0.001", "0.01", "0.1"]),
        ([1e6], True, None),
    ],
)
def test_axes_have_round_labels_within_the_canvas(values, log, texts):
    dots = [chart.Dot(at, value) for at, value in enumerate(values)]
    axis = chart.Axis("y", log=log)
    drawn = chart.chart("accuracy", [chart.Series("a", dots, 0)], chart.Axis("x"), axis)
    assert texts is None or [tick.text for tick in drawn.ys] == texts
    assert drawn.ys and all(chart.TOP <= tick.at <= chart.HEIGHT - chart.BOTTOM for tick in drawn.ys)
    for dot in drawn.series[0].dots:
        assert chart.LEFT <= dot.x <= chart.WIDTH - chart.RIGHT and chart.TOP <= dot.y <= chart.HEIGHT - chart.BOTTOM


def test_of_many_dots_some_are_drawn_and_all_strong_ones():
    dots = [chart.Dot(at, math.sin(at), strong=at == 4321) for at in range(10_000)]
    kept = chart.thinned(dots)
    assert len(kept) <= chart.MOST + 1 and dots[4321] in kept
    assert chart.chart("nothing", [chart.Series("a", [], 0)], chart.Axis("x"), chart.Axis("y")) is None
