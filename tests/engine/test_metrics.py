import numpy as np
import pytest
from scipy.special import log_softmax

from autotl import hookimpl
from autotl.engine import metrics
from autotl.engine.scale import Scale
from autotl.errors import DataError, PluginError, TrainingError
from autotl.host import Host


def entry_of(thing):
    """A metric of a plugin, registered as `mine`."""

    class Plugin:
        @hookimpl
        def register_metrics(self, register):
            register("mine", lambda: thing, summary="For a test")

    host = Host()
    host.add(Plugin(), "a-plugin")
    assert not host.problems
    return host.metrics["mine"]


def metric(function, **attributes):
    return type(
        "Mine", (), {"greater_is_better": True, "__call__": lambda self, *given: function(*given), **attributes}
    )()


LABELS, EVEN = np.arange(20) % 2, np.full((20, 2), 0.5)


def test_probabilities_have_the_precision_of_float64():
    logits = np.array([[0.0, -60.0], [3.0, 3.0]], np.float32)
    found = metrics.probabilities(logits)
    assert found.dtype == np.float64
    assert np.log(found) == pytest.approx(log_softmax(logits.astype(float), axis=1))
    with pytest.raises(TrainingError, match="does not give finite numbers"):
        metrics.probabilities(np.array([[0.0, np.nan]]))


def test_the_log_loss_of_logits():
    assert metrics.log_loss(np.log([[0.9, 0.1], [0.6, 0.4]]), np.array([0, 1])) == pytest.approx(-np.log(0.36) / 2)


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda labels, given: 1 / 0, "fails: ZeroDivisionError"),
        (lambda labels, given: np.nan, "fails: ValueError: it returned nan, not a finite number"),
        (lambda labels, given: None, "fails: TypeError"),
    ],
)
def test_what_fails_names_its_plugin(function, says):
    with pytest.raises(PluginError, match=f"^Metric 'mine' of plugin 'a-plugin' .* {says}"):
        metrics.measure(entry_of(metric(function)), LABELS, EVEN)


@pytest.mark.parametrize(
    ("thing", "says"),
    [
        (type("Mute", (), {"greater_is_better": True})(), "Mute has no method '__call__'"),
        (lambda labels, probabilities: 0.0, "function has no 'greater_is_better'"),
        (metric(None, __call__=lambda self, labels: 0.0), r"cannot be called as __call__\(labels, probabilities\)"),
        (metric(None, greater_is_better="yes"), "greater_is_better Input should be a valid boolean"),
    ],
)
def test_what_is_no_metric_cannot_be_used(thing, says):
    with pytest.raises(PluginError, match=f"'mine' of plugin 'a-plugin' .*{says}"):
        metrics.scale_of(entry_of(thing))


def test_class_weights_must_be_known():
    with pytest.raises(PluginError, match="its class_weights must be none or balanced, not 'equal'"):
        metrics.class_weights_of(entry_of(metric(None, class_weights="equal")))


def test_names_of_other_columns_are_reserved():
    class Plugin:
        @hookimpl
        def register_metrics(self, register):
            register("loss", dict, summary="For a test")

    host = Host()
    host.add(Plugin(), "a-plugin")
    assert "metric 'loss' is part of autotl itself: use another name" in str(host.problems[0])


def test_a_metric_that_these_images_do_not_define_is_refused_with_its_reason():
    def of_three(labels, probabilities):
        if len(set(labels)) < 3:
            raise ValueError("it needs images of three classes")
        return 0.0

    entry = entry_of(metric(of_three))
    metrics.require_defined(entry, "val", [2, 1, 1])
    with pytest.raises(DataError, match="'mine' of plugin .* not defined for the images of val: it needs images of th"):
        metrics.require_defined(entry, "val", [2, 0, 1])
    with pytest.raises(PluginError, match="ZeroDivisionError"):
        metrics.require_defined(entry_of(metric(lambda *given: 1 / 0)), "val", [2, 1])


def test_the_accuracy_is_always_measured():
    host = Host()
    assert [entry.name for entry in metrics.chosen(host, "log-loss")] == ["log-loss", "accuracy"]
    assert [entry.name for entry in metrics.chosen(host, "accuracy")] == ["accuracy"]
    without = Host(blocked=frozenset(["metrics"]))
    with pytest.raises(PluginError, match="Unknown metric 'accuracy'"):
        metrics.chosen(without, "accuracy")


def test_one_unit_alone_says_nothing_of_others():
    for name in ("accuracy", "macro-f1", "log-loss"):
        score = metrics.score(Host().metrics[name], LABELS, EVEN, np.zeros(20, int))
        assert (score.low, score.high, score.images, score.units) == (None, None, 20, 1)


def test_an_interval_of_its_own_must_be_around_the_value():
    sound = entry_of(metric(lambda *given: 0.5, interval=lambda self, *given: (0.4, 0.5 - 1e-12)))
    found = metrics.score(sound, LABELS, EVEN, np.arange(20))
    assert (found.low, found.high) == (0.4, 0.5)
    for low, high in ((0.6, 0.7), (np.nan, 1), (-np.inf, 1)):
        wrong = entry_of(metric(lambda *given: 0.5, interval=lambda self, *given, ends=(low, high): ends))
        with pytest.raises(PluginError, match="Metric 'mine' of plugin .* has no interval: ValueError: it returned"):
            metrics.score(wrong, LABELS, EVEN, np.arange(20))


def test_what_the_most_frequent_class_alone_would_give():
    labels, entries = np.array([0] * 19 + [2]), Host().metrics
    assert metrics.most_frequent(entries["accuracy"], labels, 3) == 0.95
    assert metrics.most_frequent(entries["balanced-accuracy"], labels, 3) == 0.5
    assert metrics.most_frequent(entries["roc-auc"], labels, 3) == 0.5
    assert metrics.most_frequent(entries["log-loss"], labels, 3) == pytest.approx(
        -0.95 * np.log(0.95) - 0.05 * np.log(0.05)
    )


def test_what_each_class_got():
    labels = np.array([0] * 19 + [2])
    assert metrics.by_class(labels, np.array([0] * 18 + [1, 0])) == [(0, 19, 18), (2, 1, 0)]
    assert metrics.by_class(labels, labels) == [(0, 19, 19), (2, 1, 1)]


def test_a_scale_orders_and_writes_values():
    shares, losses = Scale(), Scale(greater_is_better=False, percent=False)
    assert sorted([0.2, 0.9, 0.5], key=shares.order) == [0.9, 0.5, 0.2]
    assert sorted([0.2, 0.9, 0.5], key=losses.order) == [0.2, 0.5, 0.9]
    assert [shares.text(0.9876), losses.text(0.9876), losses.text(0.5)] == ["98.8%", "0.9876", "0.5000"]
