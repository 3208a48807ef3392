"""Checks of the parameters that a plugin draws: they are used, have its prefix, and can be drawn in one study."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import optuna

from autotl.errors import PluginError
from autotl.testing.lab import new_study

T = TypeVar("T")

DRAWS = 24
"""How many trials are drawn to find whether a parameter has an effect."""


def unused_parameters(
    draw: Callable[[Mapping[str, Any], int], tuple[T, optuna.Trial]], same: Callable[[T, T], bool]
) -> str:
    """The names of parameters whose values have no effect in any of `DRAWS` trials; empty if there are none.

    `draw(known, seed)` returns the result of a trial that draws the parameters that are not `known`.
    """
    idle: set[str] = set()
    used: set[str] = set()
    for seed in range(DRAWS):
        made, trial = draw({}, seed)
        for name, value in trial.params.items():
            if name not in used:
                others = _others(trial.distributions[name], value)
                alike = [same(draw({**trial.params, name: other}, seed)[0], made) for other in others]
                if alike:  # empty for a parameter with a single value, whose effect cannot be tested
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
    """Check that a plugin in this context draws parameters under its own names."""
    try:
        yield
    except PluginError as error:
        raise AssertionError(str(error)) from error


def assert_one_study(trials: Iterable[optuna.Trial], name: str) -> None:
    """Assert that one study can have these trials: each parameter has the same type and choices in all of them."""
    known: dict[str, optuna.distributions.BaseDistribution] = {}
    for trial in trials:
        for parameter, distribution in trial.distributions.items():
            first = known.setdefault(parameter, distribution)
            try:
                optuna.distributions.check_distribution_compatibility(first, distribution)
            except ValueError:
                raise AssertionError(
                    f"'{name}' draws '{parameter}' from {first} in one trial and from {distribution} in another, which "
                    "no study allows. If the choices depend on the backbone or the data, draw a share from 0 to 1, as "
                    "context.cut() does."
                ) from None
