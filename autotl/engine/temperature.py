"""Temperature scaling: makes a model as sure as it is right, without changing a class.

As in Guo et al. 2017, arXiv 1706.04599, logits are divided by one number, the temperature, which equals raising
probabilities to the power 1 / temperature.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autotl.engine.calibration import ENOUGH, Calibration
from autotl.plan import TransferPlan

TEMPERATURES = 2.0 ** np.linspace(-3, 3, 49)
"""Those that are tried: steps of 9 %, because the log-loss is flat near its minimum. 1 is one of them."""
ONE = len(TEMPERATURES) // 2
FOLDS = 5
"""Of the cross-validation that decides whether the temperature helps."""
SURE = 0.9
"""The share of right predictions from which on a prediction counts as sure."""


@dataclass(frozen=True)
class Predicted:
    """What a model predicts for labelled images that it was not trained on."""

    probabilities: np.ndarray
    """[N, C]."""
    labels: np.ndarray
    """[N] int64."""
    units: np.ndarray
    """[N] integers, the same for copies and images of one group."""


def calibrate(predicted: Sequence[Predicted], own: bool = False) -> Calibration:
    """The temperature with the lowest log-loss on all of these predictions together, and which predictions are sure.

    One prediction more is counted, an average one for which the second most probable class is right: as in Platt 1999
    and Laplace's rule, because models would otherwise become arbitrarily sure if all predictions were right. `own`: the
    classifier has chosen a temperature itself.
    """
    losses, doubts = map(np.concatenate, zip(*map(_losses, predicted), strict=True))
    folds = np.concatenate([_folds(each.units) for each in predicted])
    after = losses[:, ONE].copy()
    for fold in np.unique(folds):
        judged = folds == fold
        if not judged.all():
            after[judged] = losses[judged, _best(losses[~judged], doubts[~judged])]
    before, after = losses[:, ONE].mean(), after.mean()
    best = _best(losses, doubts) if after < before and not own else ONE
    temperature = float(TEMPERATURES[best])
    return Calibration(
        temperature=temperature,
        images=len(losses),
        before=float(before),
        after=float(after if best != ONE else before),
        own=own,
        sure_from=_sure_from(predicted, temperature),
    )


def tempered(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """[N, C] with this temperature; each row sums to 1."""
    if temperature == 1:
        return probabilities
    logs = _logs(probabilities) / temperature
    found: np.ndarray = np.exp(logs - _normalisers(logs)[:, None])
    return found


def has_temperature(plan: TransferPlan, metrics: Mapping[str, float]) -> bool:
    """Whether a training with these metrics has chosen a temperature itself, as some classifiers do."""
    return f"phase{len(plan.phases)}.temperature" in metrics


def _sure_from(predicted: Sequence[Predicted], temperature: float) -> float | None:
    """See `Calibration`: by the share of right predictions as a function of confidence that never falls (isotonic
    regression, Zadrozny and Elkan 2002)."""
    from scipy.optimize import isotonic_regression  # a long import, which a model that is only used does not need

    confidences = np.concatenate([tempered(each.probabilities, temperature).max(1) for each in predicted])
    right = np.concatenate([each.probabilities.argmax(1) == each.labels for each in predicted])
    order = np.lexsort((~right, confidences))
    shares = isotonic_regression(right[order].astype(float)).x
    sure = int((shares >= SURE - 1e-9).sum())
    return float(confidences[order][-sure]) if sure >= ENOUGH else None


def _losses(predicted: Predicted) -> tuple[np.ndarray, np.ndarray]:
    """The log-loss by image and temperature, [N, T], and what it is if the second most probable class is right."""
    logs, rows = _logs(predicted.probabilities), np.arange(len(predicted.labels))
    right = logs[rows, predicted.labels]
    second = np.partition(logs, -2, axis=1)[:, -2]
    normalisers = np.stack([_normalisers(logs / temperature) for temperature in TEMPERATURES], axis=1)
    return normalisers - right[:, None] / TEMPERATURES, normalisers - second[:, None] / TEMPERATURES


def _best(losses: np.ndarray, doubts: np.ndarray) -> int:
    return int((losses.sum(0) + doubts.mean(0)).argmin())


def _folds(units: np.ndarray) -> np.ndarray:
    """A fold for each image, the same for those of one unit."""
    _, numbers = np.unique(units, return_inverse=True)
    folds: np.ndarray = np.random.default_rng(0).permutation(numbers.max() + 1)[numbers] % FOLDS
    return folds


def _normalisers(logs: np.ndarray) -> np.ndarray:
    """[N, C] → [N] the logarithms of the rows' sums."""
    most = logs.max(1)
    found: np.ndarray = most + np.log(np.exp(logs - most[:, None]).sum(1))
    return found


def _logs(probabilities: np.ndarray) -> np.ndarray:
    logs: np.ndarray = np.log(np.maximum(probabilities.astype(np.float64), np.finfo(np.float64).tiny))
    return logs
