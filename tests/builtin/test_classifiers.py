"""The classifiers besides logistic regression: cases worked out by hand, and other implementations of the same."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.neighbors import NearestCentroid
from torch.nn import functional as F

from autotl.builtin import classifiers
from autotl.contracts import FittedHead
from autotl.engine.heads import Scaling, weights_of
from autotl.errors import PlanError

TWO = torch.tensor([[-1.0], [1.0]]), torch.tensor([0, 1])
"""Two images, one of each class, with one feature, which is standardised already."""


def fitted(method, features, labels, classes, **options):
    defaults = {name: [value] for name, value in getattr(method, "defaults", {}).items()}
    return method.fit(features, labels, classes, {**defaults, **options}, lambda: None)


def scores(head, features):
    return features @ head.weight.T + head.bias


@pytest.fixture
def data():
    """Three unequal classes, 60 images with 8 features of different scales, one of them constant."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.tensor([0] * 40 + [1] * 15 + [2] * 5)
    features = torch.randn(60, 8, generator=draw) * torch.logspace(-2, 2, 8) + 5
    features[:, 0] += 0.02 * labels
    features[:, 7] -= 150 * (labels == 2)
    features[:, 3] = 2.5
    return features, labels


def test_ridge_by_hand():
    """Of y = 1/2 ± x/2 with mean x² = 1, the weight is 1/2 / (1 + penalty)."""
    (line,) = classifiers.Ridge().path(*TWO, 2, torch.ones(2), [1.0])
    torch.testing.assert_close(line[0], torch.tensor([[-0.25], [0.25]]))
    torch.testing.assert_close(line[1], torch.tensor([0.5, 0.5]))


def test_svm_by_hand():
    """Mean (1 - w)² plus penalty / 2 · w² is smallest at w = 2 / (2 + penalty)."""
    (line,) = classifiers.Svm().path(*TWO, 2, torch.ones(2), [2.0])
    torch.testing.assert_close(line[0], torch.tensor([[-0.5], [0.5]]), atol=1e-3, rtol=0)
    torch.testing.assert_close(line[1], torch.zeros(2), atol=1e-3, rtol=0)


def test_temperature_by_hand():
    """Class means -1 and 1 give the scores ∓x - 1/2, whose deviation within an image is 1 for both images."""
    heads = fitted(classifiers.NearestClassMean(), *TWO, 2, temperature=[1.0, 0.5])
    torch.testing.assert_close(scores(heads[0], TWO[0]), torch.tensor([[0.5, -1.5], [-1.5, 0.5]]))
    torch.testing.assert_close(scores(heads[1], TWO[0]), torch.tensor([[1.0, -3.0], [-3.0, 1.0]]))
    assert [head.chosen for head in heads] == [{"temperature": 1.0}, {"temperature": 0.5}]


@pytest.mark.parametrize("weighted", ["none", "balanced"])
@pytest.mark.parametrize("images", [60, 6], ids=["more images than features", "fewer"])
def test_ridge_is_that_of_scikit_learn(data, weighted, images):
    features, labels = (value[:: 60 // images] for value in data)
    scaled = Scaling.of(features).apply(features)
    weights = weights_of(weighted, labels, 3)[labels]
    for penalty, (weight, bias) in zip(
        (0.01, 1.0), classifiers.Ridge().path(scaled, labels, 3, weights, (0.01, 1.0)), strict=True
    ):
        other = Ridge(alpha=penalty * images).fit(scaled, F.one_hot(labels, 3), sample_weight=weights.numpy())
        np.testing.assert_allclose(weight, other.coef_, atol=1e-4)
        np.testing.assert_allclose(bias, other.intercept_, atol=1e-4)


def squared_hinge(weight, bias, features, labels, weights, penalty):
    sides = 2 * F.one_hot(labels, len(bias)) - 1
    loss = (1 - sides * (features @ weight.T + bias)).clamp(min=0).square() * weights[:, None]
    return loss.mean(0) + penalty / 2 * weight.square().sum(1)


def test_svm_minimises_what_it_says(data):
    """No small change of the weights lowers the objective; liblinear's small penalty on the bias is ignored."""
    features, labels = data
    scaled = Scaling.of(features).apply(features)
    weights = weights_of("balanced", labels, 3)[labels]
    draw = torch.Generator().manual_seed(1)
    for penalty, (weight, bias) in zip(
        (0.1, 1.0), classifiers.Svm().path(scaled, labels, 3, weights, (0.1, 1.0)), strict=True
    ):
        least = squared_hinge(weight, bias, scaled, labels, weights, penalty)
        for _ in range(20):
            moved = weight + 0.1 * torch.randn(weight.shape, generator=draw)
            assert (squared_hinge(moved, bias, scaled, labels, weights, penalty) > least).all()


@pytest.mark.filterwarnings("ignore:self.within_class_std_dev_")  # of the constant feature
def test_nearest_class_mean_is_that_of_scikit_learn(data):
    features, labels = data
    scaled = Scaling.of(features).apply(features)
    (head,) = fitted(classifiers.NearestClassMean(), features, labels, 3, temperature=[1.0])
    other = NearestCentroid().fit(scaled, labels).predict(scaled)
    assert scores(head, features).argmax(1).tolist() == other.tolist()


@pytest.mark.parametrize("method", [classifiers.Ridge(), classifiers.Svm()])
def test_class_weights_favour_rare_classes(data, method):
    features, labels = data
    given = {"penalty": [10.0], "temperature": [1.0]}
    plain, balanced = (
        scores(fitted(method, features, labels, 3, **given, class_weights=[name])[0], features).argmax(1)
        for name in ("none", "balanced")
    )
    assert (balanced == 0).sum() < (plain == 0).sum()


@pytest.mark.parametrize("method", [classifiers.Ridge(), classifiers.Svm(), classifiers.NearestClassMean()])
def test_probabilities_are_those_of_the_best_temperature(data, method):
    """On other images of the same kind, the log-loss has its minimum within the range of temperatures."""
    features, labels = data
    given = {"penalty": [1.0]} if "penalty" in method.options else {}
    heads = fitted(method, features, labels, 3, **given, temperature=list(classifiers.TEMPERATURES))
    assert all(isinstance(head, FittedHead) for head in heads)
    losses = [F.cross_entropy(scores(head, features), labels).item() for head in heads]
    assert 0 < losses.index(min(losses)) < len(losses) - 1, losses


@pytest.mark.parametrize(
    ("method", "options", "says"),
    [
        (classifiers.Svm(), {"penalty": [0.0]}, "penalty of svm must be above zero"),
        (classifiers.Ridge(), {"temperature": ["low"]}, "temperature of ridge must be above zero"),
        (
            classifiers.Ridge(),
            {"class_weights": ["rare"]},
            "class_weights of ridge must be one of none, balanced, effective",
        ),
        (
            classifiers.NearestClassMean(),
            {"temperature": [-1.0]},
            "temperature of nearest-class-mean must be above zero",
        ),
    ],
)
def test_an_invalid_option_is_named(data, method, options, says):
    given = {"penalty": [1.0], "temperature": [1.0], **options}
    with pytest.raises(PlanError, match=says):
        fitted(
            method,
            *data,
            3,
            **{name: value for name, value in given.items() if name in (*method.options, "class_weights")},
        )
