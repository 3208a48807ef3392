"""The method `head2toe`: scores features by a regularised fit, then fits a logistic regression on the best of them."""

from typing import ClassVar

import torch
from torch.nn import functional as F

from autotl import FittedHead, PlanError, logistic_path, standardised

CLASS_WEIGHTS = ("none", "balanced", "effective")
ITERATIONS = 200
"""Iterations of the group lasso: the order of the scores converges long before the weights."""


class Select:
    """Options: `scores` is "ridge" or "group-lasso". `strength` is its regularisation: for the group lasso as a share
    of the strength that makes every weight zero, for ridge regression as the penalty on standardised features. `keep`
    is the share of features to keep. `penalty` and `class_weights` are the classifier's; scores use no class weights.
    """

    options = ("scores", "strength", "keep", "penalty")
    defaults: ClassVar = {"class_weights": "none"}

    def fit(self, features, labels, classes, options, step):
        scores, strength = self._one(options, "scores"), self._one(options, "strength")
        class_weights = self._one(options, "class_weights")
        if class_weights not in CLASS_WEIGHTS:
            raise PlanError(f"class_weights of head2toe must be {', '.join(CLASS_WEIGHTS)}, not {class_weights!r}.")
        if scores not in SCORES:
            raise PlanError(f"scores of head2toe must be {' or '.join(SCORES)}, not {scores!r}.")
        # A group lasso of strength 1 keeps no feature.
        for name, most in (("strength", 0.99), ("keep", 1.0), ("penalty", 1e6)):
            for value in options[name]:
                if not isinstance(value, int | float) or not 0 < value <= most:
                    raise PlanError(f"{name} of head2toe must be above 0 and at most {most:g}, not {value!r}.")
        scaled = standardised(features)
        found = SCORES[scores](scaled, F.one_hot(labels, classes).to(scaled.dtype), strength, step)
        order = found.argsort(descending=True, stable=True)[: max(1, int(found.count_nonzero()))]
        heads, fitted = [], {}
        for share in options["keep"]:
            kept = order[: max(1, round(share * features.shape[1]))].sort().values
            if len(kept) not in fitted:  # if few features have a score, several shares keep the same ones
                fitted[len(kept)] = logistic_path(
                    features[:, kept], labels, classes, options["penalty"], step, class_weights
                )
            for head, penalty in zip(fitted[len(kept)], options["penalty"], strict=True):
                weight = features.new_zeros(classes, features.shape[1])
                weight[:, kept] = head.weight
                heads.append(FittedHead(weight, head.bias, {"keep": share, "penalty": penalty}))
        return heads

    def _one(self, options, name):
        if len(options[name]) != 1:
            raise PlanError(f"{name} of head2toe must be one value, not {len(options[name])}.")
        return options[name][0]


def ridge_scores(features, target, strength, step):
    """Norms [D] of the rows of W that minimises the mean squared error plus strength · ‖W‖².

    features: [N, D], standardised; target: [N, C].
    """
    step()
    count, width = features.shape
    # Features of neighbouring stages are nearly equal: single precision would change the scores.
    features, target = (value.to(_precise(value)) for value in (features, target))
    centred = target - target.mean(0)
    if width <= count:
        gram = features.T @ features
        gram.diagonal().add_(strength * count)
        weight = torch.cholesky_solve(features.T @ centred, torch.linalg.cholesky(gram))
    else:
        gram = features @ features.T
        gram.diagonal().add_(strength * count)
        weight = features.T @ torch.cholesky_solve(centred, torch.linalg.cholesky(gram))
    return weight.norm(dim=1)


def group_lasso_scores(features, target, strength, step):
    """Norms [D] of the rows of W that minimises the mean log-loss plus λ · Σ ‖row‖.

    The bias is fixed at the logarithms of the classes' shares. λ is `strength` times the smallest λ at which all of W
    is zero. Minimised by proximal gradient with momentum (FISTA, Beck and Teboulle 2009); each feature's row is a group
    (Yuan and Lin 2006).
    """
    count = len(features)
    bias = target.mean(0).clamp(min=1e-6).log()
    penalty = strength * (features.T @ (target - bias.softmax(0)) / count).norm(dim=1).max()
    # The log-loss of a softmax curves by at most half the largest eigenvalue of the features' covariance.
    rate = 2 / largest_eigenvalue(features)
    weight = ahead = features.new_zeros(features.shape[1], target.shape[1])
    momentum = 1.0
    for _ in range(ITERATIONS):
        step()
        error = (features @ ahead + bias).softmax(1) - target
        moved = ahead - rate * (features.T @ error) / count
        norms = moved.norm(dim=1, keepdim=True)
        shrunk = moved * (1 - rate * penalty / norms.clamp(min=1e-12)).clamp(min=0)
        following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        ahead = shrunk + (momentum - 1) / following * (shrunk - weight)
        weight, momentum = shrunk, following
    return weight.norm(dim=1)


def largest_eigenvalue(features):
    """About the largest eigenvalue of featuresᵀ @ features / N: by twenty power iterations, with a margin of 10 %.

    A value that is a few percent too small does no harm: the bound above is that of the worst case.
    """
    vector = features.new_ones(features.shape[1]) / features.shape[1] ** 0.5
    value = features.new_ones(())
    for _ in range(20):
        vector = features.T @ (features @ vector) / len(features)
        value = vector.norm().clamp(min=1e-12)
        vector = vector / value
    return 1.1 * value


def _precise(value):
    """Double precision, if the device supports it."""
    return torch.float32 if value.device.type == "mps" else torch.float64


SCORES = {"ridge": ridge_scores, "group-lasso": group_lasso_scores}
