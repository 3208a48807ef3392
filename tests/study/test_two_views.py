"""Two views of an image as a choice of the final model."""

from types import SimpleNamespace

import pytest

from autotl.engine.scale import Scale
from autotl.study.budget import OutOfTime
from autotl.study.closing import _End
from autotl.study.reruns import Contender, SeedRun
from autotl.study.settings import Settings
from autotl.study.worker import Failed


def choose(tmp_path, views, outcome, left=100.0, **limits):
    """What becomes of two contenders, whose best has an accuracy of 0.9 after a minute of training, and costs."""
    plan = SimpleNamespace(test_views=1, model_copy=lambda update: SimpleNamespace(**update))
    costs = {"parameters": 5e6, "flops": 3e8, "latency_ms": 4.0}
    best = Contender(SimpleNamespace(number=3, metrics=costs), (SeedRun(plan, 0.9, {"seconds": 60.0}),))
    notes = []
    end = SimpleNamespace(
        settings=Settings.of({"data": tmp_path, "views": views, **limits}),
        bench=SimpleNamespace(scale=Scale(greater_is_better=True, percent=True)),
        budget=SimpleNamespace(left=lambda: left),
        crew=SimpleNamespace(carry_out=lambda jobs: [(job, outcome) for job in jobs]),
        watcher=SimpleNamespace(note=notes.append),
        skipped=[],
        _final=lambda winner: None,
        _seconds_again=lambda final, run: 30.0,
    )
    found = _End.with_views(end, [best, "another"])
    assert found[1] == "another"
    return found[0].median(end.bench.scale).plan.test_views, end.skipped, notes


def measured(gain, low):
    return {"val.accuracy": 0.9 + gain, "val.views.gain": gain, "val.views.low": low, "val.views.high": 0.1}


@pytest.mark.parametrize(
    ("views", "gain", "low", "used"),
    [("auto", 0.05, 0.01, 2), ("auto", 0.05, -0.01, 1), ("2", 0.05, -0.01, 2), (2, -0.05, -0.1, 2)],
)
def test_auto_uses_two_views_if_they_are_better_beyond_chance(tmp_path, views, gain, low, used):
    chosen, skipped, (note,) = choose(tmp_path, views, measured(gain, low))
    assert chosen == used and not skipped
    assert f"{100 * gain:+.1f} points of accuracy on val" in note and note.endswith(
        "; used." if used == 2 else "not used."
    )


@pytest.mark.parametrize(
    ("outcome", "left", "says"),
    [
        (measured(0.05, 0.01), 80.0, "no time for views of the winner, trial 3"),
        (OutOfTime(), 100.0, "no time for views of the winner, trial 3"),
        (Failed("why"), 100.0, "views of the winner, trial 3, which failed: why"),
    ],
)
def test_without_a_measurement_one_view_is_kept(tmp_path, outcome, left, says):
    assert choose(tmp_path, "auto", outcome, left) == (1, [says], [])


@pytest.mark.parametrize(
    ("limits", "cost"),
    [({"max_flops": "599M"}, "600 M FLOPs per image"), ({"max_latency_ms": 7.9}, "8 ms per image")],
)
def test_two_views_stay_within_the_limits(tmp_path, limits, cost):
    says = f"two views of an image, {cost}: beyond the limit"
    assert choose(tmp_path, 2, measured(0.05, 0.01), **limits) == (1, [says], [])
    within = {"max_flops": "600M", "max_latency_ms": 8.0, "max_params": "5M"}
    assert choose(tmp_path, 2, measured(0.05, 0.01), **within)[:2] == (2, [])


def test_one_view_needs_no_measurement(tmp_path):
    assert choose(tmp_path, 1, None) == (1, [], [])
