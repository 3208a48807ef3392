"""A search by any metric: what is better, what is told to Optuna, and a plugin's metric."""

import json
import time
from statistics import mean

import numpy as np
import optuna
import pytest
from optuna.study import StudyDirection

from autotl import hookimpl
from autotl.errors import DataError, PluginError, StudyError
from autotl.report import frames, pictures, terminal
from autotl.study.search import Search
from autotl.study.select import leaderboard, value_of
from autotl.study.settings import Settings
from autotl.study.watch import Silent
from autotl.tracking import result as results

QUICK = {"reruns": 0, "compare": False, "refit": False}


def search(host, data, watcher=None, **settings):
    values = {
        "data": data,
        "trials": 4,
        "backbones": ("tiny:net", "reference:edges"),
        "strategies": ("linear-probe",),
        "device": "cpu",
        **settings,
    }
    return Search(Settings(**values), host, watcher or Silent(), began=time.monotonic())


class Brier:
    greater_is_better = False

    def __call__(self, labels, probabilities):
        return ((probabilities - np.eye(probabilities.shape[1])[labels]) ** 2).sum(1).mean()


class Plugin:
    def __init__(self, metric):
        self.metric = metric

    @hookimpl
    def register_metrics(self, register):
        register("mine", lambda: self.metric, summary="For a test")


def stored(made):
    return optuna.load_study(study_name=made.folder.definition.optuna, storage=made.folder.storage)


def test_a_search_by_log_loss_selects_the_smallest(host, stripes, capsys):
    made = search(host, stripes, metric="log-loss", reruns=0)
    result = made.run()
    records = list(made.folder.log.records())
    values = [record.value for record in records]
    assert len(set(values)) > 1
    assert result.best.validation == min(values) == pytest.approx(result.best.metrics["val.loss"])
    assert stored(made).direction == StudyDirection.MINIMIZE and stored(made).best_value == min(values)
    assert (result.test.metric, result.test.scale.greater_is_better) == ("log-loss", False)
    assert 0 < result.test.low < result.test.value < result.test.high
    assert result.test.most_frequent == pytest.approx(np.log(3))

    terminal.show_study(made.folder)
    shown = capsys.readouterr().out
    assert f"Test log-loss {result.test.value:#.4g}, 95 % confidence interval {result.test.low:#.4g} to" in shown
    best = next(line for line in shown.splitlines() if line.split()[:1] == [str(result.best.trial)])
    assert f"{result.best.validation:#.4g}" in best
    assert frames.leaderboard(made.folder).index[0] == result.best.trial
    assert pictures.trade_offs(made.folder)[:4] == b"\x89PNG"
    card = (made.folder.bundle / "README.md").read_text()
    assert f"| test log-loss | {result.test.value:#.4g}, between {result.test.low:#.4g} and " in card

    # It goes on in the same direction, also without Optuna's storage; and not by another metric.
    (made.folder.path / "optuna.db").unlink()
    again = search(host, stripes, metric="log-loss", trials=5, reruns=0)
    result = again.run()
    assert stored(again).direction == StudyDirection.MINIMIZE
    assert result.best.validation == min(record.value for record in again.folder.log.records())
    with pytest.raises(StudyError, match=r"metric log-loss → accuracy; scale greater_is_better False → True"):
        search(host, stripes, trials=5).run()


def test_of_the_best_plans_the_one_with_the_smallest_mean_loss_over_seeds_wins(host, stripes):
    made = search(host, stripes, metric="log-loss", strategies=("fine-tune",), prune=False, **{**QUICK, "reruns": 2})
    result = made.run()
    board = leaderboard(made.folder.log.records(), made.folder.definition.scale)
    runs = {record.number: [value_of(record)] for record in board[:3]}
    for line in made.folder.reruns.read_text().splitlines():
        rerun = json.loads(line)
        runs[rerun["trial"]].append(rerun["metrics"]["val.log-loss"])
    assert {len(values) for values in runs.values()} == {3}
    assert result.best.validation == pytest.approx(min(map(mean, runs.values())))
    assert result.best.metrics["val.log-loss"] == sorted(runs[result.best.trial])[1]


def test_a_metric_of_a_plugin_in_a_whole_search(host, stripes):
    host.add(Plugin(Brier()), "a-plugin")
    made = search(host, stripes, metric="mine", strategies=("linear-probe", "fine-tune"), trials=6, reruns=0)
    result = made.run()
    definition, records = made.folder.definition, list(made.folder.log.records())
    assert definition.owners["metrics mine"] == {"(not installed)": "0"}
    ended = [record for record in records if record.state == "complete"]
    assert result.best.validation == min(record.value for record in ended)
    assert all(record.value == record.metrics["val.mine"] for record in ended)
    assert all("val.accuracy" in record.metrics for record in ended)
    epochs = [epoch for record in records for epoch in record.epochs]
    assert epochs and all({"early_stop.mine", "early_stop.accuracy"} <= epoch.keys() for epoch in epochs)
    told = [value for record in records for value, _ in record.told]
    assert told and set(told) <= {epoch["early_stop.mine"] for epoch in epochs}
    assert 0 < result.test.low < result.test.value < result.test.high < 2
    assert result.comparisons["reference:pixels"].value > result.test.value
    assert results.load(made.folder) == result


def test_without_its_plugin_a_study_says_what_it_needs(host, stripes):
    bare = [entry.name for entry in host.metrics]
    host.add(Plugin(Brier()), "a-plugin")
    made = search(host, stripes, metric="mine", trials=1, **QUICK)
    made.run()
    host.metrics.drop(host.metrics["mine"].owner)
    assert [entry.name for entry in host.metrics] == bare
    with pytest.raises(
        StudyError, match=r"The study uses metric 'mine' of \(not installed\) 0, which is not installed"
    ):
        search(host, stripes, metric="mine", trials=2, **QUICK)
    terminal.show_study(made.folder)  # on disk it can be read without the plugin
    with pytest.raises(PluginError, match="Unknown metric 'mine'. List them: autotl plugins metrics|Known"):
        search(host, stripes, metric="mine", study="another")


class Moody(Brier):
    """Fails while `failing`."""

    failing = False

    def __call__(self, labels, probabilities):
        if self.failing:
            raise ZeroDivisionError("not today")
        return super().__call__(labels, probabilities)


class Spoiler(Silent):
    """Lets the metric fail in all trials but the first and the last."""

    def __init__(self, metric):
        self.metric = metric

    def trial_planned(self, number, what, done, total):
        self.metric.failing = 0 < number < total - 1


def test_a_metric_that_fails_fails_the_trial_and_is_named(host, stripes):
    """It is nobody else's fault: the only strategy is drawn on, even after three failures."""
    metric = Moody()
    host.add(Plugin(metric), "a-plugin")
    made = search(host, stripes, Spoiler(metric), metric="mine", trials=6, backbones=("tiny:net",), **QUICK)
    result = made.run()
    records = list(made.folder.log.records())
    failed = [record for record in records if record.state == "failed"]
    assert len(failed) >= 3 and records[-1].state == "complete"
    for record in failed:
        assert record.by_plugin
        assert record.reason.startswith("Metric 'mine' of plugin 'a-plugin' (") and "ZeroDivisionError" in record.reason
    assert result.best.trial in (0, 5)


class Strict(Brier):
    def __call__(self, labels, probabilities):
        raise ValueError("it needs more images")


def test_a_metric_that_the_images_do_not_define_ends_a_search_before_its_first_trial(host, stripes):
    host.add(Plugin(Strict()), "a-plugin")
    for metric, why in (("mine", "it needs more images"), ("top-5", "it needs more than 5 classes, and there are 3")):
        with pytest.raises(
            DataError, match=f"^Metric '{metric}' of plugin .* is not defined for .*: {why}. Use another"
        ):
            search(host, stripes, metric=metric, study=metric).run()
        assert not list((Settings(data=stripes, study=metric).data.parent / "studies" / metric).glob("trials/*"))


def test_a_changed_direction_of_a_metric_is_another_study(host, stripes):
    metric = Brier()
    host.add(Plugin(metric), "a-plugin")
    search(host, stripes, metric="mine", trials=1, **QUICK).run()
    metric.greater_is_better = True
    with pytest.raises(StudyError, match="other settings: scale greater_is_better False → True"):
        search(host, stripes, metric="mine", trials=2, **QUICK).run()
