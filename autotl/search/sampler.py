"""The sampler: what it draws for a trial depends on the study's seed, the trial's number and the trials before it.

So a search that was interrupted and resumed draws what an uninterrupted one would have drawn.
"""

import hashlib
import warnings
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import FrozenTrial


class NumberedSampler(BaseSampler):
    """Optuna's TPE, made anew for every trial from (seed, trial number).

    Multivariate and grouped, because which parameters a trial has depends on its strategy and backbone.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._made: tuple[int, TPESampler] | None = None

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._sampler(trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._sampler(trial).sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        return self._sampler(trial).sample_independent(study, trial, param_name, param_distribution)

    def _sampler(self, trial: FrozenTrial) -> TPESampler:
        if self._made is None or self._made[0] != trial.number:
            draw = hashlib.sha256(f"{self._seed}/{trial.number}".encode()).digest()
            seed = int.from_bytes(draw[:4], "big")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                self._made = trial.number, TPESampler(seed=seed, multivariate=True, group=True)
        return self._made[1]
