"""Which of the plans wins: the best one, or one that is simpler or costs less and is nearly as good."""

import math
from collections.abc import Sequence

import numpy as np

from autotl.engine.scale import Scale
from autotl.study import select
from autotl.study.settings import KNEE, RERUN, WITHIN
from autotl.tracking.log import TrialRecord

CERTAIN = 3
"""A plan that is worse by more standard errors than these is not rerun."""
ROUNDING = 1e-9
"""How much worse than it is a value may look by rounding."""


def picked(how: str, board: Sequence[TrialRecord], cost: str, scale: Scale) -> list[TrialRecord]:
    """The plans among which `how` picks, the one that it picks first.

    `board`: all plans, best first. `cost`: the name of a metric.

    `best` and `simplest`: those that are rerun before one is picked, best first. `knee`: the plans of the Pareto front,
    first the one farthest above the line between the ends of the front, where the study's metric and the logarithm of
    the cost are scaled to [0, 1]. `within=0.5`: those of the front that are at most 0.5 points worse than the best, the
    cheapest first; if the metric is no share, 0.5 in its own unit.
    """
    if how in RERUN:
        return select.finalists(board)
    points = {record.number: (scale.order(select.value_of(record)), record.metrics[cost]) for record in board}
    front = [record for record in board if record.number in select.front(points)]
    if how == KNEE:
        gains = _gains([points[record.number] for record in front])
        ordered = sorted(zip(gains, front, strict=True), key=lambda pair: -pair[0])
        return [record for _, record in ordered][: select.BEST]
    match = WITHIN.fullmatch(how)
    assert match is not None
    loss = float(match[1]) / (100 if scale.percent else 1)
    most = points[board[0].number][0] + loss + ROUNDING
    return [record for record in reversed(front) if points[record.number][0] <= most][: select.BEST]


def contending(best: Sequence[TrialRecord], images: int, scale: Scale) -> list[TrialRecord]:
    """Those of the finalists, best first, that are not certainly worse than the best one: all but those that are worse
    by more than `CERTAIN` standard errors, on so many `images`. Of a metric that is no share, all."""
    values = np.array([[select.value_of(record)] for record in best])
    orders = [scale.order(float(value)) for value in values[:, 0]]
    most = orders[0] + CERTAIN * noise(values, images, scale) if scale.percent else math.inf
    return [record for record, order in zip(best, orders, strict=True) if order <= most]


def simplest(
    values: np.ndarray, complexity: Sequence[tuple[object, ...]], images: int, scale: Scale
) -> tuple[list[int], float]:
    """The order of plans in which those come first, the simplest before others, that are at most one standard error
    worse than the best (the rule of Breiman et al. 1984), and that error.

    values: as for `noise`. complexity: a sort key of each plan.
    """
    error = noise(values, images, scale)
    orders = [scale.order(float(mean)) for mean in values.mean(1)]
    near = [at for at, order in enumerate(orders) if order <= orders[0] + error + ROUNDING]
    others = [at for at in range(len(orders)) if at not in near]
    return [*sorted(near, key=lambda at: complexity[at]), *others], error


def noise(values: np.ndarray, images: int, scale: Scale) -> float:
    """The standard error of the difference between two plans' means.

    values: [plans, runs], the best plan first; a column has the same images and the same seed. It is estimated from
    what the values deviate by from the means of their rows and columns, as in a design of randomised blocks (Fisher
    1935). With a single run it is that of a share of so many `images`, with two more right and two more wrong (Agresti
    and Coull 1998), if what the plans get right correlates by one half, and 0 for a metric that is no share.
    """
    plans, runs = values.shape
    if runs > 1:
        left = values - values.mean(1, keepdims=True) - values.mean(0) + values.mean()
        return math.sqrt(2 / runs * float((left**2).sum()) / max(1, (plans - 1) * (runs - 1)))
    share = (images * float(values[0, 0]) + 2) / (images + 4)
    return math.sqrt(share * (1 - share) / (images + 4)) if scale.percent else 0.0


def _gains(front: Sequence[tuple[float, float]]) -> list[float]:
    """How far above the line between the ends each point of a front is, given by `Scale.order` and cost, best first."""
    (best, dearest), (worst, cheapest) = front[0], front[-1]
    if len(front) < 3:
        return [0.0] * len(front)
    rise, run = worst - best, math.log(dearest / cheapest)
    return [(worst - order) / rise - math.log(cost / cheapest) / run for order, cost in front]
