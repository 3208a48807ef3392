"""Estimates of plans, from the measured seconds of stages and from trials that have ended."""

import pytest

from autotl.builtin import logistic
from autotl.engine.stage_times import Times, by_flops
from autotl.study.pace import Pace
from autotl.testing import lab as labs
from autotl.testing.lab import Lab, sgd
from autotl.tracking.log import TrialRecord

NAMES = ("0.2", "1.2", "2.1")
TIMES = {"0.2": Times(0.003, 0.01), "1.2": Times(0.002, 0.005), "2.1": Times(0.001, 0.002)}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return Lab(labs, tmp_path_factory.mktemp("lab"))


@pytest.fixture
def pace(lab):
    return Pace(lab.bench, lambda name: TIMES if name == "tiny:net" else by_flops(lab.catalogue.info(name), 1_000.0))


def record(plan, seconds=0.0, epochs=()):
    return TrialRecord(
        number=0, state="complete", params={}, plan=plan, value=1.0, metrics={"seconds": seconds}, seconds=seconds,
        reason="", by_plugin=False, epochs=epochs, kills=0, killed_at="",
    )  # fmt: skip


def of_epochs(plan, *seconds):
    epochs = tuple({"phase": 1, "epoch": at, "seconds": taken} for at, taken in enumerate(seconds, 1))
    return record(plan, epochs=({"phase": 1, "epoch": 0}, *epochs))


def seconds_of_epochs(pace, lab, frozen, count=10):
    trained = NAMES[NAMES.index(frozen) + 1 if frozen else 0 :]
    once, twice = (pace.seconds(lab.plan(sgd(frozen, trained, epochs=epochs))) for epochs in (count, 2 * count))
    return (twice - once) / count, once


@pytest.mark.parametrize(("frozen", "training", "forward"), [(None, 0.017, 0.006), ("0.2", 0.007, 0.003)])
def test_before_a_backbone_was_trained_the_estimate_adds_up_its_stages(lab, pace, frozen, training, forward):
    """Those that are not frozen, for the train images of each epoch and the images that it is judged on; the frozen
    ones once."""
    train, judging, val = (len(lab.bench.shas(split)) for split in ("train", "early_stop", "val"))
    epoch, ten = seconds_of_epochs(pace, lab, frozen)
    assert epoch == pytest.approx(train * training + judging * forward, rel=0.02)  # and the head
    once = (train + judging) * TIMES["0.2"].forward if frozen else 0.0
    assert ten == pytest.approx(10 * epoch + once + val * 0.006, rel=0.05)


def test_frozen_outputs_that_do_not_fit_into_memory_are_computed_in_each_epoch(lab, pace, monkeypatch):
    stored, _ = seconds_of_epochs(pace, lab, "0.2")
    monkeypatch.setattr("autotl.study.pace.fits", lambda *_: False)
    again, _ = seconds_of_epochs(pace, lab, "0.2")
    assert again - stored == pytest.approx(len(lab.bench.shas("train")) * TIMES["0.2"].forward)


def test_times_of_trials_correct_the_estimate_and_one_slow_epoch_does_not(lab, pace):
    plan = lab.plan(sgd(None, NAMES, epochs=20))
    for _ in range(3):
        pace.learn(of_epochs(plan, 9.0, 0.5, 0.5))
    pace.learn(of_epochs(plan, 60.0, 60.0, 60.0))
    assert pace.seconds(plan) == pytest.approx(20 * 0.5, rel=0.1)
    at_random = plan.model_copy(update={"backbone": "tiny:net@random"})
    assert pace.seconds(at_random) == pace.seconds(plan)
    assert pace.seconds(lab.plan(sgd(None, (), epochs=20), backbone="tiny:deep")) > 1_000


def test_the_estimate_for_a_head_comes_from_similar_heads(lab, pace):
    probe = lab.plan(logistic.probe("2.1"))
    assert pace.seconds(probe) == 0
    pace.learn(record(probe, seconds=6.0))
    assert pace.seconds(probe) == pytest.approx(6.0)
    assert pace.seconds(probe.model_copy(update={"cut": "0.2"})) == pytest.approx(3.0)  # 8 features instead of 16


def test_trials_on_other_images_are_ignored(lab, pace):
    plan = lab.plan(sgd(None, NAMES))
    before = pace.seconds(plan)
    pace.learn(of_epochs(plan.model_copy(update={"data": plan.data.model_copy(update={"fingerprint": "x"})}), 9.0))
    assert pace.seconds(plan) == before
