"""Whether the parameters that a plugin asks for matter, and are its own."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import optuna

from autotl.registry import Registry
from autotl.testing.lab import Lab, new_study

T = TypeVar("T")

DRAWS = 24
"""Trials in which every parameter gets its chance to matter."""


def unused_parameters(
    draw: Callable[[Mapping[str, Any], int], tuple[T, optuna.Trial]], same: Callable[[T, T], bool]
) -> str:
    """The names of those that change nothing in any of `DRAWS` trials, whatever their value; empty if there are none.

    `draw(known, seed)` gives what a trial leads to in which everything that is not `known` is drawn.
    """
    idle: set[str] = set()
    used: set[str] = set()
    for seed in range(DRAWS):
        made, trial = draw({}, seed)
        for name, value in trial.params.items():
            if name not in used:
                others = _others(trial.distributions[name], value)
                alike = [same(draw({**trial.params, name: other}, seed)[0], made) for other in others]
                if alike:  # where there is but one value, nothing can be told
                    (idle if all(alike) else used).add(name)
    return ", ".join(sorted(idle - used))


def _others(distribution: optuna.distributions.BaseDistribution, value: Any) -> Iterator[Any]:
    """A few values of a distribution besides this one."""
    if isinstance(distribution, optuna.distributions.CategoricalDistribution):
        yield from (choice for choice in distribution.choices if choice != value)
        return
    study = new_study(seed=0)
    for _ in range(4):
        other = study.ask({"x": distribution}).params["x"]
        if other != value:
            yield other


SHARED = ("backbone", "cut", "frozen", "pooling", "token_pooling", "input_size", "augmentation")
"""Parameters that the context draws for all strategies."""


def assert_own_names(lab: Lab, registry: Registry, name: str, parameters: Iterable[str]) -> None:
    """Every parameter is a shared one, or has a prefix that nothing of its kind in another plugin has."""
    others = {entry.name for entry in registry if entry.owner.plugin != lab.name}
    for parameter in parameters:
        prefix, dot, rest = parameter.partition(".")
        assert parameter in SHARED or (dot and prefix not in others), (
            f"'{name}' asks for '{parameter}', a name that another plugin may use otherwise: call it "
            f"'{name}.{rest or parameter}'."
        )
