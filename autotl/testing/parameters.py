"""Whether the parameters that a plugin asks for matter."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import optuna

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
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(4):
        other = study.ask({"x": distribution}).params["x"]
        if other != value:
            yield other
