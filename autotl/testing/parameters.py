"""Whether the parameters that a plugin asks for matter, are its own, and can be drawn in one study."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import optuna

from autotl.errors import PluginError
from autotl.testing.lab import new_study

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


@contextmanager
def own_names() -> Iterator[None]:
    """Within, a plugin draws parameters under names of its own."""
    try:
        yield
    except PluginError as error:
        raise AssertionError(str(error)) from error


def assert_one_study(trials: Iterable[optuna.Trial], name: str) -> None:
    """A study could hold these trials: each parameter is of one kind, and has the same choices in all of them."""
    known: dict[str, optuna.distributions.BaseDistribution] = {}
    for trial in trials:
        for parameter, distribution in trial.distributions.items():
            first = known.setdefault(parameter, distribution)
            try:
                optuna.distributions.check_distribution_compatibility(first, distribution)
            except ValueError:
                raise AssertionError(
                    f"'{name}' draws '{parameter}' from {first} in one trial and from {distribution} in another, which "
                    "no study takes: where the options depend on the backbone or the data, draw a share from 0 to 1, "
                    "as context.cut() does."
                ) from None
