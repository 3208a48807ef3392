"""The winner is the best plan, or one that costs less and is nearly as good."""

from types import SimpleNamespace

import pytest
from test_limits import searched

from autotl.engine.scale import Scale
from autotl.errors import StudyError
from autotl.report import words
from autotl.study import select
from autotl.study.pick import picked
from autotl.study.settings import Settings
from autotl.tracking.log import TrialRecord
from autotl.tracking.result import Simplest

HEAD = SimpleNamespace(trainings=())
"""A plan that fits a head on frozen features."""


def board(*points, scale):
    """Plans with these values and costs, numbered in the order given, best first."""
    records = [
        TrialRecord(
            number=number,
            state="complete",
            params={},
            plan=HEAD,
            value=value,
            metrics={"val.loss": 0.0, "flops": cost},
            seconds=0.0,
            reason="",
            by_plugin=False,
            epochs=(),
            kills=0,
            killed_at="",
        )
        for number, (value, cost) in enumerate(points)
    ]
    return sorted(records, key=lambda record: select.order(record.value, record.metrics, scale))


SHARE = Scale()


def numbers(how, *points, scale=SHARE):
    return [record.number for record in picked(how, board(*points, scale=scale), "flops", scale)]


# At a tenth of the largest cost, trial 1 has 8 of the 9 points between the ends; trial 3 is as good as nothing cheaper.
BENT = ((0.99, 1000.0), (0.98, 100.0), (0.90, 10.0), (0.97, 200.0))


def test_the_knee_is_farthest_above_the_line_between_the_ends():
    # On a logarithmic scale trial 1 costs half of the way: 8/9 - 1/2 is above the line, the ends are on it.
    assert numbers("knee", *BENT) == [1, 0, 2]
    # 1/9 - 1/2 is below the line: then the best plan is picked.
    assert numbers("knee", (0.99, 1000.0), (0.91, 100.0), (0.90, 10.0)) == [0, 2, 1]


@pytest.mark.parametrize(
    ("points", "found"), [("0", [0]), ("0.9", [0]), ("1", [1, 0]), ("8.9", [1, 0]), ("9", [2, 1, 0])]
)
def test_the_cheapest_within_some_points_of_the_best(points, found):
    assert numbers(f"within={points}", *BENT) == found
    assert numbers("within=0", (0.99, 1000.0), (0.99, 900.0)) == [1]  # as good and cheaper


def test_the_best_is_the_first_of_all():
    assert numbers("best", *BENT) == [0, 1, 3, 2]
    for how in ("best", "knee", "within=1"):
        assert numbers(how, (0.9, 5.0)) == [0]
    assert numbers("knee", (0.9, 5.0), (0.8, 4.0)) == [0, 1]


def test_a_metric_that_is_better_where_smaller_has_its_own_unit():
    losses = Scale(greater_is_better=False, percent=False)
    points = ((0.10, 1000.0), (0.11, 100.0), (0.19, 10.0))
    assert numbers("knee", *points, scale=losses) == [1, 0, 2]
    assert numbers("within=0.02", *points, scale=losses) == [1, 0]


@pytest.mark.parametrize("how", ["cheap", "within", "within=", "within=-1", "within=a", "within=1%"])
def test_another_way_to_pick_is_refused(how):
    with pytest.raises(
        StudyError, match="is not a way to pick; allowed are best, simplest, knee and within=POINTS, such as"
    ):
        Settings.of({"data": ".", "pick": how})


def test_a_search_picks_on_validation_and_says_what_the_best_plan_would_have_been(host, stripes):
    """The same study, picked again in another way, needs no new trial and no rerun."""
    options = {"trials": 8, "compare": False, "refit": True}
    made, best = searched(host, stripes, pick="best", **options)
    assert best.picked is None
    trials = list(made.folder.log.records())
    found = select.leaderboard(trials, Scale())
    cheapest = min(found, key=lambda record: record.metrics["flops"])
    assert cheapest.value < found[0].value  # else there would be nothing to choose
    made, cheap = searched(host, stripes, pick="within=100", reruns=2, **options)
    assert [record.number for record in made.folder.log.records()] == [record.number for record in trials]
    assert (cheap.best.trial, len(cheap.best.runs)) == (cheapest.number, 1)
    assert (cheap.final.cut, cheap.picked.best, cheap.picked.value) == ("0.2", found[0].number, found[0].value)
    shown = Scale().text
    line = next(line for line in words.summary(cheap) if line.startswith("Picked"))
    assert line == (
        f"Picked by --pick within=100: validation accuracy {shown(cheapest.value)} for 442 k FLOPs per image; the best "
        f"plan, trial {found[0].number}, has {shown(found[0].value)} for 1 M FLOPs per image."
    )
    assert not any(line.startswith("Picked") for line in words.summary(best))


def test_the_summary_says_which_simpler_plan_is_within_the_noise(host, stripes):
    _, result = searched(host, stripes, trials=2, reruns=0, compare=False)
    won = result.best.trial

    def said(**values):
        simplest = Simplest(**{"trial": 7, "value": 0.985, "best": won, "value_of_best": 1.0, "noise": 0.02, **values})
        return list(words.summary(result.model_copy(update={"simplest": simplest})))

    assert (
        f"Trial 7 is simpler and within one standard error (2.0 points, one run each) of the best plan, trial {won}: "
        "validation accuracy 98.5% against 100.0%. --pick simplest takes it."
    ) in said(runs=1)
    assert (
        "Picked because it is simpler and within one standard error (2.0 points, 3 runs each) of the best plan, trial "
        "9: validation accuracy 98.5% against 100.0%. --pick best takes trial 9."
    ) in said(runs=3, trial=won, best=9)
