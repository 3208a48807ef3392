"""The sampler: what it draws for a trial depends only on the study's seed, the trial's number and earlier trials.

So an interrupted and resumed search draws the same as an uninterrupted one.
"""

import hashlib
import warnings
from collections.abc import Set
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import FrozenTrial

from autotl.study.blame import Without

START = 16
"""Trials before TPE starts to model: up to ten first guesses, and some drawn at random."""


class NumberedSampler(BaseSampler):
    """Optuna's TPE, created for every trial from (seed, trial number), and for a single parameter also from its name.

    So a trial that was killed after half of its parameters draws the same others again. Multivariate and grouped,
    because which parameters a trial has depends on its strategy and backbone. What always failed in earlier trials is
    not drawn.
    """

    def __init__(self, seed: int, missing: Set[str] = frozenset()) -> None:
        """`missing`: what is not drawn because it is not installed, named as in `autotl.study.owners.Owners`."""
        self._seed = seed
        self._missing = missing

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        seen = Without(study, trial.number, self._missing)
        space = self._sampler(trial.number).infer_relative_search_space(seen, trial)  # type: ignore[arg-type]
        return {name: seen.whole(name, distribution) for name, distribution in space.items()}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        seen, sampler = Without(study, trial.number, self._missing), self._sampler(trial.number)
        # This call stores how the parameters are grouped.
        sampler.infer_relative_search_space(seen, trial)  # type: ignore[arg-type]
        return sampler.sample_relative(seen, trial, search_space)  # type: ignore[arg-type]

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        seen = Without(study, trial.number, self._missing)
        return self._sampler(trial.number, param_name).sample_independent(
            seen,  # type: ignore[arg-type]
            trial,
            param_name,
            seen.narrowed(param_name, param_distribution),
        )

    def _sampler(self, *what: object) -> TPESampler:
        draw = hashlib.sha256("/".join(map(str, (self._seed, *what))).encode()).digest()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            seed = int.from_bytes(draw[:4], "big")
            # With `constant_liar` trials that run at the same time do not draw nearly the same parameters.
            return TPESampler(seed=seed, n_startup_trials=START, multivariate=True, group=True, constant_liar=True)
