"""The pruner: which trials are stopped early."""

from typing import Any

import optuna
from optuna.pruners import BasePruner, SuccessiveHalvingPruner
from optuna.trial import FrozenTrial

RUNG, HALVING = 25, 2
"""After 25 and 50 % of its epochs a trial continues if it is in the better half of the trials that came that far
(Li et al. 2020, arXiv 1810.05934). In percent, because each trial has its own schedule and number of epochs."""
IMAGES = "images"
"""The user attribute of a trial with the fingerprint of its images."""


class SameImagesPruner(BasePruner):
    """Optuna's successive halving among the trials on the same images, because others cannot be compared."""

    def __init__(self) -> None:
        self._halving = SuccessiveHalvingPruner(min_resource=RUNG, reduction_factor=HALVING)

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        return self._halving.prune(_OnSameImages(study, trial), trial)  # type: ignore[arg-type]


class _OnSameImages:
    """A study that shows only the trials on the same images as one trial."""

    def __init__(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self._study = study
        self._images = trial.user_attrs.get(IMAGES)

    def get_trials(self, *args: Any, **kwargs: Any) -> list[FrozenTrial]:
        trials = self._study.get_trials(*args, **kwargs)
        return [trial for trial in trials if trial.user_attrs.get(IMAGES) == self._images]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)
