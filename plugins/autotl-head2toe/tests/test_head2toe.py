import autotl_head2toe
import pytest
import torch
from autotl_head2toe.selection import SCORES, Select, group_lasso_scores, ridge_scores
from torch.nn import functional as F

from autotl import PlanError, standardised
from autotl.testing import MethodTests, StrategyTests

INFORMATIVE = 5


class TestStrategy(StrategyTests):
    plugin = autotl_head2toe


class TestMethod(MethodTests):
    plugin = autotl_head2toe
    options = {
        "head2toe": {
            "scores": "group-lasso",
            "strength": 0.01,
            "keep": [0.05, 0.15],
            "penalty": [0.01, 0.1],
            "class_weights": "none",
        }
    }


class TestMethodByRidge(MethodTests):
    plugin = autotl_head2toe
    options = {
        "head2toe": {
            "scores": "ridge",
            "strength": 0.1,
            "keep": [0.25, 0.5],
            "penalty": [0.01, 0.1],
            "class_weights": "balanced",
        }
    }


def data(images=200, width=60, classes=4):
    """[N, D] and [N]: the first features separate the classes, the others are noise of another scale."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(images) % classes
    features = torch.randn(images, width, generator=draw)
    features[:, :INFORMATIVE] += 2 * torch.randn(classes, INFORMATIVE, generator=draw)[labels]
    return features * torch.linspace(0.1, 30, width) + 5, labels


@pytest.mark.parametrize("scores", SCORES)
@pytest.mark.parametrize("images", [40, 200])  # fewer images than features, and more
def test_features_that_separate_classes_score_highest(scores, images):
    features, labels = data(images)
    target = F.one_hot(labels, 4).float()
    found = SCORES[scores](standardised(features), target, 0.1, lambda: None)
    assert set(found.topk(INFORMATIVE - 1).indices.tolist()) <= set(range(INFORMATIVE))


def test_ridge_solves_the_normal_equations_with_few_or_many_features():
    for images in (30, 200):
        features, labels = data(images)
        features, target = standardised(features).double(), F.one_hot(labels, 4).double()
        centred = target - target.mean(0)
        gram = features.T @ features + 0.3 * images * torch.eye(60)
        expected = torch.linalg.solve(gram, features.T @ centred).norm(dim=1)
        torch.testing.assert_close(ridge_scores(features, target, 0.3, lambda: None), expected)


def test_group_lasso_is_at_its_minimum():
    """At the minimum each row's gradient points along the row with length λ, or is shorter if the row is zero."""
    features, labels = data()
    features, target = standardised(features).double(), F.one_hot(labels, 4).double()
    bias = target.mean(0).log()
    penalty = 0.2 * (features.T @ (target - bias.softmax(0)) / len(features)).norm(dim=1).max()
    scores = group_lasso_scores(features, target, 0.2, lambda: None)
    assert 0 < scores.count_nonzero() < 30

    weight = torch.zeros(60, 4, dtype=torch.float64, requires_grad=True)
    for _ in range(3000):  # plain proximal gradient, slow but reliable
        loss = F.cross_entropy(features @ weight + bias, labels)
        (gradient,) = torch.autograd.grad(loss, weight)
        with torch.no_grad():
            moved = weight - 0.5 * gradient
            norms = moved.norm(dim=1, keepdim=True)
            weight.copy_(moved * (1 - 0.5 * penalty / norms).clamp(min=0))
    torch.testing.assert_close(scores, weight.detach().norm(dim=1), atol=1e-3, rtol=1e-2)


def test_a_strength_of_nearly_one_keeps_the_most_informative_feature():
    features, labels = data()
    options = {
        "scores": ["group-lasso"],
        "strength": [0.99],
        "keep": [0.1, 0.5],
        "penalty": [0.1],
        "class_weights": ["none"],
    }
    heads = Select().fit(features, labels, 4, options, lambda: None)
    target = F.one_hot(labels, 4).float()
    most = (standardised(features).T @ (target - target.mean(0))).norm(dim=1).argmax()
    assert [head.weight.any(0).nonzero().flatten().tolist() for head in heads] == [[most], [most]]


def test_only_kept_features_have_weights_and_constant_ones_have_none():
    features, labels = data()
    features[:, 7] = 3.0
    options = {"scores": ["ridge"], "strength": [0.1], "keep": [0.1, 1.0], "penalty": [0.1], "class_weights": ["none"]}
    few, most = Select().fit(features, labels, 4, options, lambda: None)
    assert few.weight.any(0).sum() == 6
    assert most.weight.any(0).sum() == 59
    assert not most.weight[:, 7].any()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"scores": ["entropy"]}, "scores of head2toe must be ridge or group-lasso, not 'entropy'"),
        ({"scores": ["ridge", "group-lasso"]}, "scores of head2toe must be one value, not 2"),
        ({"keep": [0.0]}, "keep of head2toe must be above 0 and at most 1, not 0.0"),
        ({"keep": [1.5]}, "keep of head2toe must be above 0"),
        ({"strength": ["weak"]}, "strength of head2toe must be above 0"),
        ({"strength": [1.0]}, "strength of head2toe must be above 0 and at most 0.99"),
        ({"penalty": [-1]}, "penalty of head2toe must be above 0"),
        ({"class_weights": ["evenly"]}, "class_weights of head2toe must be none, balanced, effective, not 'evenly'"),
    ],
)
def test_bad_options_are_named(change, says):
    features, labels = data()
    options = {"scores": ["ridge"], "strength": [0.1], "keep": [0.5], "penalty": [0.1], "class_weights": ["none"]}
    with pytest.raises(PlanError, match=says):
        Select().fit(features, labels, 4, {**options, **change}, lambda: None)
