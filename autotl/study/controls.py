"""The baselines that a winner is compared with: a linear probe, raw pixels, training from random weights."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from autotl.backbones.catalogue import Catalogue
from autotl.engine.fit import requires
from autotl.plan import NO_AUGMENTATION, ClassWeights, Head, Phase, Pooling, TransferPlan
from autotl.study import select
from autotl.study.inputs import Inputs
from autotl.tracking.log import TrialRecord
from autotl.tracking.probe import ProbeRow

PIXELS = "reference:pixels"
PROBE_SECONDS = 3.0
"""About how long a linear probe takes."""


@dataclass(frozen=True)
class Control:
    """A plan that the winner is compared with; `measured` if the plan has been run already."""

    name: str
    plan: TransferPlan
    measured: dict[str, float] | None
    seconds: float
    """About how long its plan takes to run."""

    @classmethod
    def known(cls, name: str, record: TrialRecord) -> "Control":
        return cls(name, select.plan_of(record), record.metrics, record.metrics["seconds"])


def controls_of(
    won: TransferPlan,
    seconds: float,
    board: Sequence[TrialRecord],
    probe: Sequence[ProbeRow],
    catalogue: Catalogue,
    inputs: Inputs,
    note: Callable[[str], None],
) -> Iterator[Control]:
    """The controls of a plan that won and took `seconds`; `note` is called with which one is missing, and why."""
    scratch = [record for record in board if select.from_scratch(select.plan_of(record))]
    probes = [record for record in board if select.is_linear_probe(select.plan_of(record))]
    if won.trainings and probes:
        yield Control.known(f"the best linear probe (trial {probes[0].number})", probes[0])
    elif won.trainings and (rows := select.best_cuts(probe)):
        plan = _linear_probe(won, rows[0].backbone, rows[0].cut, rows[0].pooling, catalogue, inputs)
        yield Control(f"a linear probe of {rows[0].backbone} at {rows[0].cut}", plan, None, PROBE_SECONDS)
    pixels = _on_pixels(won, catalogue, inputs)
    if pixels and won.backbone != PIXELS:
        yield Control(PIXELS, pixels, None, PROBE_SECONDS)
    if select.has_random_weights(won):
        return
    if scratch:
        yield Control.known(f"the best training from scratch (trial {scratch[0].number})", scratch[0])
    elif won.trainings:
        # Learning rates for pretrained weights are too low for random ones: the comparison would not be fair.
        note("The winner is not compared with training from scratch: no finished trial started from random weights.")
    elif at_random := _at_random(won, catalogue):
        yield Control("the same frozen backbone with random weights", at_random, None, seconds)


def _at_random(plan: TransferPlan, catalogue: Catalogue) -> TransferPlan | None:
    """The same plan on the same network with random weights; None if that is the plan itself."""
    network = catalogue.at_random(plan.network, plan.seed)
    if network == plan.network:
        return None
    return plan.model_copy(update={"backbone": network.backbone, "weights": network.weights})


def _on_pixels(plan: TransferPlan, catalogue: Catalogue, inputs: Inputs) -> TransferPlan | None:
    """A linear classifier on raw pixels; None if the reference backbones are not installed."""
    if "reference" not in catalogue.host.backbones:
        return None
    return _linear_probe(plan, PIXELS, catalogue.info(PIXELS).names[-1], "avg", catalogue, inputs)


def _linear_probe(
    plan: TransferPlan, backbone: str, cut: str, pooling: Pooling, catalogue: Catalogue, inputs: Inputs
) -> TransferPlan:
    """A linear classifier on a frozen backbone, with the data and the class weights of `plan`."""
    network = inputs.network(backbone, plan.seed)
    weights: ClassWeights = "balanced" if _is_balanced(plan) else "none"
    probe = Phase.linear_probe(cut, weights)
    return TransferPlan(
        backbone=backbone,
        weights=network.weights,
        input=network.input,
        cut=cut,
        head=Head(pooling=pooling),
        augmentation=NO_AUGMENTATION,
        data=plan.data,
        seed=plan.seed,
        requires=requires(catalogue, backbone, (probe,), NO_AUGMENTATION.name),
        phases=(probe,),
    )


def _is_balanced(plan: TransferPlan) -> bool:
    """Whether one of its heads was fitted with balanced class weights."""
    return any(phase.options.get("class_weights") == "balanced" for phase in plan.phases)
