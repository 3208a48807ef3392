"""The temperature of a search's model: from which predictions it comes, and where it is stated."""

import json
import time

import numpy as np
import pytest

from autotl.engine.bench import Bench
from autotl.engine.temperature import Predicted, calibrate
from autotl.export import bundle
from autotl.report import words
from autotl.study.calibrating import calibrated
from autotl.study.reruns import SeedRun
from autotl.study.search import Search
from autotl.study.settings import Settings
from autotl.study.watch import Silent
from autotl.tracking import predictions


def search(host, stripes, **settings):
    usual = {"data": stripes, "backbones": ("tiny:net",), "trials": 4, "device": "cpu", "compare": False}
    return Search(Settings.of({**usual, "strategies": ("linear-probe",), **settings}), host, Silent(), time.monotonic())


def runs_of(made, plan):
    return [SeedRun(plan, 0.0, made.folder.log.read(0).metrics)]


@pytest.mark.parametrize("refit", [True, False])
def test_the_temperature_is_that_of_the_predictions_for_val(host, stripes, refit):
    made = search(host, stripes, reruns=0, refit=refit)
    result = made.run()
    bench = Bench.open(stripes, [result.final.input], made.catalogue, "cpu", seed=0)
    labels, units = bench.dataset.labels("val"), bench.dataset.units("val")
    rows = predictions.read_whole(made.folder.predictions_of(result.best.plan), len(labels), 3)
    assert result.calibration == calibrate([Predicted(rows, labels, units)])
    assert result.calibration.before == pytest.approx(-np.log(rows[np.arange(len(labels)), labels]).mean())
    assert bundle.calibration_of(made.folder.bundle) == result.calibration
    assert bundle.load(made.folder.bundle, made.catalogue).graph.temperature == result.calibration.temperature
    assert json.loads(made.folder.result.read_text())["calibration"]["images"] == len(labels)
    lines = [line for line in words.summary(result) if f" on {len(labels)} validation predictions" in line]
    assert len(lines) == 1


def test_reruns_count_with_the_images_of_their_divisions(host, stripes):
    made = search(host, stripes, trials=6)
    result = made.run()
    assert len(result.best.runs) == 5
    bench = Bench.open(stripes, [result.final.input], made.catalogue, "cpu", seed=0)
    assert result.calibration.images == sum(len(bench.of_division(number).shas("val")) for number in range(5))


def test_a_classifier_with_a_temperature_of_its_own_keeps_it(host, stripes):
    result = search(host, stripes, classifiers=("ridge",), reruns=0).run()
    assert result.calibration.own and result.calibration.temperature == 1
    assert result.calibration.after == result.calibration.before
    lines = list(words.summary(result))
    assert not any("alibrated" in line or "no temperature" in line for line in lines)
    assert any(line.startswith("Predictions are not called sure or unsure: ") for line in lines)  # val has few images


def test_without_predictions_there_is_no_temperature(host, stripes, monkeypatch):
    monkeypatch.setattr(predictions, "FEW", 0)
    made = search(host, stripes, reruns=0)
    result = made.run()
    assert result.calibration is None
    bench = Bench.open(stripes, [result.final.input], made.catalogue, "cpu", seed=0)
    assert calibrated(made.folder, bench, runs_of(made, result.best.plan)) is None
