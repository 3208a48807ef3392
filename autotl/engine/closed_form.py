"""The method `closed-form`: a linear classifier on frozen features, fitted to its minimum."""

from collections.abc import Sequence

import numpy as np
import torch

from autotl.data.split import Split
from autotl.engine.heads import LinearHead, logistic_path
from autotl.engine.model import Model
from autotl.errors import PlanError
from autotl.plan import Phase


def closed_form(model: Model, number: int) -> dict[str, float]:
    """A logistic regression at every penalty of `options["penalties"]` at once.

    Of several penalties the one with the lowest log-loss on `stop` wins; where the head is what the plan ends
    with, it is then fitted again with `stop` added to what is trained on. Without `stop`, `rank` chooses.
    """
    plan, phase = model.plan, model.plan.phases[number - 1]
    penalties = _penalties(model, phase)
    heads = _heads(model, plan.train_on, penalties)
    if len(penalties) == 1:
        (model.head,) = heads
        return {"penalty": penalties[0]}
    judges = model.bench.judges(plan)
    if not judges:
        raise PlanError("closed-form cannot choose among several penalties when it trains on stop and rank.")
    features, labels = model.features(judges[0]), model.bench.labels(judges[0])
    losses = [torch.nn.functional.cross_entropy(head(features), labels).item() for head in heads]
    chosen = int(np.argmin(losses))
    model.head = heads[chosen]
    if judges[0] == "stop" and number == len(plan.phases):
        (model.head,) = _heads(model, (*plan.train_on, "stop"), [penalties[chosen]])
    return {"penalty": penalties[chosen], f"{judges[0]}.loss_at_choice": losses[chosen]}


def _penalties(model: Model, phase: Phase) -> list[float]:
    """Raises: PlanError for anything in the phase that closed-form would not heed."""
    plan = model.plan
    if phase.frozen != plan.cut:
        raise PlanError(f"closed-form trains the head alone: 'frozen' must be the cut '{plan.cut}'.")
    if phase != Phase(method="closed-form", frozen=plan.cut, options=phase.options):
        raise PlanError("closed-form has no rates, epochs, stop or batch_norm.")
    if len(plan.phases) == 1 and plan.augmentation.name != "none":
        raise PlanError(f"closed-form looks at each image once as it is: augmentation '{plan.augmentation.name}'.")
    penalties = phase.options.get("penalties")
    numbers = isinstance(penalties, list) and all(isinstance(p, int | float) and p > 0 for p in penalties)
    if not penalties or not numbers or set(phase.options) != {"penalties"}:
        raise PlanError("closed-form needs options.penalties, a list of numbers above zero, and nothing else.")
    return [float(penalty) for penalty in penalties]


def _heads(model: Model, splits: Sequence[Split], penalties: Sequence[float]) -> list[LinearHead]:
    features, labels = model.features(*splits), model.bench.labels(*splits)
    return logistic_path(features, labels, len(model.bench.dataset.classes), penalties, model.observer.step)
