"""Which plan wins, and what it is compared with."""

from collections.abc import Iterable, Mapping

from autotl.backbones.catalogue import Catalogue
from autotl.engine.fit import requires
from autotl.plan import Component, Head, Phase, Pooling, TransferPlan
from autotl.tracking.log import TrialRecord
from autotl.tracking.probe import ProbeRow

PIXELS = "reference:pixels"
PENALTIES = [10.0**power for power in range(-4, 2)]


def leaderboard(records: Iterable[TrialRecord], fingerprint: str | None = None) -> list[TrialRecord]:
    """Completed trials, best first, each plan once; of trials on several versions of the data those on one.

    Equal values are ordered by the log-loss on `rank`, then by the cost of the network.
    """
    best: dict[str, TrialRecord] = {}
    for record in records:
        if record.state == "complete" and record.plan and fingerprint in (None, record.plan.data.fingerprint):
            best.setdefault(record.plan.hash, record)
    return sorted(best.values(), key=lambda record: order(record.value, record.metrics))


def order(value: float | None, metrics: Mapping[str, float]) -> tuple[float, float, float]:
    """The best trial has the least of these."""
    assert value is not None
    return -value, metrics["rank.loss"], metrics["flops"]


def plan_of(record: TrialRecord) -> TransferPlan:
    """The plan of a trial that was carried out."""
    assert record.plan is not None
    return record.plan


def with_seed(plan: TransferPlan, seed: int) -> TransferPlan:
    """The plan with another seed, random weights included."""
    weights = f"random:{seed}" if from_scratch(plan) else plan.weights
    return plan.model_copy(update={"seed": seed, "weights": weights})


def from_scratch(plan: TransferPlan) -> bool:
    """Whether the network began with random weights."""
    return plan.weights.startswith("random:")


def at_random(plan: TransferPlan, catalogue: Catalogue) -> TransferPlan | None:
    """The same plan on the same network with random weights; None where that would be the plan itself."""
    network = catalogue.at_random(plan.network, plan.seed)
    if network == plan.network:
        return None
    return plan.model_copy(update={"backbone": network.backbone, "weights": network.weights})


def on_pixels(plan: TransferPlan, catalogue: Catalogue) -> TransferPlan | None:
    """A linear classifier on raw pixels; None where the reference backbones are not installed."""
    if "reference" not in catalogue.host.backbones:
        return None
    return linear_probe(plan, PIXELS, catalogue.info(PIXELS).names[-1], "avg", catalogue)


def linear_probe(plan: TransferPlan, backbone: str, cut: str, pooling: Pooling, catalogue: Catalogue) -> TransferPlan:
    """A linear classifier on a frozen backbone, for the data of `plan`."""
    network = catalogue.network(backbone, plan.seed)
    none = catalogue.host.augmentations["none"]
    probe = Phase(method="closed-form", frozen=cut, options={"penalty": PENALTIES})
    return TransferPlan(
        backbone=backbone,
        weights=network.weights,
        input=network.input,
        cut=cut,
        head=Head(pooling=pooling),
        augmentation=Component(name="none", owner=none.owner.distribution, version=none.owner.version),
        data=plan.data,
        seed=plan.seed,
        requires=requires(catalogue, backbone, (probe,)),
        phases=(probe,),
    )


def best_cuts(rows: Iterable[ProbeRow]) -> list[ProbeRow]:
    """The best cut of each backbone that the probe found, best first."""
    best: dict[str, ProbeRow] = {}
    for row in rows:
        if row.backbone not in best or row.accuracy > best[row.backbone].accuracy:
            best[row.backbone] = row
    return sorted(best.values(), key=lambda row: -row.accuracy)
