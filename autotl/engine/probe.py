"""The probe: a cheap accuracy estimate for every (backbone, cut, pooling) before the search.

It ranks starting points and excludes nothing.
"""

import torch
from torch import Tensor

from autotl.engine.heads import Scaling

NEIGHBOURS = 5
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)


def ridge_accuracy(features: Tensor, labels: Tensor, classes: int, units: Tensor) -> float:
    """Leave-one-unit-out accuracy of ridge regression on one-hot labels, at the best of a few penalties.

    features: [N, D] float32, raw. labels, units: [N] int64; images of one unit are copies, or of one group. One
    eigendecomposition gives all leave-one-out results (Allen 1974): the leave-one-out residual of an image is its
    residual divided by one minus its leverage. For a unit of several images this becomes a system of linear equations.
    """
    scaled = Scaling.of(features).apply(features).cpu().double()  # not every device has float64
    labels = labels.cpu()
    several = _of_several(units.cpu())
    target = torch.nn.functional.one_hot(labels, classes).double()
    mean = target.mean(0)
    basis, strength = _left_singular(scaled)
    inner = basis.T @ (target - mean)
    best = 0.0
    for penalty in PENALTIES:
        kept = strength / (strength + penalty * len(features))
        fitted = mean + basis @ (kept[:, None] * inner)
        leverage = (basis.square() @ kept + 1 / len(features)).clamp(max=1 - 1e-9)
        residual = target - fitted
        left_out = target - residual / (1 - leverage)[:, None]
        for unit in several:
            rows = basis[unit]
            one = (1 + 1e-9) * torch.eye(unit.shape[1], dtype=torch.float64)
            others = one - (rows * kept) @ rows.mT - 1 / len(features)
            left_out[unit] = target[unit] - torch.linalg.solve(others, residual[unit])
        best = max(best, (left_out.argmax(1) == labels).double().mean().item())
    return best


def neighbour_accuracy(features: Tensor, labels: Tensor, classes: int, units: Tensor) -> float:
    """The accuracy of the vote of each image's `NEIGHBOURS` nearest images of other units, by cosine; of equal votes
    the more similar images win.

    features: [N, D] float32, raw. labels, units: [N] int64, as for `ridge_accuracy`.
    """
    scaled = torch.nn.functional.normalize(Scaling.of(features).apply(features).cpu().double())
    labels, units = labels.cpu(), units.cpu()
    likeness = (scaled @ scaled.T).masked_fill(units[:, None] == units, -2.0)
    nearest = likeness.topk(min(NEIGHBOURS, len(labels)), dim=1)
    weights = (nearest.values > -2).double() * (1 + 1e-3 * nearest.values)
    votes = torch.zeros(len(labels), classes, dtype=torch.float64).scatter_add_(1, labels[nearest.indices], weights)
    return (votes.argmax(1) == labels).double().mean().item()


def _of_several(units: Tensor) -> list[Tensor]:
    """The positions of the images of all units of the same size, [units, size], for each size above 1."""
    _, at, counts = units.unique(return_inverse=True, return_counts=True)
    each = at.argsort(stable=True).split(counts.tolist())
    return [torch.stack([unit for unit in each if len(unit) == size]) for size in set(counts.tolist()) - {1}]


def _left_singular(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Left singular vectors [N, R] and squared singular values [R], from the smaller Gram matrix."""
    n, d = matrix.shape
    if d >= n:
        strength, vectors = torch.linalg.eigh(matrix @ matrix.T)
    else:
        strength, right = torch.linalg.eigh(matrix.T @ matrix)
        vectors = matrix @ right / strength.clamp(min=1e-30).sqrt()
    real = strength > strength.max() * 1e-10
    return vectors[:, real], strength[real]
