"""Which plans and which cuts are best."""

import math
from collections.abc import Iterable, Mapping, Sequence

from autotl.engine.scale import Scale
from autotl.plan import Minimized, TransferPlan
from autotl.study.costs import COSTS
from autotl.tracking.log import TrialRecord
from autotl.tracking.probe import ProbeRow

BEST = 3
"""How many of the best plans are rerun with new seeds."""
HEADS = 10
"""Of how many of the best heads on frozen features one is rerun with them."""
HEAD_TURNS = 9
"""How often those heads are rerun, which takes little time: each time a fifth of the images outside the test split is
in `val`, so with the trial's own run that is about twice five folds."""
LOSS_DIGITS = 3
"""Decimals of a log-loss that are shown and compared."""


def leaderboard(records: Iterable[TrialRecord], scale: Scale, fingerprint: str | None = None) -> list[TrialRecord]:
    """Completed trials, best first, each plan once; with a fingerprint only those on that version of the data.

    Equal values are ordered by the rounded log-loss on `val`, then by the FLOPs of the network.
    """
    best: dict[str, TrialRecord] = {}
    for record in records:
        if record.state == "complete" and record.plan and fingerprint in (None, record.plan.data.fingerprint):
            best.setdefault(record.plan.hash, record)
    return sorted(best.values(), key=lambda record: order(value_of(record), record.metrics, scale))


def finalists(board: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The best of the plans that train the network, and of those that fit a head on frozen features, in their order."""
    trained = [record for record in board if plan_of(record).trainings][:BEST]
    heads = [record for record in board if not plan_of(record).trainings][:HEADS]
    numbers = {record.number for record in (*trained, *heads)}
    return [record for record in board if record.number in numbers]


def order(value: float, metrics: Mapping[str, float], scale: Scale) -> tuple[float, float, float]:
    """A sort key: the best trial has the smallest."""
    return scale.order(value), round(metrics["val.loss"], LOSS_DIGITS), metrics["flops"]


def front(points: Mapping[int, tuple[float, float]]) -> set[int]:
    """The Pareto front of trials, given by number with `Scale.order` and cost: no other is as good and cheaper."""
    found = set()
    cheapest = float("inf")
    for number, (_, cost) in sorted(points.items(), key=lambda item: item[1]):
        if cost < cheapest:
            cheapest = cost
            found.add(number)
    return found


def value_of(record: TrialRecord) -> float:
    """The value of a completed trial."""
    assert record.value is not None
    return record.value


def values_of(record: TrialRecord, minimize: Minimized | None) -> list[float] | None:
    """What Optuna is told of a trial: its value, and the cost that is minimised, too; None unless it is complete."""
    if record.state != "complete":
        return None
    return [value_of(record), *([record.metrics[COSTS[minimize].metric]] if minimize else [])]


def plan_of(record: TrialRecord) -> TransferPlan:
    """The plan of a completed trial."""
    assert record.plan is not None
    return record.plan


def with_seed(plan: TransferPlan, seed: int) -> TransferPlan:
    """The plan with another seed, random weights included."""
    weights = f"random:{seed}" if has_random_weights(plan) else plan.weights
    return plan.model_copy(update={"seed": seed, "weights": weights})


def depends_on_seed(plan: TransferPlan) -> bool:
    """Whether another seed would give another result."""
    return bool(plan.trainings) or has_random_weights(plan)


def complexity(record: TrialRecord) -> tuple[bool, int, float]:
    """A sort key: the simplest plan has the smallest.

    A head on frozen features is simpler than any training, then fewer trained stages are, then fewer FLOPs.
    """
    trainings = plan_of(record).trainings
    stages = {stage for training in trainings for stage in training.stage_lr}
    return bool(trainings), len(stages), record.metrics["flops"]


def has_random_weights(plan: TransferPlan) -> bool:
    """Whether the network starts with random weights."""
    return plan.weights.startswith("random:")


def is_pretrained(plan: TransferPlan) -> bool:
    """Whether the network starts with weights from a file."""
    return plan.weights.startswith("sha256:")


def from_scratch(plan: TransferPlan) -> bool:
    """Whether the network is trained from random weights."""
    return bool(plan.trainings) and has_random_weights(plan)


def by_cut(rows: Iterable[ProbeRow]) -> dict[str, float]:
    """The accuracy at each cut of a backbone, in the order of its rows, with the best pooling."""
    found: dict[str, float] = {}
    for row in rows:
        found[row.cut] = max(row.accuracy, found.get(row.cut, 0.0))
    return found


def starting_cuts(rows: Iterable[ProbeRow]) -> list[ProbeRow]:
    """The cut of each backbone that is tried first, of the best backbone first.

    It is the last one whose accuracy is at most one standard error below the best: with few images an early cut is
    often the best one by chance.
    """
    of_backbone: dict[str, list[ProbeRow]] = {}
    for row in rows:
        of_backbone.setdefault(row.backbone, []).append(row)
    best = {name: max(those, key=lambda row: row.accuracy) for name, those in of_backbone.items()}
    order = sorted(best, key=lambda name: -best[name].accuracy)
    return [_latest(of_backbone[name], best[name]) for name in order]


def _latest(rows: Sequence[ProbeRow], best: ProbeRow) -> ProbeRow:
    error = math.sqrt(best.accuracy * (1 - best.accuracy) / best.images) if best.images else 0.0
    near = [row for row in rows if row.accuracy >= best.accuracy - error]
    return max((row for row in near if row.cut == near[-1].cut), key=lambda row: row.accuracy)
