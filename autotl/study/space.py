"""The search space: the names that all strategies share, and the context through which they are asked for."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from autotl.backbones.catalogue import Catalogue
from autotl.contracts import BackboneInfo, DataFacts
from autotl.engine.fit import requires
from autotl.engine.precision import Arithmetic
from autotl.plan import Component, DataRef, Head, Input, Phase, Pooling, TransferPlan
from autotl.registry import Entry

if TYPE_CHECKING:
    import optuna

T = TypeVar("T")


def at(share: float, options: Sequence[T]) -> T:
    """The option at a share in [0, 1] of a sequence; every option has the same share, ends included."""
    return options[min(len(options) - 1, math.floor(share * len(options)))]


def share_of(index: int, count: int) -> float:
    """A share that `at` maps to the option with this index: the middle of its interval."""
    return (index + 0.5) / count


class SearchContext:
    """What one trial's strategy asks the host for; see `autotl.contracts.Context`."""

    def __init__(
        self,
        trial: "optuna.Trial",
        *,
        catalogue: Catalogue,
        backbones: Sequence[str],
        augmentations: Mapping[str, Entry],
        data: DataFacts,
        data_ref: DataRef,
        seed: int,
        arithmetic: Callable[[str], Arithmetic],
    ) -> None:
        self.data = data
        self.seed = seed
        self._trial = trial
        self._catalogue = catalogue
        self._backbones = backbones
        self._augmentations = augmentations
        self._data_ref = data_ref
        self._arithmetic = arithmetic

    def backbone(self) -> BackboneInfo:
        return self._backbone

    def cut(self) -> str:
        return self._cut

    def frozen(self, cut: str) -> str | None:
        share = self._trial.suggest_float("frozen", 0.0, 1.0)
        kept = [stage.name for stage in self._backbone.upto(cut)]
        return at(share, [None, *kept])

    def pooling(self, cut: str) -> Pooling:
        poolings = self._backbone.stage(cut).poolings
        chosen: Pooling = self._trial.suggest_categorical(pooling_name(poolings), poolings)  # type: ignore[assignment]
        return chosen

    def input(self) -> Input:
        own, *others = self._catalogue.inputs(self._backbone.name)
        # Beyond the size of the images themselves there is nothing more to see.
        options = [own, *(input for input in others if own.size < input.size <= self.data.image_size)]
        if len(options) == 1:
            return own
        return at(self._trial.suggest_float("input_size", 0.0, 1.0), options)

    def augmentation(self) -> Component:
        name = self._trial.suggest_categorical("augmentation", list(self._augmentations))
        entry = self._augmentations[name]
        with entry.owner.answers_for(f"Augmentation '{name}'"):
            return _component(entry, entry.item.suggest(self._trial, self))

    def plan(
        self,
        *,
        cut: str,
        head: Head,
        phases: Sequence[Phase],
        input: Input | None = None,
        augmentation: Component | None = None,
        pretrained: bool = True,
    ) -> TransferPlan:
        network = self._catalogue.network(self._backbone.name, self.seed, input)
        if not pretrained:
            network = self._catalogue.at_random(network, self.seed)
        augmentation = augmentation or _component(self._catalogue.host.augmentations["none"], {})
        # How it is trained matters only to what is trained.
        trained = any(phase.by_gradient for phase in phases)
        arithmetic = self._arithmetic(self._backbone.name) if trained else Arithmetic()
        return TransferPlan(
            backbone=network.backbone,
            weights=network.weights,
            input=network.input,
            compute_dtype=arithmetic.compute_dtype,
            boundary_dtype=arithmetic.compute_dtype,
            memory_format=arithmetic.memory_format,
            cut=cut,
            head=head,
            augmentation=augmentation,
            data=self._data_ref,
            seed=self.seed,
            requires=requires(self._catalogue, network.backbone, phases, augmentation.name),
            phases=tuple(phases),
        )

    @cached_property
    def _backbone(self) -> BackboneInfo:
        return self._catalogue.info(self._trial.suggest_categorical("backbone", list(self._backbones)))

    @cached_property
    def _cut(self) -> str:
        return at(self._trial.suggest_float("cut", 0.0, 1.0), self._backbone.names)


def pooling_name(poolings: Sequence[Pooling]) -> str:
    """Networks with a class token have one pooling more, and a parameter's choices cannot change."""
    return "token_pooling" if "token" in poolings else "pooling"


def _component(entry: Entry, params: dict[str, Any]) -> Component:
    return Component(name=entry.name, owner=entry.owner.distribution, version=entry.owner.version, params=params)
