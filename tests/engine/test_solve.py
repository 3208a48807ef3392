"""Methods of plugins, and heads that use several stages."""

import numpy as np
import pytest
import tiny
import torch
from torch.nn import functional as F

from autotl import FittedHead, Head, Phase, PlanError, hookimpl
from autotl.engine.fit import fit, on_all_images
from autotl.engine.heads import logistic_path
from autotl.errors import PluginError
from autotl.export import bundle
from autotl.export.export import export
from autotl.plan import Training


class NearestMean:
    """The nearest class mean, shrunk towards the mean of all images by `shrink`."""

    options = ("shrink", "unit")

    def fit(self, features, labels, classes, options, step):
        step()
        one_hot = F.one_hot(labels, classes).float()
        means = one_hot.T @ features / one_hot.sum(0)[:, None]
        heads = []
        for shrink in options["shrink"]:
            if not 0 <= shrink <= 1:
                raise PlanError(f"shrink is from 0 to 1, not {shrink}.")
            drawn = (1 - shrink) * means + shrink * features.mean(0)
            bias = -drawn.square().sum(1) / 2
            heads.append(FittedHead(drawn, bias, {"shrink": shrink}))
        return heads


class Crooked:
    options = ()

    def fit(self, features, labels, classes, options, step):
        return [FittedHead(features.new_zeros(classes, 1), features.new_zeros(classes), {})]


class Silent(Crooked):
    def fit(self, features, labels, classes, options, step):
        return []


class Chatty:
    """Promises one head for each value, and gives two."""

    options = ("penalty",)

    def fit(self, features, labels, classes, options, step):
        head = features.new_zeros(classes, features.shape[1]), features.new_zeros(classes)
        return [FittedHead(*head, {"penalty": 1.0})] * 2


class Odd:
    """Returns what its only option says."""

    options = ("kind", "x")

    def fit(self, features, labels, classes, options, step):
        weight, bias = features.new_zeros(classes, features.shape[1]), features.new_zeros(classes)
        kind = options["kind"][0]
        if kind == "learned":
            weight.requires_grad_()
        head = {
            "double": lambda: FittedHead(weight.double(), bias.double(), {"x": 1}),
            "infinite": lambda: FittedHead(weight, bias + torch.inf, {"x": 1}),
            "words": lambda: FittedHead(weight, bias, {"x": "one"}),
            "numpy": lambda: FittedHead(weight, bias, {"x": np.float32(1)}),
            "other": lambda: FittedHead(weight, bias, {"x": 3}),
            "unsaid": lambda: FittedHead(weight, bias, {}),
            "pair": lambda: (weight, bias),
            "learned": lambda: FittedHead(weight, bias, {"x": 1}),
        }[kind]()
        yield head


class Scaled:
    """Class means of features of some scale: its options are words, one of them a default."""

    options = ("scale",)
    defaults = {"metric": "euclidean"}

    def fit(self, features, labels, classes, options, step):
        step()
        one_hot = F.one_hot(labels, classes).float()
        heads = []
        for scale in options["scale"]:
            factor = {"far": -1.0, "none": 0.0, "one": 1.0}[scale]
            means = factor * (one_hot.T @ features / one_hot.sum(0)[:, None])
            heads.append(FittedHead(means, -means.square().sum(1) / 2, {"scale": scale, "metric": "euclidean"}))
        return heads


class Methods:
    @hookimpl
    def register_methods(self, register):
        for method in (NearestMean, Crooked, Silent, Chatty, Odd, Scaled):
            register(method.__name__, method, summary="A method for tests")


@pytest.fixture
def bench(host, stripes, tmp_path):
    host.add(Methods(), "methods")
    assert not host.problems
    return tiny.make_bench(host, stripes, tmp_path / "cache")


def plan(bench, *phases, **changes):
    return tiny.plan(bench, *phases, backbone="tiny:net", **changes)


def nearest(**options):
    return Phase(method="NearestMean", frozen="2.1", options={"shrink": [0.0, 0.5, 1.0], "unit": "px", **options})


def test_the_head_with_the_lowest_loss_wins_and_is_refit_on_all_images(bench):
    fitted = fit(plan(bench, nearest()), bench)
    chosen = fitted.metrics["phase1.shrink"]
    features, labels = fitted.model.features("train"), bench.labels("train")
    on_train = NearestMean().fit(features, labels, 3, {"shrink": [0.0, 0.5, 1.0]}, lambda: None)
    judged, truth = fitted.model.features("early_stop"), bench.labels("early_stop")
    loss = [F.cross_entropy(judged @ head.weight.T + head.bias, truth).item() for head in on_train]
    assert chosen == [0.0, 0.5, 1.0][int(np.argmin(loss))]
    assert fitted.metrics["phase1.early_stop.loss_at_selection"] == pytest.approx(min(loss))

    everything = on_all_images(fitted.plan, fitted.metrics, bench)
    assert everything.phases[0].options == {"shrink": [chosen], "unit": "px"}
    last = fit(everything, bench)
    expected = NearestMean().fit(
        last.model.features("train", "early_stop", "val"),
        bench.labels("train", "early_stop", "val"),
        3,
        {"shrink": [chosen]},
        lambda: None,
    )
    assert torch.equal(last.model.head.weight, expected[0].weight)


def test_a_choice_may_be_a_word(bench):
    """Metrics are numbers: they hold its place in the plan's list, and the refit takes the word."""
    words = Phase(method="Scaled", frozen="2.1", options={"scale": ["far", "none", "one"]})
    fitted = fit(plan(bench, words), bench)
    assert fitted.metrics["phase1.scale"] == 2
    assert "phase1.metric" not in fitted.metrics
    assert fitted.plan.words_in(fitted.metrics) == {"phase1.scale": "one"}
    everything = on_all_images(fitted.plan, fitted.metrics, bench)
    assert everything.phases[0].options == {"scale": ["one"]}
    again = fit(everything, bench)
    assert again.plan.words_in(again.metrics) == {"phase1.scale": "one"}
    assert again.metrics["phase1.scale"] == 0


def test_numbers_among_words_keep_their_place():
    phase = Phase(method="any", frozen="2.1", options={"scale": ["auto", 0.5], "shrink": [0.5, 1.0]})
    assert (phase.measure("scale", 0.5), phase.choice("scale", 1.0)) == (1, 0.5)
    assert (phase.measure("shrink", 0.5), phase.choice("shrink", 1.0)) == (0.5, 1.0)


def test_class_weights_apply_to_the_choice_as_to_the_fit(bench):
    """A plan without class weights is the one with equal weights of all images."""
    penalties = [1e-3, 1.0, 1e3]
    heads = {}
    for weights in ("none", "balanced"):
        probe = Phase(method="logistic", frozen="2.1", options={"penalty": penalties, "class_weights": weights})
        bench.dataset._labels[bench.dataset._labels == 2] = 1  # one class has none, another twice as many
        fitted = fit(plan(bench, probe), bench)
        features, labels = fitted.model.features("early_stop"), bench.labels("early_stop")
        by_class = torch.bincount(bench.labels("train"), minlength=3)
        weight = len(bench.labels("train")) / (2 * by_class.clamp(min=1)) if weights == "balanced" else None
        path = logistic_path(fitted.model.features("train"), bench.labels("train"), 3, penalties, class_weights=weights)
        losses = [F.cross_entropy(head(features), labels, weight=weight).item() for head in path]
        assert fitted.metrics["phase1.early_stop.loss_at_selection"] == pytest.approx(min(losses))
        assert fitted.metrics["phase1.penalty"] == penalties[int(np.argmin(losses))]
        heads[weights] = fitted.model.head.weight
    silent = fit(plan(bench, Phase(method="logistic", frozen="2.1", options={"penalty": penalties})), bench)
    assert torch.equal(silent.model.head.weight, heads["none"])
    assert not torch.equal(heads["balanced"], heads["none"])


@pytest.mark.parametrize("weights", ["evenly", ["none", "balanced"]])
def test_logistic_accepts_only_known_class_weights(bench, weights):
    probe = Phase(method="logistic", frozen="2.1", options={"penalty": 0.1, "class_weights": weights})
    with pytest.raises(PlanError, match="class_weights of logistic must be one of none, balanced, effective, not"):
        fit(plan(bench, probe), bench)


@pytest.mark.parametrize(
    ("phase", "error", "says"),
    [
        (nearest(shrink=2.0), PlanError, "shrink is from 0 to 1, not 2.0"),
        (nearest(shrnk=0.5), PlanError, "option of NearestMean 'shrnk'. Did you mean 'shrink'"),
        (nearest(shrink=[]), PlanError, "needs options.shrink: a value or a list"),
        (Phase(method="NearestMean", frozen=None), PlanError, "'frozen' must be the cut '2.1'"),
        (
            Phase(method="NearestMean", frozen="2.1", training=Training(epochs=1, batch_size=1, head_lr=0.1)),
            PlanError,
            "NearestMean fits the head without gradient descent: 'training' must be null",
        ),
        (
            Phase(method="Crooked", frozen="2.1"),
            PluginError,
            "'Crooked' .* it returned a head whose weight is .*it must be \\(3, 16\\), float32",
        ),
        (Phase(method="Silent", frozen="2.1"), PluginError, "'Silent' .* returned 0 heads"),
        (
            Phase(method="Chatty", frozen="2.1", options={"penalty": [1.0]}),
            PluginError,
            "'Chatty' .* returned 2 heads for {'penalty': \\[1.0\\]}",
        ),
        (Phase(method="NearestMeen", frozen="2.1"), PlanError, "training method 'NearestMeen'. Did you mean"),
    ],
)
def test_errors_name_the_wrong_option(bench, phase, error, says):
    with pytest.raises(error, match=says):
        fit(plan(bench, phase), bench)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("double", "torch.float64.*float32, on the features' device"),
        ("infinite", "bias is not finite"),
        ("words", "its head has x 'one' in 'chosen', which is not in \\[1, 2\\]"),
        ("numpy", "in 'chosen': the values must be numbers"),
        ("other", "x 3 in 'chosen', which is not in \\[1, 2\\]"),
        ("unsaid", "x None in 'chosen', which is not in"),
        ("pair", "it returned tuple, not FittedHead"),
    ],
)
def test_an_invalid_head_is_a_fault_of_the_plugin(bench, kind, says):
    phase = Phase(method="Odd", frozen="2.1", options={"kind": kind, "x": [1, 2]})
    with pytest.raises(PluginError, match=f"Method 'Odd' of plugin 'methods' .* fails: .*{says}"):
        fit(plan(bench, phase), bench)


def test_a_head_may_require_gradients(bench):
    phase = Phase(method="Odd", frozen="2.1", options={"kind": "learned", "x": [1, 2]})
    assert not fit(plan(bench, phase), bench).model.head.weight.requires_grad


def test_training_without_an_early_stop_split_needs_one_value(bench):
    with pytest.raises(PlanError, match="cannot choose among several values"):
        fit(plan(bench, nearest(), train_on=("train", "early_stop", "val")), bench)
    fit(plan(bench, nearest(shrink=0.5), train_on=("train", "early_stop", "val")), bench)


def test_a_head_may_use_several_stages(bench, stripes, tmp_path):
    probe = Phase(method="logistic", frozen="2.1", options={"penalty": 0.1})
    tapped = plan(bench, probe, head=Head(pooling="max", taps=("0.2", "1.2")))
    fitted = fit(tapped, bench)
    shas = bench.shas("val")
    parts = [bench.features.read(tapped.network, stage, "max", shas) for stage in ("0.2", "1.2", "2.1")]
    assert torch.equal(fitted.model.features("val"), torch.cat(parts, 1))
    assert fitted.model.head.weight.shape == (3, 8 + 12 + 16)
    alone = fit(plan(bench, probe, head=Head(pooling="max")), bench)
    assert fitted.metrics["parameters"] - alone.metrics["parameters"] == 3 * (8 + 12)

    # Features of a trained network come from the stages themselves, and must be the same.
    model = fitted.model
    model.change(None, "nothing")
    torch.testing.assert_close(model.features("val"), torch.cat(parts, 1), rtol=1e-5, atol=1e-5)

    bundle.save(tmp_path / "bundle", fitted, bench.dataset.classes, {"validation": fitted.metrics})
    loaded = bundle.load(tmp_path / "bundle", bench.catalogue)
    files = [file for _, file in bench.dataset.files("test")]
    expected = torch.from_numpy(fitted.logits("test")).softmax(1).numpy()
    np.testing.assert_allclose(list(loaded.predict(files)), expected, atol=1e-5)
    export(loaded, tmp_path / "bundle", "torch-export", tmp_path / "out", files)  # export compares the two


@pytest.mark.parametrize(
    ("taps", "says"),
    [
        (("1.2", "0.2"), "must name stages before the cut '2.1', each once and in order, from: 0.2, 1.2; not 1.2"),
        (("2.1",), "must name stages before the cut"),
        (("0.2", "0.2"), "each once"),
        (("9.9",), "must name stages before the cut"),
    ],
)
def test_taps_are_earlier_stages_in_order(bench, taps, says):
    probe = Phase(method="logistic", frozen="2.1", options={"penalty": 0.1})
    with pytest.raises(PlanError, match=says):
        fit(plan(bench, probe, head=Head(pooling="avg", taps=taps)), bench)


def test_gradient_descent_uses_the_cut_alone(bench):
    phase = Phase(method="gradient-descent", frozen="2.1", training=Training(epochs=1, batch_size=16, head_lr=0.1))
    with pytest.raises(PlanError, match="leave 'taps' empty"):
        fit(plan(bench, phase, head=Head(pooling="avg", taps=("0.2",))), bench)
