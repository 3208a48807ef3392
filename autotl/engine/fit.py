"""Carrying out a plan: the lower half of the hourglass. Nothing here knows of trials or studies."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from autotl.contracts import ModelCard
from autotl.data.dataset import Dataset
from autotl.data.split import Split
from autotl.engine import metrics
from autotl.engine.features import FeatureStore
from autotl.engine.heads import LinearHead, logistic_path
from autotl.errors import PlanError, unknown
from autotl.plan import Phase, TransferPlan


@dataclass(frozen=True)
class Bench:
    """What a plan is carried out with: the data and the stores that all plans share."""

    dataset: Dataset
    features: FeatureStore

    def shas(self, *splits: Split) -> list[str]:
        return self.dataset.shas(*splits)

    def labels(self, *splits: Split) -> Tensor:
        return torch.from_numpy(self.dataset.labels(*splits)).to(self.features.device)


@dataclass(frozen=True)
class Fitted:
    """A plan that was carried out: its head, and what was measured on the way."""

    plan: TransferPlan
    head: LinearHead
    metrics: dict[str, float]
    bench: Bench

    def logits(self, split: Split) -> np.ndarray:
        """[N, C] for the images of a split, in the data set's order."""
        return self.head(_features(self.plan, self.bench, split)).cpu().numpy()


def fit(plan: TransferPlan, bench: Bench) -> Fitted:
    """Train what the plan says, and measure it on `rank` unless it is trained on that too.

    Raises: PlanError when the plan cannot be carried out with what is installed.
    """
    check(plan, bench)
    began = time.perf_counter()
    head, measured = None, {}
    for phase in plan.phases:
        method = METHODS.get(phase.method)
        if method is None:
            raise PlanError(unknown("training method", phase.method, METHODS))
        head, facts = method(plan, phase, bench)
        measured.update(facts)
    assert head is not None  # a plan has at least one phase
    fitted = Fitted(plan, head, measured, bench)
    if "rank" not in plan.train_on:
        logits, labels = fitted.logits("rank"), bench.dataset.labels("rank")
        for name, metric in metrics.METRICS.items():
            measured[f"rank.{name}"] = metric(labels, logits.argmax(1))
        measured["rank.loss"] = metrics.log_loss(logits, labels)
    info = bench.features.catalogue.info(plan.backbone)
    size = head.weight.numel() + head.bias.numel()
    measured["parameters"] = info.parameters(plan.cut) + size
    measured["flops"] = info.flops(plan.cut) + 2 * head.weight.numel()
    measured["seconds"] = time.perf_counter() - began
    return fitted


def on_all_images(fitted: Fitted) -> TransferPlan:
    """The plan that trains the same setup on every image but the sealed ones, with what was chosen held fixed."""
    plan = fitted.plan
    phases = [
        phase.model_copy(update={"options": {**phase.options, "penalties": [fitted.metrics["penalty"]]}})
        if phase.method == "closed-form"
        else phase
        for phase in plan.phases
    ]
    splits = tuple(split for split in ("train", "stop", "rank") if fitted.bench.shas(split))
    return plan.model_copy(update={"train_on": splits, "phases": tuple(phases)})


def check(plan: TransferPlan, bench: Bench) -> None:
    """Raises: PlanError when the plan was made with other versions, stages or input than are here."""
    catalogue = bench.features.catalogue
    card: ModelCard = catalogue.card(plan.backbone)
    have = catalogue.requires(plan.backbone)
    for name, wanted in plan.requires.items():
        if have.get(name) != wanted:
            raise PlanError(
                f"The plan was made with {name} {wanted[:20]}, here is {have.get(name, 'none')[:20]}. Install that "
                f"version, or delete '{name}' from the plan's 'requires' to train it with what is here."
            )
    if plan.input != card.input:
        raise PlanError(f"'{plan.backbone}' takes its input as {card.input}, the plan says {plan.input}.")
    known = catalogue.info(plan.backbone).names
    for stage in (plan.cut, *(phase.frozen for phase in plan.phases if phase.frozen)):
        if stage not in known:
            raise PlanError(unknown(f"stage of {plan.backbone}", stage, known))
    poolings = catalogue.info(plan.backbone).stage(plan.cut).poolings
    if plan.head.pooling not in poolings:
        raise PlanError(unknown(f"pooling after {plan.cut}", plan.head.pooling, poolings))


def closed_form(plan: TransferPlan, phase: Phase, bench: Bench) -> tuple[LinearHead, dict[str, float]]:
    """A linear head on frozen features, at every penalty of `phase.options["penalties"]` at once.

    Of several penalties the one with the lowest log-loss on `stop` wins, and the head is fitted with it
    again with `stop` added to what is trained on. Without a `stop` split, `rank` chooses.
    """
    penalties = _penalties(plan, phase)
    heads = _heads(plan, bench, plan.train_on, penalties)
    if len(penalties) == 1:
        return heads[0], {"penalty": penalties[0]}
    judges: list[Split] = [split for split in ("stop", "rank") if split not in plan.train_on and bench.shas(split)]
    if not judges:
        raise PlanError("closed-form cannot choose among several penalties when it trains on stop and rank.")
    judge = judges[0]
    features, labels = _features(plan, bench, judge), bench.labels(judge)
    losses = [torch.nn.functional.cross_entropy(head(features), labels).item() for head in heads]
    chosen = int(np.argmin(losses))
    head = heads[chosen]
    if judge == "stop":
        (head,) = _heads(plan, bench, (*plan.train_on, "stop"), [penalties[chosen]])
    return head, {"penalty": penalties[chosen], f"{judge}.loss_at_choice": losses[chosen]}


def _penalties(plan: TransferPlan, phase: Phase) -> list[float]:
    """Raises: PlanError for anything in the phase that closed-form would not heed."""
    if phase.frozen != plan.cut:
        raise PlanError(f"closed-form trains the head alone: 'frozen' must be the cut '{plan.cut}'.")
    if phase != Phase(method="closed-form", frozen=plan.cut, options=phase.options) or len(plan.phases) > 1:
        raise PlanError("closed-form is a plan's only phase and has no rates, epochs, stop or batch_norm of its own.")
    if plan.augmentation.name != "none":
        raise PlanError(f"closed-form looks at each image once as it is: augmentation '{plan.augmentation.name}'.")
    penalties = phase.options.get("penalties")
    numbers = isinstance(penalties, list) and all(isinstance(p, int | float) and p > 0 for p in penalties)
    if not penalties or not numbers or set(phase.options) != {"penalties"}:
        raise PlanError("closed-form needs options.penalties, a list of numbers above zero, and nothing else.")
    return [float(penalty) for penalty in penalties]


def _heads(plan: TransferPlan, bench: Bench, splits: Sequence[Split], penalties: Sequence[float]) -> list[LinearHead]:
    classes = len(bench.dataset.classes)
    return logistic_path(_features(plan, bench, *splits), bench.labels(*splits), classes, penalties)


METHODS: dict[str, Callable[[TransferPlan, Phase, Bench], tuple[LinearHead, dict[str, float]]]] = {
    "closed-form": closed_form,
}


def _features(plan: TransferPlan, bench: Bench, *splits: Split) -> Tensor:
    shas = bench.shas(*splits)
    return bench.features.read(plan.backbone, plan.weights, plan.cut, plan.head.pooling, shas)
