"""Which strategies, backbones and augmentations a search no longer draws because all their trials failed.

This is computed from Optuna's trials alone, so that every process gets the same answer at any time.
"""

import copy
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from autotl.backbones.catalogue import RANDOM
from autotl.errors import PluginError
from autotl.study.space import DRAWN

FAILURES = 3
"""After this many failures without a success a plugin is no longer drawn: it is out."""
KINDS = {"strategy": "strategies", "backbone": "backbones", **DRAWN}
"""The parameters of a trial whose values may be out, with the kind of plugin that offers each."""
BLAMED = "blamed"
"""The user attribute of a failed trial that names the cause: one of `KINDS`, with its value."""

Out = dict[str, set[str]]
"""The values that are out, by `KINDS`."""


def out_of(trials: Iterable[FrozenTrial]) -> Out:
    """What failed in at least `FAILURES` of these trials and succeeded in none."""
    failures: Counter[tuple[str, str]] = Counter()
    sound: set[tuple[str, str]] = set()
    for trial in trials:
        if trial.state == TrialState.FAIL and BLAMED in trial.user_attrs:
            kind, value = trial.user_attrs[BLAMED]
            failures[kind, value] += 1
        elif trial.state in (TrialState.COMPLETE, TrialState.PRUNED):
            sound.update((kind, trial.params[kind]) for kind in KINDS if kind in trial.params)
    lost = {what for what, times in failures.items() if times >= FAILURES and what not in sound}
    return {kind: {value for other, value in lost if other == kind} for kind in KINDS}


def names(missing: Set[str], params: Mapping[str, Any]) -> bool:
    """Whether parameters name something that is missing; backbones are compared by their family."""
    chosen = [f"{kind} {str(params[name]).partition(':')[0]}" for name, kind in KINDS.items() if name in params]
    return not missing.isdisjoint(chosen)


def blamed(trial: optuna.Trial, error: BaseException) -> tuple[str, str] | None:
    """What made a trial fail: the backbone or augmentation that the error names, else the strategy.

    None for the metric: all trials are measured by it.

    The strategy is also blamed for drawing something that is out, which happens if all of its kind are out.
    """
    params, out = trial.params, out_of(before(trial.study, trial.number))
    what = error.blamed if isinstance(error, PluginError) else ""
    if what.startswith("Metric "):
        return None
    for kind in ("backbone", *DRAWN):
        value = str(params.get(kind, ""))
        # A network with random weights instead of its own is the same network.
        named = what.replace(RANDOM, "") == f"{kind.capitalize()} '{value}'".replace(RANDOM, "")
        if named and value not in out[kind]:
            return kind, value
    return "strategy", str(params["strategy"])


def before(study: optuna.Study, number: int) -> list[FrozenTrial]:
    """The trials that were started before this one."""
    return [trial for trial in study._get_trials(deepcopy=False, use_cache=True) if trial.number < number]


class Without:
    """A study as the sampler should see it for a trial: without everything that is out by then.

    Failed trials are shown as pruned without values, so that they rank among the worst. Optuna would ignore them, and
    would know only the successes of a strategy that mostly fails.
    """

    def __init__(self, study: optuna.Study, number: int, missing: Set[str]) -> None:
        """`missing`: what is out because it is not installed, named as in `autotl.study.owners.Owners`."""
        self._study = study
        self._out = out_of(before(study, number))
        self._missing = missing
        self._whole: dict[str, BaseDistribution] = {}

    def narrowed(self, name: str, distribution: BaseDistribution) -> BaseDistribution:
        """A parameter's distribution without the choices that are out; unchanged if all are."""
        if name not in KINDS or not isinstance(distribution, CategoricalDistribution):
            return distribution
        left = [choice for choice in distribution.choices if not self._lacks(name, choice)]
        if len(left) in (0, len(distribution.choices)):
            return distribution
        self._whole[name] = distribution
        return CategoricalDistribution(left)

    def whole(self, name: str, distribution: BaseDistribution) -> BaseDistribution:
        """The distribution that was narrowed to this one."""
        return self._whole.get(name, distribution)

    def _get_trials(
        self, deepcopy: bool = True, states: Sequence[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        wanted = tuple(TrialState) if states is None else tuple(states)
        fetched = (*wanted, TrialState.FAIL) if TrialState.PRUNED in wanted else wanted
        found = self._study._get_trials(deepcopy=deepcopy, states=fetched, use_cache=use_cache)
        return [self._seen(trial) for trial in found if not self._is_out(trial)]

    def _is_out(self, trial: FrozenTrial) -> bool:
        return any(name in KINDS and self._lacks(name, value) for name, value in trial.params.items())

    def _lacks(self, kind: str, value: object) -> bool:
        return value in self._out[kind] or names(self._missing, {kind: value})

    def _seen(self, trial: FrozenTrial) -> FrozenTrial:
        failed = trial.state == TrialState.FAIL
        if not failed and not any(self._out.values()) and not self._missing:
            return trial
        seen = copy.copy(trial)
        seen.distributions = {name: self.narrowed(name, each) for name, each in trial.distributions.items()}
        if failed:
            seen.state, seen.intermediate_values = TrialState.PRUNED, {}
        return seen

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)
