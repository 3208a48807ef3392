"""Carrying out a plan: the lower half of the hourglass. Nothing here knows of trials or studies."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from autotl.data.split import Split
from autotl.engine import metrics
from autotl.engine.bench import Bench
from autotl.engine.closed_form import closed_form
from autotl.engine.model import Model
from autotl.engine.observe import Nobody, Observer
from autotl.engine.train import sgd
from autotl.errors import PlanError, unknown
from autotl.plan import Phase, Stop, TransferPlan

Method = Callable[[Model, int], dict[str, float]]
"""Carries out a phase, by its number in the plan from 1, on the model; returns what was measured on the way."""

METHODS: dict[str, Method] = {"closed-form": closed_form, "sgd": sgd}


@dataclass(frozen=True)
class Fitted:
    """A plan that was carried out: its model, and what was measured on the way."""

    plan: TransferPlan
    model: Model
    metrics: dict[str, float]

    def logits(self, split: Split) -> np.ndarray:
        """[N, C] for the images of a split, in the data set's order."""
        return self.model.logits(split).cpu().numpy()


def fit(plan: TransferPlan, bench: Bench, observer: Observer | None = None) -> Fitted:
    """Train what the plan says, and measure it on `rank` unless it is trained on that too.

    Raises: PlanError when the plan cannot be carried out with what is installed; TrainingError when its
    training breaks down.
    """
    check(plan, bench)
    began = time.perf_counter()
    bench.decode(plan.input)
    model = Model(plan, bench, observer or Nobody())
    measured: dict[str, float] = {}
    for number, phase in enumerate(plan.phases, 1):
        facts = METHODS[phase.method](model, number)
        measured |= {f"phase{number}.{name}": value for name, value in facts.items()}
    fitted = Fitted(plan, model, measured)
    if "rank" not in plan.train_on:
        judging = time.perf_counter()
        logits, labels = fitted.logits("rank"), bench.dataset.labels("rank")
        for name, metric in metrics.METRICS.items():
            measured[f"rank.{name}"] = metric(labels, logits.argmax(1))
        measured["rank.loss"] = metrics.log_loss(logits, labels)
        measured["rank.seconds"] = time.perf_counter() - judging
    info = bench.catalogue.info(plan.backbone, plan.input)
    assert model.head is not None  # a plan has at least one phase
    measured["parameters"] = info.parameters(plan.cut) + model.head.weight.numel() + model.head.bias.numel()
    measured["flops"] = info.flops(plan.cut) + 2 * model.head.weight.numel()
    measured["seconds"] = time.perf_counter() - began
    return fitted


def is_random(plan: TransferPlan) -> bool:
    """Whether another seed would give another result."""
    return any(phase.method != "closed-form" for phase in plan.phases)


def on_all_images(plan: TransferPlan, measured: Mapping[str, float], bench: Bench) -> TransferPlan:
    """The plan that trains the same setup on every image but the sealed ones.

    What was chosen when the plan itself was carried out, the penalty and the epoch, is taken from what was
    `measured` then.
    """

    def fixed(phase: Phase, number: int) -> Phase:
        if f"phase{number}.penalty" in measured:
            options = {**phase.options, "penalties": [measured[f"phase{number}.penalty"]]}
            return phase.model_copy(update={"options": options})
        if phase.stop and phase.stop.patience:
            return phase.model_copy(update={"stop": Stop(after=int(measured[f"phase{number}.best_epoch"]))})
        return phase

    splits = tuple(split for split in ("train", "stop", "rank") if bench.shas(split))
    phases = tuple(fixed(phase, number) for number, phase in enumerate(plan.phases, 1))
    return plan.model_copy(update={"train_on": splits, "phases": phases})


def check(plan: TransferPlan, bench: Bench) -> None:
    """Raises: PlanError when the plan was made with other versions, stages or input than are here."""
    catalogue = bench.catalogue
    have = catalogue.requires(plan.backbone)
    for name, wanted in plan.requires.items():
        if have.get(name) != wanted:
            raise PlanError(
                f"The plan was made with {name} {wanted[:20]}, here is {have.get(name, 'none')[:20]}. Install that "
                f"version, or delete '{name}' from the plan's 'requires' to train it with what is here."
            )
    inputs = catalogue.inputs(plan.backbone)
    if plan.input not in inputs:
        raise PlanError(f"'{plan.backbone}' takes its input as {' or '.join(map(str, inputs))}, not {plan.input}.")
    known = catalogue.info(plan.backbone).names
    for stage in (plan.cut, *(phase.frozen for phase in plan.phases if phase.frozen)):
        if stage not in known:
            raise PlanError(unknown(f"stage of {plan.backbone}", stage, known))
    for phase in plan.phases:
        if phase.method not in METHODS:
            raise PlanError(unknown("training method", phase.method, METHODS))
        if phase.stop and (phase.stop.after or 0) > phase.epochs:
            raise PlanError(f"'stop.after' is {phase.stop.after}, more than the phase's {phase.epochs} epochs.")
        if phase.frozen and known.index(phase.frozen) > known.index(plan.cut):
            raise PlanError(f"'frozen' is '{phase.frozen}', which comes after the cut '{plan.cut}'.")
    poolings = catalogue.info(plan.backbone).stage(plan.cut).poolings
    if plan.head.pooling not in poolings:
        raise PlanError(unknown(f"pooling after {plan.cut}", plan.head.pooling, poolings))
    augmentations = catalogue.host.augmentations
    if plan.augmentation.name not in augmentations:
        raise PlanError(unknown("augmentation", plan.augmentation.name, [entry.name for entry in augmentations]))
