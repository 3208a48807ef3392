"""What plugins contribute to a phase of gradient descent, built from the plan's parameters and checked."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from autotl.contracts import Adapted, Batch, Draw, GradientMethod, Mixed, Weight
from autotl.engine.options import options_of
from autotl.errors import PlanError, PluginError, unknown
from autotl.host import Host
from autotl.plan import NO_AUGMENTATION, Component, Phase, TransferPlan
from autotl.registry import Entry


@dataclass(frozen=True)
class Tools:
    """The plugins' parts of a phase. An error in one of them names its plugin."""

    step: Callable[[Batch], None]
    """Takes one step on a batch."""
    loss: Callable[[Tensor, Tensor, Tensor], Tensor]
    """See `contracts.Loss`."""
    adapt: Callable[[str, Sequence[Weight]], Adapted]
    """See `contracts.Adaptation`; for a stage by name."""
    optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
    """Builds the optimizer for groups of parameters."""
    advance: Callable[[torch.optim.Optimizer], None]
    """Takes a step of the optimizer."""
    transform: "Transform | None"
    """Of training images; None if they are not augmented."""


def tools(plan: TransferPlan, phase: Phase, host: Host) -> Tools:
    """What a phase with `training` needs of plugins.

    Raises: PlanError for an unknown name or invalid parameters; PluginError for a plugin that fails.
    """
    training = phase.training
    assert training is not None
    method = host.methods[phase.method]
    options = _options(phase, method)
    stepping: GradientMethod = method.item
    loss = _Built(
        "Objective",
        _known(host.objectives, training.objective),
        training.objective,
        "logits, targets and weights",
    )
    adapters = {
        stage: _Built("Adapter", _known(host.adapters, adapter), adapter, "weights")
        for stage, adapter in {"": training.adapter, **training.stage_adapters}.items()
    }
    optimizer = _known(host.optimizers, training.optimizer)
    what = f"Optimizer '{optimizer.name}'"

    def step(batch: Batch) -> None:
        with method.owner.answers_for(f"Method '{method.name}'"):
            stepping.step(batch, dict(options))
            if not batch.updated:
                raise RuntimeError("its step did not call batch.update()")

    def scalar(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        with loss.guarded():
            value = loss.item(logits, targets, weights)
            if not isinstance(value, Tensor) or value.dim():
                shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise TypeError(f"its loss returned {shape}, not a scalar tensor")
            return value

    def adapt(stage: str, weights: Sequence[Weight]) -> Adapted:
        adapter = adapters.get(stage, adapters[""])
        with adapter.guarded():
            adapted = _sound(adapter.item(weights), weights)
        computed = adapted.weights
        if computed is None:
            return adapted

        def guarded() -> Mapping[str, Tensor]:
            with adapter.guarded():
                return computed()

        return replace(adapted, weights=guarded)

    def build(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        with optimizer.owner.answers_for(what, "cannot be built"):
            built = optimizer.item.build(groups, dict(training.optimizer.params))
            if not isinstance(built, torch.optim.Optimizer):
                raise TypeError(f"its build returned {type(built).__name__}, not an optimizer of torch")
            return built

    def advance(built: torch.optim.Optimizer) -> None:
        with optimizer.owner.answers_for(what):
            built.step()

    build([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.0, "weight_decay": 0.0}])  # checks the parameters
    return Tools(step, scalar, adapt, build, advance, _transform(plan, host))


class _Built:
    """What a component's `build` returned for its parameters."""

    def __init__(self, kind: str, entry: Entry, component: Component, takes: str) -> None:
        """`takes`: the arguments of what is built."""
        self._what, self._owner = f"{kind} '{entry.name}'", entry.owner
        with self._owner.answers_for(self._what, "cannot be built"):
            self.item = entry.item.build(dict(component.params))
            if not callable(self.item):
                raise TypeError(f"its build returned {type(self.item).__name__}, not a function of {takes}")

    def fault(self, how: str) -> PluginError:
        return self._owner.fault(self._what, how)

    def guarded(self) -> Any:
        return self._owner.answers_for(self._what)


def _known(registry: Any, component: Component) -> Entry:
    """The entry of a component. Raises: PlanError if its name is unknown."""
    if component.name not in registry:
        raise PlanError(unknown(registry.kind, component.name, [entry.name for entry in registry]))
    entry: Entry = registry[component.name]
    return entry


def _options(phase: Phase, entry: Entry) -> dict[str, Any]:
    """The options of a gradient method, with its defaults. Raises: PlanError for a missing or an unknown one."""
    known, options = options_of(phase, entry)
    for name in known:
        if name not in options:
            raise PlanError(f"{entry.name} needs options.{name}.")
    return options


class Transform:
    """An augmentation's transform of training images, whose results are checked."""

    def __init__(self, entry: Entry, component: Component) -> None:
        self._built = _Built("Augmentation", entry, component, "images and draw")
        self.mixes = bool(getattr(entry.item, "mixes", False))
        """Whether it mixes images, so that an image depends on its batch and cannot be stored."""

    def __call__(self, images: Tensor, draw: Draw) -> Tensor | Mixed:
        """[N, 3, S, S] uint8 → as many images, as they are or with what they were mixed with.

        Raises: PluginError, naming the plugin, if it fails or returns something else.
        """
        with self._built.guarded():
            found: Tensor | Mixed = self._built.item(images, draw)
            if isinstance(found, Mixed):
                if not self.mixes:
                    raise TypeError("it returned Mixed; set mixes = True in the augmentation")
                self._require(found.images, images.shape, images)
                self._require(found.partners, images.shape[:1], images, torch.int64)
                self._require(found.shares, images.shape[:1], images, torch.float32)
            else:
                self._require(found, images.shape, images)
            return found

    def _require(self, value: object, shape: torch.Size, images: Tensor, dtype: torch.dtype = torch.uint8) -> None:
        """Raises: PluginError unless it is a tensor of this form, on the device of the images."""
        wanted = _form(shape, dtype, images.device)
        made = _form(value.shape, value.dtype, value.device) if isinstance(value, Tensor) else type(value).__name__
        if made != wanted:
            raise self._built.fault(f"returned {made} for {wanted}; it must keep shape, type and device.")


def _form(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> str:
    return f"{tuple(shape)} {dtype} on {device}"


def _transform(plan: TransferPlan, host: Host) -> Transform | None:
    if plan.augmentation == NO_AUGMENTATION:
        return None
    return Transform(_known(host.augmentations, plan.augmentation), plan.augmentation)


def _sound(adapted: object, weights: Sequence[Weight]) -> Adapted:
    """Raises: TypeError or ValueError if it does not fit the weights."""
    if not isinstance(adapted, Adapted):
        raise TypeError(f"it returned {type(adapted).__name__}, not Adapted")
    for parameter in adapted.parameters:
        if not isinstance(parameter, torch.nn.Parameter):
            raise TypeError(f"it returned {type(parameter).__name__} among the parameters")
    own = {weight.name: weight.parameter for weight in weights}
    for name, value in (adapted.weights() if adapted.weights else {}).items():
        if name not in own:
            raise ValueError(f"it replaces '{name}', which is not in the stage")
        found, expected = (_form(each.shape, each.dtype, each.device) for each in (value, own[name]))
        if found != expected:
            raise ValueError(f"it replaces '{name}' by {found}; it must be {expected}")
    return adapted
