"""The linear head: a linear classifier on pooled features, and its fit for a whole path of L2 penalties."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autotl.plan import ClassWeights

L_BFGS = {"maxiter": 1000, "gtol": 1e-6, "ftol": 0.0}
"""Only the gradient decides convergence: with a weak penalty the loss is nearly flat long before the minimum."""

EFFECTIVE = 0.999
"""The effective number of images of a class grows up to 1 / (1 - this): Cui et al. 2019, arXiv 1901.05555, use 0.9 to
0.9999."""


Drop = Callable[[Tensor], Tensor]
"""Dropout of what the last layer of a head gets."""


def keep(features: Tensor) -> Tensor:
    """No dropout."""
    return features


class LinearHead(nn.Module):
    """logits = features @ weight.T + bias. weight: [C, D], bias: [C], float32; shared, without gradients."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = (nn.Parameter(tensor, requires_grad=False) for tensor in (weight, bias))

    def forward(self, features: Tensor, drop: Drop = keep) -> Tensor:
        """[N, D] → logits [N, C]."""
        return F.linear(drop(features), self.weight, self.bias)


@dataclass(frozen=True)
class Scaling:
    """Each feature's mean and standard deviation over the images that a head is fitted on, [D] each."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, features: Tensor) -> "Scaling":
        std, mean = torch.std_mean(features, dim=0, correction=0)
        # A constant feature has no information; dividing it by a rounding error would make it huge.
        constant = std <= 1e-6 * mean.abs().clamp(min=1e-6)
        return cls(mean, torch.where(constant, torch.inf, std))

    def apply(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.std

    def fold(self, head: LinearHead) -> LinearHead:
        """The head on raw features that is equivalent to `head` on scaled ones."""
        weight = head.weight / self.std
        return LinearHead(weight, head.bias - weight @ self.mean)

    def unfold(self, head: LinearHead) -> LinearHead:
        """The head on scaled features that is equivalent to `head` on raw ones."""
        weight = head.weight * torch.where(self.std.isinf(), 0.0, self.std)
        return LinearHead(weight, head.bias + head.weight @ self.mean)


def standardised(features: Tensor) -> Tensor:
    """[N, D] → each feature with mean 0 and standard deviation 1; a constant one becomes 0."""
    return Scaling.of(features).apply(features)


def weights_of(class_weights: ClassWeights, labels: Tensor, classes: int) -> Tensor:
    """The weight of an image of each class, [C], 1 on average over the images.

    `balanced`: N / (C · N_c), so that all classes have the same total weight, as for rare events in King and Zeng 2001.
    `effective`: in proportion to (1 - β) / (1 - β^N_c), with β = `EFFECTIVE`. labels: [N] int64.
    """
    if class_weights == "none":
        return torch.ones(classes, device=labels.device)
    images = torch.bincount(labels, minlength=classes).float()
    present = images.clamp(min=1)
    weights = 1 / present if class_weights == "balanced" else -1 / torch.expm1(present * math.log(EFFECTIVE))
    return weights * len(labels) / (weights * images).sum()


def logistic_path(
    features: Tensor,
    labels: Tensor,
    classes: int,
    penalties: Sequence[float],
    step: Callable[[], None] = lambda: None,
    class_weights: ClassWeights = "none",
) -> list[LinearHead]:
    """A multinomial logistic regression for each of `penalties`, in their order.

    features: [N, D] float32, raw: they are standardised here, and the scaling is folded into the heads. labels: [N]
    int64. The objective is the mean log-loss, weighted by `class_weights`, plus penalty / 2 · ‖W‖². L-BFGS minimises
    it from the strongest penalty to the weakest, each time starting from the previous solution. `step` is called after
    each iteration.
    """
    from scipy.optimize import minimize  # a long import, which a head that is only used does not need

    scaling = Scaling.of(features)
    weights = weights_of(class_weights, labels, classes).to(features.dtype)[labels, None]
    problem = _Regression(scaling.apply(features), F.one_hot(labels, classes) * weights, weights)
    heads: dict[float, LinearHead] = {}
    start = np.zeros((features.shape[1] + 1) * classes)
    for penalty in sorted(set(penalties), reverse=True):
        start = minimize(
            problem.loss_and_gradient,
            start,
            args=(penalty,),
            method="L-BFGS-B",
            jac=True,
            options=L_BFGS,
            callback=lambda _: step(),
        ).x
        heads[penalty] = scaling.fold(problem.head(start))
    return [heads[penalty] for penalty in penalties]


@dataclass(frozen=True)
class _Regression:
    """A multinomial logistic regression as a function of one flat vector: D rows of weights, then one of biases."""

    features: Tensor
    """[N, D], standardised."""
    target: Tensor
    """[N, C], one-hot, times the image's weight."""
    weights: Tensor
    """[N, 1], 1 on average."""

    def loss_and_gradient(self, flat: np.ndarray, penalty: float) -> tuple[float, np.ndarray]:
        weight, bias = self._unpack(flat)
        log_share = torch.addmm(bias, self.features, weight).log_softmax(1)
        loss = penalty / 2 * weight.square().sum() - (self.target * log_share).sum() / len(self.target)
        error = (self.weights * log_share.exp() - self.target) / len(self.target)
        gradient = torch.cat([self.features.T @ error + penalty * weight, error.sum(0, keepdim=True)])
        return loss.item(), gradient.flatten().cpu().double().numpy()

    def head(self, flat: np.ndarray) -> LinearHead:
        weight, bias = self._unpack(flat)
        return LinearHead(weight.T.contiguous(), bias.clone())

    def _unpack(self, flat: np.ndarray) -> tuple[Tensor, Tensor]:
        """[D, C] and [C]."""
        table = torch.from_numpy(flat).to(self.features.dtype).to(self.features.device)
        table = table.view(-1, self.target.shape[1])
        return table[:-1], table[-1]
