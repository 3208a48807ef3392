"""Which of the plans wins: the best one, or one that costs less and is nearly as good."""

import math
from collections.abc import Sequence

from autotl.engine.scale import Scale
from autotl.study import select
from autotl.study.settings import BEST, KNEE, WITHIN
from autotl.tracking.log import TrialRecord


def picked(how: str, board: Sequence[TrialRecord], cost: str, scale: Scale) -> list[TrialRecord]:
    """The plans among which `how` picks, the one that it picks first.

    `board`: all plans, best first. `cost`: the name of a metric.

    `knee`: the plans of the Pareto front, first the one farthest above the line between the ends of the front, where
    the study's metric and the logarithm of the cost are scaled to [0, 1]. `within=0.5`: those of the front that are at
    most 0.5 points worse than the best, the cheapest first; if the metric is no share, 0.5 in its own unit.
    """
    if how == BEST:
        return list(board)
    points = {record.number: (scale.order(select.value_of(record)), record.metrics[cost]) for record in board}
    front = [record for record in board if record.number in select.front(points)]
    if how == KNEE:
        gains = _gains([points[record.number] for record in front])
        return [record for _, record in sorted(zip(gains, front, strict=True), key=lambda pair: -pair[0])]
    match = WITHIN.fullmatch(how)
    assert match is not None
    loss = float(match[1]) / (100 if scale.percent else 1)
    most = points[board[0].number][0] + loss + 1e-9
    return [record for record in reversed(front) if points[record.number][0] <= most]


def _gains(front: Sequence[tuple[float, float]]) -> list[float]:
    """How far above the line between the ends each point of a front is, given by `Scale.order` and cost, best first."""
    (best, dearest), (worst, cheapest) = front[0], front[-1]
    if len(front) < 3:
        return [0.0] * len(front)
    rise, run = worst - best, math.log(dearest / cheapest)
    return [(worst - order) / rise - math.log(cost / cheapest) / run for order, cost in front]
