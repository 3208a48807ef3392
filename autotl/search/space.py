"""The search space: the names that all strategies share, and the context through which they are asked for."""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from autotl.backbones.catalogue import Catalogue
from autotl.contracts import BackboneInfo, DataFacts
from autotl.plan import Component, DataRef, Head, Phase, Pooling, TransferPlan
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
    ) -> None:
        self.data = data
        self.seed = seed
        self._trial = trial
        self._catalogue = catalogue
        self._backbones = backbones
        self._augmentations = augmentations
        self._data_ref = data_ref

    def backbone(self) -> BackboneInfo:
        return self._backbone

    def cut(self) -> str:
        return self._cut

    def frozen(self) -> str | None:
        share = self._trial.suggest_float("frozen", 0.0, 1.0)
        kept = [stage.name for stage in self._backbone.upto(self._cut)]
        return at(share, [None, *kept])

    def pooling(self) -> Pooling:
        poolings = self._backbone.stage(self._cut).poolings
        chosen: Pooling = self._trial.suggest_categorical(pooling_name(poolings), poolings)  # type: ignore[assignment]
        return chosen

    def augmentation(self) -> Component:
        name = self._trial.suggest_categorical("augmentation", list(self._augmentations))
        entry = self._augmentations[name]
        return _component(entry, entry.item.suggest(self._trial, self))

    def plan(
        self,
        *,
        cut: str,
        head: Head,
        phases: Sequence[Phase],
        augmentation: Component | None = None,
    ) -> TransferPlan:
        name = self._backbone.name
        return TransferPlan(
            backbone=name,
            weights=self._catalogue.weights(name, self.seed),
            input=self._backbone.input,
            cut=cut,
            head=head,
            augmentation=augmentation or _component(self._catalogue.host.augmentations["none"], {}),
            data=self._data_ref,
            seed=self.seed,
            requires=self._catalogue.requires(name),
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
