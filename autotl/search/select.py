"""Which plan wins, and what it is compared with."""

from collections.abc import Iterable, Sequence

from autotl.backbones.catalogue import RANDOM, Catalogue
from autotl.plan import Head, Phase, TransferPlan
from autotl.tracking.log import TrialRecord

PIXELS = "reference:pixels"


def leaderboard(records: Iterable[TrialRecord], fingerprint: str | None = None) -> list[TrialRecord]:
    """Completed trials, best first, each plan once; of trials on several versions of the data those on one.

    Equal values are ordered by the log-loss on `rank`, then by the cost of the network.
    """
    best: dict[str, TrialRecord] = {}
    for record in records:
        if record.state == "complete" and record.plan and fingerprint in (None, record.plan.data.fingerprint):
            best.setdefault(record.plan.hash, record)
    return sorted(best.values(), key=_order)


def _order(record: TrialRecord) -> tuple[float, float, float]:
    assert record.value is not None
    return -record.value, record.metrics["rank.loss"], record.metrics["flops"]


def at_random(plan: TransferPlan) -> TransferPlan | None:
    """The same plan on the same network with random weights; None where that would be the plan itself."""
    if not plan.weights.startswith("sha256:"):
        return None
    return plan.model_copy(update={"backbone": plan.backbone + RANDOM, "weights": f"random:{plan.seed}"})


def on_pixels(plan: TransferPlan, catalogue: Catalogue) -> TransferPlan | None:
    """A linear classifier on raw pixels, on the same images; None where that is what won, or is not installed."""
    closed_form = [phase for phase in plan.phases if phase.method == "closed-form"]
    if plan.backbone == PIXELS or not closed_form or "reference" not in catalogue.host.backbones:
        return None
    info = catalogue.info(PIXELS)
    cut = info.names[-1]
    return plan.model_copy(
        update={
            "backbone": PIXELS,
            "weights": catalogue.weights(PIXELS, plan.seed),
            "input": info.input,
            "cut": cut,
            "head": Head(pooling="avg"),
            "requires": catalogue.requires(PIXELS),
            "phases": (Phase(method="closed-form", frozen=cut, options=closed_form[0].options),),
        }
    )


def first_guesses(rows: Sequence[tuple[str, float, dict[str, object]]], most: int) -> list[dict[str, object]]:
    """Parameters to try first: the best cut of each backbone that the probe found, best first.

    rows: (backbone, accuracy, parameters).
    """
    best: dict[str, tuple[float, dict[str, object]]] = {}
    for backbone, accuracy, params in rows:
        if backbone not in best or accuracy > best[backbone][0]:
            best[backbone] = accuracy, params
    ordered = sorted(best.values(), key=lambda pair: -pair[0])
    return [params for _, params in ordered[:most]]
