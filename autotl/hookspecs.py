"""The hooks that a plugin may implement.

A plugin is a module or an object with any of these functions, marked `@autotl.hookimpl`. An entry point of the group
`autotl` names it. The plugins that ship with autotl use the same hooks.

`register(name, load, summary=...)` takes a name, a callable without arguments, and one line for listings. The callable
imports what it needs and returns an object with the interface that `autotl.contracts` describes.
"""

from collections.abc import Callable
from typing import Any, Protocol

import pluggy

hookspec = pluggy.HookspecMarker("autotl")
hookimpl = pluggy.HookimplMarker("autotl")


class Register(Protocol):
    """The callable that each hook receives."""

    def __call__(self, name: str, load: Callable[[], Any], *, summary: str) -> None: ...


@hookspec
def register_backbones(register: Register) -> None:
    """Register families of backbones: `register("timm", load)`, where `load()` returns a `Family`.

    Called once, when the host starts. The family is loaded when a backbone with its prefix is first used.
    """


@hookspec
def register_augmentations(register: Register) -> None:
    """Register augmentations: `register("flip", load)`, where `load()` returns an `Augmentation`.

    Called once, when the host starts. An augmentation is loaded when a search or a plan uses it.
    """


@hookspec
def register_strategies(register: Register) -> None:
    """Register strategies: `register("linear-probe", load)`, where `load()` returns a `Strategy`.

    Called once, when the host starts. A strategy is loaded when a search uses it.
    """


@hookspec
def register_methods(register: Register) -> None:
    """Register methods of training: `register("logistic", load)`, where `load()` returns a `Method`.

    Called once, when the host starts. A method is loaded when a plan that uses it is trained.
    """


@hookspec
def register_objectives(register: Register) -> None:
    """Register objectives, the losses that training minimises: `register("focal", load)`, where `load()` returns an
    `Objective`.

    Called once, when the host starts. An objective is loaded when a search or a plan uses it.
    """


@hookspec
def register_optimizers(register: Register) -> None:
    """Register optimizers: `register("adamw", load)`, where `load()` returns an `Optimizer`.

    Called once, when the host starts. An optimizer is loaded when a search or a plan uses it.
    """


@hookspec
def register_adapters(register: Register) -> None:
    """Register adapters, which choose what of a stage is trained: `register("lora", load)`, where `load()` returns an
    `Adapter`.

    Called once, when the host starts. An adapter is loaded when a search or a plan uses it.
    """


@hookspec
def register_metrics(register: Register) -> None:
    """Register metrics that a search can select by: `register("accuracy", load)`, where `load()` returns a `Metric`.

    Called once, when the host starts. A metric is loaded when a training is measured by it.
    """


@hookspec
def register_weights(register: Register) -> None:
    """Register providers of pretrained weights: `register("our-mirror", load)`, where `load()` returns a
    `WeightsProvider`.

    Called once, when the host starts. A provider is loaded when a backbone's weights are not on this machine.
    """
