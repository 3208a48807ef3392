"""Phases that fit the head alone on frozen features, by a method that a plugin registered."""

from collections.abc import Sequence
from typing import Any

from torch.nn import functional as F

from autotl.contracts import FittedHead, Method
from autotl.data.split import Split
from autotl.engine.heads import LinearHead
from autotl.engine.model import Model
from autotl.errors import PlanError, PluginError, unknown
from autotl.plan import Phase
from autotl.registry import Entry


def solve(model: Model, number: int) -> dict[str, float]:
    """Carry out phase `number` of the plan; returns what was chosen by the names of the method's options.

    Of several heads the one with the lowest log-loss on `stop` wins; where the head is what the plan ends
    with, it is then fitted again with `stop` added to what is trained on. Without `stop`, `rank` chooses.
    """
    plan, phase = model.plan, model.plan.phases[number - 1]
    entry = model.bench.catalogue.host.methods[phase.method]
    options = _options(model, phase, entry)
    heads = _fit(entry, model, plan.train_on, options)
    if len(heads) == 1:
        model.head = LinearHead(heads[0].weight, heads[0].bias)
        return heads[0].chosen
    judges = model.bench.judges(plan)
    if not judges:
        raise PlanError(f"{phase.method} cannot choose among several heads when it trains on stop and rank.")
    features, labels = model.features(judges[0]), model.bench.labels(judges[0])
    losses = [F.cross_entropy(LinearHead(each.weight, each.bias)(features), labels).item() for each in heads]
    best = min(range(len(heads)), key=losses.__getitem__)
    head = heads[best]
    if judges[0] == "stop" and number == len(plan.phases):
        head, *others = _fit(entry, model, (*plan.train_on, "stop"), narrowed(options, head.chosen))
        if others:
            raise PluginError(f"{_whose(entry)} says that {head.chosen} gives one head alone, and gave several.")
    model.head = LinearHead(head.weight, head.bias)
    return {**heads[best].chosen, f"{judges[0]}.loss_at_choice": losses[best]}


def narrowed(options: dict[str, Any], chosen: dict[str, float]) -> dict[str, Any]:
    """Options that give one head alone."""
    return {name: [chosen[name]] if name in chosen else value for name, value in options.items()}


def _options(model: Model, phase: Phase, entry: Entry) -> dict[str, list[Any]]:
    """Every option as a list of alternatives.

    Raises: PlanError for anything in the phase that would not be heeded.
    """
    plan, name = model.plan, phase.method
    if phase.frozen != plan.cut:
        raise PlanError(f"{name} trains the head alone: 'frozen' must be the cut '{plan.cut}'.")
    if phase != Phase(method=name, frozen=plan.cut, options=phase.options):
        raise PlanError(f"{name} has no rates, epochs, stop or batch_norm.")
    if len(plan.phases) == 1 and plan.augmentation.name != "none":
        raise PlanError(f"{name} looks at each image once as it is: augmentation '{plan.augmentation.name}'.")
    with entry.owner.answers_for(f"Method '{entry.name}'"):
        known = tuple(entry.item.options)
    for option in phase.options:
        if option not in known:
            raise PlanError(unknown(f"option of {name}", option, known))
    options = {key: value if isinstance(value, list) else [value] for key, value in phase.options.items()}
    for option in known:
        if not options.get(option):
            raise PlanError(f"{name} needs options.{option}: a value, or a list of values to choose from.")
    return options


def _fit(entry: Entry, model: Model, splits: Sequence[Split], options: dict[str, list[Any]]) -> Sequence[FittedHead]:
    """The heads that a method gives.

    Raises: PluginError when it fails, or gives what is no head for these features.
    """
    features, labels = model.features(*splits), model.bench.labels(*splits)
    classes = len(model.bench.dataset.classes)
    method: Method = entry.item
    with entry.owner.answers_for(f"Method '{entry.name}'"):
        heads = method.fit(features, labels, classes, options, model.observer.step)
    expected = [(classes, features.shape[1]), (classes,)]
    if not heads:
        raise PluginError(f"{_whose(entry)} gave no head.")
    for head in heads:
        found = [tuple(head.weight.shape), tuple(head.bias.shape)]
        if found != expected or not (head.weight.isfinite().all() and head.bias.isfinite().all()):
            raise PluginError(
                f"{_whose(entry)} gave a head of {found}; it must be of {expected}, and all of it finite."
            )
    return heads


def _whose(entry: Entry) -> str:
    return f"Method '{entry.name}' of {entry.owner}"
