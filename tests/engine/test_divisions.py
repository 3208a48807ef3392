"""A plan may be trained and judged with another division of the images outside the test split."""

import numpy as np
import pytest
import tiny
from PIL import Image

from autotl import Phase, PlanError
from autotl.engine.fit import fit, on_all_images
from autotl.plan import DataRef, TransferPlan
from autotl.testing.lab import linear_probe


@pytest.fixture
def bench(host, stripes, tmp_path):
    return tiny.make_bench(host, stripes, tmp_path / "cache")


def plan(bench, division, phase=None):
    data = DataRef(fingerprint=bench.dataset.fingerprint, split_seed=0, division=division)
    return tiny.plan(bench, phase or linear_probe("2.1"), backbone="tiny:net", data=data)


def test_the_division_is_in_the_plan_and_the_study_s_own_is_not_written(bench):
    own, other = plan(bench, 0), plan(bench, 2)
    assert "division" not in own.model_dump()["data"] and other.model_dump()["data"]["division"] == 2
    assert own.hash != other.hash
    assert TransferPlan.from_json(other.to_json()) == other


def test_a_plan_is_judged_on_the_images_of_its_division(bench):
    seen = {}
    for division in range(4):
        fitted = fit(plan(bench, division), bench)
        there = fitted.model.bench
        assert there is bench.of_division(division) and there.shas("test") == bench.shas("test")
        right = fitted.logits("val").argmax(1) == there.labels("val").numpy()
        assert fitted.metrics["val.accuracy"] == pytest.approx(right.mean())
        seen[division] = set(there.shas("val"))
    assert len(set.union(*seen.values())) == sum(map(len, seen.values()))
    again = fit(plan(bench, 3), bench)
    assert again.metrics["val.accuracy"] == fitted.metrics["val.accuracy"]


def test_on_all_images_the_division_makes_no_difference(bench):
    phase = Phase(method="logistic", frozen="2.1", options={"penalty": 0.1})
    refits = [on_all_images(plan(bench, division, phase), {"phase1.penalty": 0.1}, bench) for division in (0, 3)]
    assert refits[0] == refits[1] and refits[0].data.division == 0


def test_a_val_split_that_the_user_chose_is_not_divided_again(host, tmp_path):
    draw = np.random.default_rng(0)
    for split, label, count in (("train", "a", 30), ("train", "b", 30), ("val", "a", 6), ("val", "b", 6)):
        folder = tmp_path / "data" / split / label
        folder.mkdir(parents=True)
        for number in range(count):
            Image.fromarray(draw.integers(0, 255, (32, 32, 3), np.uint8)).save(folder / f"{number}.png")
    bench = tiny.make_bench(host, tmp_path / "data", tmp_path / "cache")
    assert not bench.dataset.divisible
    with pytest.raises(PlanError, match=r"'data.division' is 1, but the val split of these images was given: set it"):
        fit(plan(bench, 1), bench)
