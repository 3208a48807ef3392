from dataclasses import replace

import pytest

from autotl.builtin import logistic
from autotl.study import estimate
from autotl.study.settings import Settings
from autotl.testing import lab as labs
from autotl.testing.lab import Lab
from autotl.tracking.log import TrialRecord


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return Lab(labs, tmp_path_factory.mktemp("lab"))


def record(plan, seconds=0.0, epochs=()):
    return TrialRecord(
        number=0, state="complete", params={}, plan=plan, value=1.0, metrics={"seconds": seconds}, seconds=seconds,
        reason="", by_plugin=False, epochs=epochs, kills=0, killed_at="",
    )  # fmt: skip


def test_time_is_reserved_for_each_model_of_an_ensemble(lab, tmp_path):
    board = [record(lab.plan(logistic.probe("2.1")), seconds=6.0)]
    alone, together = (
        estimate.seconds_at_the_end(board, Settings(data=tmp_path, ensemble=models), lab.bench) for models in (1, 3)
    )
    assert together - alone == pytest.approx(2 * 6.0 * lab.bench.refit_factor)


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
