"""The best plans are rerun with other seeds and other images in `val`, and judged on the same ones."""

import json
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
from test_limits import searched
from test_pick import HEAD, SHARE, board

from autotl.engine.scale import Scale
from autotl.plan import TransferPlan
from autotl.study import select
from autotl.study.pick import contending, noise
from autotl.study.reruns import Contender, Reruns, SeedRun

OPTIONS = {"strategies": ("linear-probe", "full"), "trials": 7, "compare": False}


def turns_of(made):
    """The seed and the division of each rerun, by trial."""
    found = defaultdict(list)
    for line in made.folder.reruns.read_text().splitlines():
        rerun = json.loads(line)
        plan = TransferPlan.from_json(json.dumps(rerun["carried_out"]))
        assert plan.hash == rerun["plan"]
        found[rerun["trial"]].append((plan.seed, plan.data.division))
    return found


def test_all_finalists_are_judged_on_the_same_images_and_heads_more_often(host, stripes):
    made, result = searched(host, stripes, reruns=2, **OPTIONS)
    records = list(made.folder.log.records())
    val = 15  # images
    finalists = contending(select.finalists(select.leaderboard(records, Scale())), val, Scale())
    is_head = {record.number: not record.plan.trainings for record in finalists}
    assert 1 < sum(is_head.values()) < len(is_head)
    every = [(turn, turn) for turn in range(1, select.HEAD_TURNS + 1)]
    assert turns_of(made) == {number: every if head else every[:2] for number, head in is_head.items()}
    assert len(result.best.runs) == 3
    before = made.folder.reruns.read_text()
    again, other = searched(host, stripes, reruns=2, pick="simplest", **OPTIONS)
    assert again.folder.reruns.read_text() == before
    assert other.simplest == result.simplest and other.best.trial in is_head


def test_only_the_best_head_by_all_of_its_runs_is_compared_with_trained_plans(monkeypatch):
    """Trial 0 has the better trial, trial 1 is better in the nine other divisions; trial 2 is trained."""
    plans = {0: HEAD, 1: HEAD, 2: SimpleNamespace(trainings=(SimpleNamespace(stage_lr={}),))}
    best = [
        SimpleNamespace(number=number, plan=plans[number], value=value, metrics={"seconds": 1.0, "flops": 1.0})
        for number, value in ((0, 0.9), (1, 0.8), (2, 0.7))
    ]
    values = {0: 0.6, 1: 0.8, 2: 0.75}
    asked = []
    reruns = Reruns.__new__(Reruns)
    reruns.settings = SimpleNamespace(turns=2, pick="best", metric="accuracy")
    dataset = SimpleNamespace(divisible=True)
    reruns.bench = SimpleNamespace(refit_factor=1.0, scale=Scale(), dataset=dataset)
    reruns._failed, reruns._units = set(), 10
    reruns.skipped = []

    def run_again(again, turns, most):
        asked.append(([record.number for record in again], turns))

    def runs_again(record, turns):
        return (SeedRun(record.plan, values[record.number], {}) for _ in range(turns))

    monkeypatch.setattr(reruns, "_run_again", run_again)
    monkeypatch.setattr(reruns, "_runs_again", runs_again)
    found = reruns.contenders(best)
    assert asked == [([0, 1], 9), ([1, 2], 2)]
    assert [(each.record.number, len(each.runs)) for each in found] == [(1, 3), (2, 3)]
    assert reruns.skipped == []


def test_a_val_split_that_the_user_chose_stays(host, stripes, tmp_path):
    chosen = {"3": "val", "4": "val", "5": "val"}
    rows = [f"{path},{path.parent.name},{chosen.get(path.stem, '')}" for path in stripes.glob("*/*")]
    table = tmp_path / "table.csv"
    table.write_text("\n".join(["path,label,split", *sorted(rows)]) + "\n")
    made, _ = searched(host, table, reruns=1, **OPTIONS)
    turns = turns_of(made)
    records = {record.number: record for record in made.folder.log.records()}
    assert turns and all(records[number].plan.trainings for number in turns)
    assert {turn for each in turns.values() for turn in each} == {(1, 0)}


def test_the_noise_of_two_plans_is_the_standard_error_of_their_paired_difference():
    values = np.array([[0.9, 0.8, 0.7, 0.9], [0.7, 0.7, 0.6, 0.8]])
    difference = values[0] - values[1]
    assert noise(values, 10, SHARE) == pytest.approx(difference.std(ddof=1) / 2)
    assert noise(values + np.array([0.1, -0.2, 0.0, 0.1]), 10, SHARE) == pytest.approx(noise(values, 10, SHARE))
    assert noise(np.array([[0.9, 0.8], [0.8, 0.7]]), 10, SHARE) == pytest.approx(0)


def test_the_noise_of_single_runs_is_that_of_a_share():
    assert noise(np.array([[0.98], [0.5]]), 96, SHARE) == pytest.approx((0.9608 * 0.0392 / 100) ** 0.5, rel=1e-3)
    assert noise(np.array([[1.0], [0.5]]), 16, SHARE) == pytest.approx((0.9 * 0.1 / 20) ** 0.5)
    assert noise(np.array([[0.9], [0.5]]), 25, Scale(percent=False)) == 0


def contenders_of(monkeypatch, *points, images=100, divisible=True, runs=(), pick="simplest"):
    """The order of contenders, given by value, trained stages and FLOPs, and what is said of the simplest one.

    `runs`: how the values of further runs differ from those of the trials.
    """
    records = board(*((value, flops) for value, _, flops in points), scale=SHARE)
    for record in records:
        stages = dict.fromkeys(range(points[record.number][1]), 0.1)
        plan = SimpleNamespace(trainings=(SimpleNamespace(stage_lr=stages),) if stages else ())
        object.__setattr__(record, "plan", plan)
    reruns = Reruns.__new__(Reruns)
    reruns.settings, reruns.simplest = SimpleNamespace(pick=pick), None
    reruns.bench = SimpleNamespace(scale=SHARE, dataset=SimpleNamespace(divisible=divisible))
    reruns._units = images

    def by_mean(best):
        return [
            Contender(record, tuple(SeedRun(record.plan, record.value + more, {}) for more in (0, *runs)))
            for record in best
        ]

    monkeypatch.setattr(reruns, "_by_mean", by_mean)
    return [each.record.number for each in reruns.contenders(records)], reruns.simplest


def test_the_simplest_plan_within_one_standard_error_comes_first(monkeypatch):
    points = (0.9, 5, 9.0), (0.88, 2, 9.0), (0.87, 0, 9.0), (0.86, 0, 1.0)
    order, simplest = contenders_of(monkeypatch, *points)
    assert (simplest.trial, simplest.value, simplest.best, simplest.value_of_best) == (2, 0.87, 0, 0.9)
    assert simplest.noise == pytest.approx(0.03, abs=0.002) and simplest.runs == 1
    # A head on frozen features, then fewer trained stages; the last one is too bad by a point.
    assert order == [2, 1, 0, 3]
    assert contenders_of(monkeypatch, *points, pick="best") == ([0, 1, 2, 3], simplest)
    order, simplest = contenders_of(monkeypatch, (0.9, 2, 9.0), (0.89, 2, 5.0), (0.8, 0, 1.0))
    assert (order, simplest.trial) == ([1, 0, 2], 1)
    assert contenders_of(monkeypatch, (0.9, 5, 9.0), (0.87, 0, 1.0), images=10_000) == ([0, 1], None)


def test_runs_on_the_same_images_do_not_make_the_noise_smaller(monkeypatch):
    points = ((0.9, 5, 9.0), (0.89, 0, 1.0))
    assert contenders_of(monkeypatch, *points, runs=(0.05, -0.05)) == ([0, 1], None)
    order, simplest = contenders_of(monkeypatch, *points, runs=(0.05, -0.05), divisible=False)
    assert (order, simplest.noise, simplest.runs) == ([1, 0], pytest.approx(0.03, abs=0.002), 3)


def test_a_plan_that_is_certainly_worse_is_not_rerun():
    records = board((0.9, 1.0), (0.85, 1.0), (0.75, 1.0), scale=SHARE)
    assert [record.number for record in contending(records, 20, SHARE)] == [0, 1, 2]
    assert [record.number for record in contending(records, 100, SHARE)] == [0, 1]
    assert [record.number for record in contending(records, 10_000, SHARE)] == [0]
    losses = Scale(greater_is_better=False, percent=False)
    records = board((0.1, 1.0), (0.9, 1.0), scale=losses)
    assert [record.number for record in contending(records, 10_000, losses)] == [0, 1]
