from dataclasses import replace

import pytest

from autotl.builtin import logistic
from autotl.study import estimate
from autotl.study.estimate import Pace
from autotl.study.settings import Settings
from autotl.testing import lab as labs
from autotl.testing.lab import Lab, sgd
from autotl.tracking.log import TrialRecord

NAMES = ("0.2", "1.2", "2.1")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return Lab(labs, tmp_path_factory.mktemp("lab"))


def record(plan, seconds=0.0, epochs=()):
    return TrialRecord(
        number=0, state="complete", params={}, plan=plan, value=1.0, metrics={"seconds": seconds}, seconds=seconds,
        reason="", by_plugin=False, epochs=epochs, kills=0, killed_at="",
    )  # fmt: skip


def of_epochs(plan, *seconds):
    epochs = tuple({"phase": 1, "epoch": at, "seconds": taken} for at, taken in enumerate(seconds, 1))
    return record(plan, epochs=({"phase": 1, "epoch": 0}, *epochs))


def test_before_a_backbone_was_trained_the_estimate_comes_from_a_few_steps(lab):
    pace = Pace(lab.bench, {"tiny:net": 0.01}.__getitem__)
    images = len(lab.bench.shas("train"))
    assert pace.epoch_seconds("tiny:net") == pytest.approx(0.01 * images)
    ten, twenty = (pace.seconds(lab.plan(sgd(None, NAMES, epochs=epochs))) for epochs in (10, 20))
    assert twenty - ten == pytest.approx(10 * 0.01 * images, rel=0.2)  # and the evaluation of each epoch
    frozen = pace.seconds(lab.plan(sgd("1.2", NAMES[2:], epochs=20)))
    assert frozen < twenty / 2


def test_times_of_trials_correct_the_estimate_and_one_slow_epoch_does_not(lab):
    pace = Pace(lab.bench, {"tiny:net": 1_000.0, "tiny:deep": 1_000.0}.__getitem__)
    plan = lab.plan(sgd(None, NAMES, epochs=20))
    for _ in range(3):
        pace.learn(of_epochs(plan, 9.0, 0.5, 0.5))
    pace.learn(of_epochs(plan, 60.0, 60.0, 60.0))
    assert pace.seconds(plan) == pytest.approx(20 * 0.5, rel=0.1)
    at_random = plan.model_copy(update={"backbone": "tiny:net@random"})
    assert pace.seconds(at_random) == pace.seconds(plan)
    assert pace.seconds(lab.plan(sgd(None, (), epochs=20), backbone="tiny:deep")) > 1_000


def test_time_is_reserved_for_each_model_of_an_ensemble(lab, tmp_path):
    board = [record(lab.plan(logistic.probe("2.1")), seconds=6.0)]
    alone, together = (
        estimate.seconds_at_the_end(board, Settings(data=tmp_path, ensemble=models), lab.bench) for models in (1, 3)
    )
    assert together - alone == pytest.approx(2 * 6.0 * lab.bench.refit_factor)


def test_the_estimate_for_a_head_comes_from_similar_heads(lab):
    pace = Pace(lab.bench, {}.__getitem__)
    probe = lab.plan(logistic.probe("2.1"))
    assert pace.seconds(probe) == 0
    pace.learn(record(probe, seconds=6.0))
    assert pace.seconds(probe) == pytest.approx(6.0)
    assert pace.seconds(probe.model_copy(update={"cut": "0.2"})) == pytest.approx(3.0)  # 8 features instead of 16


def test_the_test_of_a_frozen_backbone_takes_a_pass_of_the_test_images(lab, stripes):
    plan = lab.plan(logistic.probe("2.1"))
    settings = Settings(data=stripes, compare=False)
    bench = lab.bench
    images = len(bench.shas("test"))
    best = [replace(record(plan), metrics={"val.seconds": 0.1})]
    assert estimate.seconds_to_test(best, settings, bench) == pytest.approx(0.1 * images / len(bench.shas("val")))
    seconds = estimate.pass_seconds(plan.network, bench)
    each = bench.pass_seconds[plan.network]
    missing = len(bench.features.missing(plan.network, bench.shas("train", "early_stop", "val")))
    assert seconds == pytest.approx(missing * each)
    bench.pass_seconds[plan.network] = 0.5
    assert estimate.seconds_to_test(best, settings, bench) == 0.5 * images
    assert estimate.seconds_to_test(best, Settings(data=stripes), bench) == 2 * 0.5 * images
    assert estimate.seconds_to_test([], settings, bench) == 0
    bench.features.fill(plan.network, bench.shas("train", "early_stop", "val"))
    assert estimate.pass_seconds(plan.network, bench) == 0


def test_trials_on_other_images_are_ignored(lab):
    pace = Pace(lab.bench, {"tiny:net": 0.01}.__getitem__)
    plan = lab.plan(sgd(None, NAMES))
    before = pace.seconds(plan)
    pace.learn(of_epochs(plan.model_copy(update={"data": plan.data.model_copy(update={"fingerprint": "x"})}), 9.0))
    assert pace.seconds(plan) == before
