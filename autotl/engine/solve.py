"""Phases that fit only the head on frozen features, with a method that a plugin registered."""

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from autotl.contracts import FittedHead, HeadMethod
from autotl.data.split import Split
from autotl.engine.heads import LinearHead, weights_of
from autotl.engine.model import Model
from autotl.engine.options import options_of
from autotl.errors import PlanError
from autotl.plan import NO_AUGMENTATION, ClassWeights, Phase, StoredPooling, TransferPlan
from autotl.registry import Entry

Alternatives = Mapping[str, list[Any]]
"""Every option of a method as a list of alternatives."""


def solve(model: Model, number: int) -> dict[str, float]:
    """Run phase `number` of the plan; returns the chosen values by the names of the method's options, as numbers.

    Of several heads, the one with the lowest log-loss on `early_stop` is chosen, with the class weights of the fit. In
    the last phase it is then refitted with `early_stop` added to the training images. Without `early_stop`, `val`
    chooses.
    """
    plan, phase = model.plan, model.plan.phases[number - 1]
    entry = model.bench.catalogue.host.methods[phase.method]
    judges = model.bench.judges(plan)
    options = check(plan, phase, entry, judges)
    heads = _fit(entry, model, plan.train_on, options)
    best, measured = heads[0], {}
    if len(heads) > 1:
        features, labels = model.features(judges[0]), model.bench.labels(judges[0])
        (weighted,) = options.get("class_weights", ["none"])
        trained, classes = model.bench.labels(*plan.train_on), len(model.bench.dataset.classes)
        weights = weights_of(weighted, trained, classes) if weighted in get_args(ClassWeights) else None
        logits = [LinearHead(each.weight, each.bias)(features) for each in heads]
        losses = [F.cross_entropy(each, labels, weight=weights).item() for each in logits]
        best = heads[min(range(len(heads)), key=losses.__getitem__)]
        measured = {f"{judges[0]}.loss_at_selection": min(losses)}
    head = best
    if measured and judges[0] == "early_stop" and number == len(plan.phases):
        (head,) = _fit(entry, model, (*plan.train_on, "early_stop"), narrowed(options, best.chosen))
    model.head = LinearHead(head.weight, head.bias)
    # A word that the plan does not name is a default, which is no choice.
    chosen = {name: value for name, value in best.chosen.items() if name in phase.options or not isinstance(value, str)}
    return {**{name: phase.measure(name, value) for name, value in chosen.items()}, **measured}


def narrowed(options: Mapping[str, Any], chosen: Mapping[str, float | str]) -> dict[str, Any]:
    """Options with only the chosen values, which give one head."""
    return {name: [chosen[name]] if name in chosen else value for name, value in options.items()}


def check(plan: TransferPlan, phase: Phase, entry: Entry, judges: Sequence[Split]) -> Alternatives:
    """The options of a phase by a registered method that is evaluated on these splits.

    Raises: PlanError if options are missing or invalid.
    """
    name = phase.method
    if phase.frozen != plan.cut:
        raise PlanError(f"{name} trains only the head: 'frozen' must be the cut '{plan.cut}'.")
    if plan.head.kind != "linear":
        raise PlanError(
            f"{name} fits a linear head, but the head of this plan is '{plan.head.kind}': train it in phases of "
            "gradient descent only."
        )
    if plan.head.pooling not in get_args(StoredPooling):
        raise PlanError(
            f"{name} uses stored features, which are not pooled by '{plan.head.pooling}': train the head in phases of "
            f"gradient descent only, or use {', '.join(get_args(StoredPooling))}."
        )
    if phase.training:
        raise PlanError(f"{name} fits the head without gradient descent: 'training' must be null.")
    if len(plan.phases) == 1 and plan.augmentation != NO_AUGMENTATION:
        raise PlanError(f"{name} does not augment images: augmentation must be 'none', not '{plan.augmentation.name}'.")
    known, given = options_of(phase, entry)
    options = {key: value if isinstance(value, list) else [value] for key, value in given.items()}
    for option in known:
        if not options.get(option):
            raise PlanError(f"{name} needs options.{option}: a value or a list of values to choose from.")
    if not judges and any(len(values) > 1 for values in options.values()):
        raise PlanError(f"{name} cannot choose among several values when it trains on early_stop and val: give one.")
    return options


def _fit(entry: Entry, model: Model, splits: Sequence[Split], options: Alternatives) -> list[FittedHead]:
    """The heads that a method returns: one for each combination of the options' alternatives.

    Raises: PluginError if it fails, or if its heads do not fit these features.
    """
    features, labels = model.features(*splits), model.bench.labels(*splits)
    classes = len(model.bench.dataset.classes)
    method: HeadMethod = entry.item
    with entry.owner.answers_for(f"Method '{entry.name}'"):
        heads = list(method.fit(features, labels, classes, dict(options), model.observer.step))
        several = {name: values for name, values in options.items() if len(values) > 1}
        if not heads or (len(heads) > 1 and not several):
            raise ValueError(f"it returned {len(heads)} heads for {dict(options)}")
        return [_sound(head, features, classes, options, several) for head in heads]


def _sound(
    head: FittedHead, features: Tensor, classes: int, options: Alternatives, several: Alternatives
) -> FittedHead:
    """The head without gradients. Raises: TypeError or ValueError if it does not fit these features."""
    if not isinstance(head, FittedHead):
        raise TypeError(f"it returned {type(head).__name__}, not FittedHead")
    expected = {"weight": (classes, features.shape[1]), "bias": (classes,)}
    for name, shape in expected.items():
        tensor = getattr(head, name)
        found = (tuple(tensor.shape), tensor.dtype, tensor.device)
        if found != (shape, torch.float32, features.device):
            raise ValueError(
                f"it returned a head whose {name} is {found}; it must be {shape}, float32, on the features' device"
            )
        if not tensor.isfinite().all():
            raise ValueError(f"it returned a head whose {name} is not finite")
    for name, value in head.chosen.items():
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise TypeError(f"its head has {name} {value!r} in 'chosen': the values must be numbers or strings")
        if isinstance(value, str) and value not in options.get(name, ()):
            raise ValueError(f"its head has {name} {value!r} in 'chosen', which is not in {options.get(name, [])}")
    for name, values in several.items():
        if head.chosen.get(name) not in values:
            raise ValueError(f"its head has {name} {head.chosen.get(name)!r} in 'chosen', which is not in {values}")
    return FittedHead(head.weight.detach(), head.bias.detach(), dict(head.chosen))
