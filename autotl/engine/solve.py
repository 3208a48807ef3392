"""Phases that fit the head alone on frozen features, by a method that a plugin registered."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from autotl.contracts import FittedHead, Method
from autotl.data.split import Split
from autotl.engine.heads import LinearHead, weights_of
from autotl.engine.model import Model
from autotl.errors import PlanError, unknown
from autotl.plan import Phase, TransferPlan
from autotl.registry import Entry

Alternatives = Mapping[str, list[Any]]
"""Every option of a method as a list of alternatives."""


def solve(model: Model, number: int) -> dict[str, float]:
    """Carry out phase `number` of the plan; returns what was chosen by the names of the method's options.

    Of several heads the one with the lowest log-loss on `early_stop` wins, classes weighing as in the fit. Where the
    head is what the plan ends with, it is then fitted again with `early_stop` added to what is trained on. Without
    `early_stop`, `val` chooses.
    """
    plan, phase = model.plan, model.plan.phases[number - 1]
    entry = model.bench.catalogue.host.methods[phase.method]
    judges = model.bench.judges(plan)
    options = check(plan, phase, entry, judges)
    heads = _fit(entry, model, plan.train_on, options)
    best, measured = heads[0], {}
    if len(heads) > 1:
        features, labels = model.features(judges[0]), model.bench.labels(judges[0])
        balanced = options.get("class_weights") == ["balanced"]
        trained, classes = model.bench.labels(*plan.train_on), len(model.bench.dataset.classes)
        weights = weights_of("balanced", trained, classes) if balanced else None
        logits = [LinearHead(each.weight, each.bias)(features) for each in heads]
        losses = [F.cross_entropy(each, labels, weight=weights).item() for each in logits]
        best = heads[min(range(len(heads)), key=losses.__getitem__)]
        measured = {f"{judges[0]}.loss_at_choice": min(losses)}
    head = best
    if measured and judges[0] == "early_stop" and number == len(plan.phases):
        (head,) = _fit(entry, model, (*plan.train_on, "early_stop"), narrowed(options, best.chosen))
    model.head = LinearHead(head.weight, head.bias)
    return {**best.chosen, **measured}


def narrowed(options: Mapping[str, Any], chosen: Mapping[str, float]) -> dict[str, Any]:
    """Options that give one head alone."""
    return {name: [chosen[name]] if name in chosen else value for name, value in options.items()}


def check(plan: TransferPlan, phase: Phase, entry: Entry, judges: Sequence[Split]) -> Alternatives:
    """The options of a phase by a registered method, when it is judged on these splits.

    Raises: PlanError for a phase that says too little, or what cannot be heeded.
    """
    name = phase.method
    if phase.frozen != plan.cut:
        raise PlanError(f"{name} trains the head alone: 'frozen' must be the cut '{plan.cut}'.")
    if phase != Phase(method=name, frozen=plan.cut, options=phase.options):
        raise PlanError(f"{name} has no learning rates, epochs, stop or batch_norm.")
    if len(plan.phases) == 1 and plan.augmentation.name != "none":
        raise PlanError(f"{name} looks at each image once as it is: augmentation '{plan.augmentation.name}'.")
    with entry.owner.answers_for(f"Method '{name}'"):
        defaults = dict(getattr(entry.item, "defaults", {}))
        known = (*entry.item.options, *defaults)
    for option in phase.options:
        if option not in known:
            raise PlanError(unknown(f"option of {name}", option, known))
    given = {**defaults, **phase.options}
    options = {key: value if isinstance(value, list) else [value] for key, value in given.items()}
    for option in known:
        if not options.get(option):
            raise PlanError(f"{name} needs options.{option}: a value, or a list of values to choose from.")
    if not judges and any(len(values) > 1 for values in options.values()):
        raise PlanError(f"{name} cannot choose among several heads when it trains on early_stop and val.")
    return options


def _fit(entry: Entry, model: Model, splits: Sequence[Split], options: Alternatives) -> list[FittedHead]:
    """The heads that a method gives: one for each combination of the options' alternatives.

    Raises: PluginError when it fails, or gives what are no heads for these features.
    """
    features, labels = model.features(*splits), model.bench.labels(*splits)
    classes = len(model.bench.dataset.classes)
    method: Method = entry.item
    with entry.owner.answers_for(f"Method '{entry.name}'"):
        heads = list(method.fit(features, labels, classes, dict(options), model.observer.step))
        several = {name: values for name, values in options.items() if len(values) > 1}
        if not heads or (len(heads) > 1 and not several):
            raise ValueError(f"it gave {len(heads)} heads for {dict(options)}")
        return [_sound(head, features, classes, several) for head in heads]


def _sound(head: FittedHead, features: Tensor, classes: int, several: Alternatives) -> FittedHead:
    """The head, free of gradients. Raises: TypeError or ValueError for what is none for these features."""
    if not isinstance(head, FittedHead):
        raise TypeError(f"it gave {type(head).__name__}, not FittedHead")
    expected = {"weight": (classes, features.shape[1]), "bias": (classes,)}
    for name, shape in expected.items():
        tensor = getattr(head, name)
        found = (tuple(tensor.shape), tensor.dtype, tensor.device)
        if found != (shape, torch.float32, features.device):
            raise ValueError(f"it gave a head whose {name} is {found}; it must be {shape}, float32, where features are")
        if not tensor.isfinite().all():
            raise ValueError(f"it gave a head whose {name} is not finite")
    for name, value in head.chosen.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"its head says that it chose {name} {value!r}: what is chosen are numbers")
    for name, values in several.items():
        if head.chosen.get(name) not in values:
            raise ValueError(f"its head says that it chose {name} {head.chosen.get(name)!r} of {values}")
    return FittedHead(head.weight.detach(), head.bias.detach(), dict(head.chosen))
