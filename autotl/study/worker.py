"""The work of a study, and the worker that does it: the search itself, or another process on its machine."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from autotl.engine import feed, metrics
from autotl.engine.bench import Bench
from autotl.engine.calibration import Calibration
from autotl.engine.fit import Fitted, fit, on_all_images
from autotl.engine.observe import Nobody
from autotl.errors import AutotlError, PluginError, one_line
from autotl.export import bundle
from autotl.plan import Network, TransferPlan
from autotl.study.budget import Budget, OutOfTime
from autotl.study.machine import of_the_machine
from autotl.study.settings import Settings
from autotl.study.trials import Trials
from autotl.study.watch import Watcher
from autotl.tracking import predictions


@dataclass(frozen=True)
class Pass:
    """A pass of images through a frozen backbone, whose features are stored."""

    network: Network
    shas: tuple[str, ...]
    of: int
    """How many images all passes through this backbone have together."""


@dataclass(frozen=True)
class NextTrial:
    """The next trial of the study, as long as there are fewer than `total`."""

    total: int


@dataclass(frozen=True)
class Training:
    """A plan to train after the trials."""

    task: str
    """What the user reads, such as `refit of the winner`."""
    plan: TransferPlan
    refit: bool = False
    """Whether the result is the plan's refit on all images except the test images, after its own training."""
    bundle: Path | None = None
    """Where the model is saved."""
    validation: dict[str, float] | None = None
    """The metrics of the bundle."""
    calibration: Calibration | None = None
    """Of the bundle."""
    val: bool = False
    """Whether its probabilities for `val` are stored in the study's folder."""
    test: Path | None = None
    """Where its probabilities for the test images are written, if at all."""


@dataclass(frozen=True)
class Prediction:
    """The predictions of a saved bundle for the test images."""

    bundle: Path
    test: Path
    """Where the probabilities are written."""


Job = Pass | NextTrial | Training | Prediction


@dataclass(frozen=True)
class Ran:
    """The outcome of `NextTrial`."""

    more: bool
    """False if every trial was claimed already."""
    passed_over: tuple[int, ...] = ()
    """The trials that this worker has claimed and not started because there was no time."""


def passing(job: Pass) -> str:
    """What the user reads while images go through a backbone."""
    return f"features of {job.network.backbone}"


class Failed(Exception):
    """A training after the trials failed; the message is the reason."""

    def __init__(self, reason: str, by_plugin: bool = False) -> None:
        """`by_plugin`: whether a plugin caused it."""
        super().__init__(reason, by_plugin)
        self.reason, self.by_plugin = reason, by_plugin

    def __str__(self) -> str:
        return self.reason


def why_not(outcome: "Outcome", task: str, settings: Settings) -> str:
    """Why a training failed; empty if there was no time for it.

    Raises: PluginError with `strict_plugins` if a plugin failed in it.
    """
    if isinstance(outcome, OutOfTime):
        return ""
    assert isinstance(outcome, Failed)
    if outcome.by_plugin:
        settings.tolerate(f"{task}: {outcome}")
    return str(outcome)


Outcome = Ran | dict[str, float] | None | AutotlError | OutOfTime | Failed
"""What a job gives: of a training its metrics. An error that does not end the search is an outcome, too."""


class Worker:
    """Does one job after another."""

    def __init__(self, bench: Bench, trials: Trials, watcher: Watcher, budget: Budget) -> None:
        self.bench, self.trials = bench, trials
        self.watcher, self.budget = watcher, budget

    def do(self, job: Job) -> Outcome:
        """Raises: an error that ends the search."""
        try:
            match job:
                case Pass():
                    self._pass(job)
                    return None
                case NextTrial():
                    return Ran(self.trials.run_one(job.total), tuple(self.trials.passed_over))
                case Training():
                    return self._train(job)
                case Prediction():
                    self._predict(job)
                    return None
        except (OutOfTime, Failed) as error:
            return error
        except PluginError as error:
            if isinstance(job, NextTrial):
                raise
            return error

    def _pass(self, job: Pass) -> None:
        progress = self.budget.watched(self.watcher, passing(job))
        self.bench.features.fill(job.network, job.shas, lambda done, _: progress(done, job.of))

    def _train(self, job: Training) -> dict[str, float]:
        fitted = self._fit(job.plan, job.task)
        if job.refit:
            fitted = self._fit(on_all_images(fitted.plan, fitted.metrics, self.bench), f"refit: {job.task}")
        if job.bundle:
            classes = self.bench.dataset.classes
            bundle.save(job.bundle, fitted, classes, {"validation": job.validation}, job.calibration)
        if job.val and fitted.val is not None:
            predictions.keep(self.trials.folder.predictions_of(fitted.plan), fitted.val, whole=True)
        if job.test:
            np.save(job.test, metrics.probabilities(fitted.logits("test")))
        return fitted.metrics

    def _fit(self, plan: TransferPlan, task: str) -> Fitted:
        """Raises: OutOfTime; Failed if the training fails."""
        self.watcher.progress(task, 0, 1)
        try:
            fitted = fit(plan, self.bench, _Deadline(self.budget))
        except (AutotlError, RuntimeError) as error:
            if of_the_machine(error):
                raise
            raise Failed(one_line(error, 200), isinstance(error, PluginError)) from error
        self.watcher.progress(task, 1, 1)
        fitted.model.observer = Nobody()  # time is reserved for its predictions on the test images
        return fitted

    def _predict(self, job: Prediction) -> None:
        loaded = bundle.load(job.bundle, self.bench.catalogue).to(self.bench.device)
        shas, read = self.bench.shas("test"), self.bench.features.pixels.read
        batches = [shas[start : start + bundle.BATCH] for start in range(0, len(shas), bundle.BATCH)]
        each = []
        for input in loaded.graph.inputs:
            self.bench.decode(input)
            each.append(feed.images(partial(read, input), batches, self.bench.device))
        # Not by zip, which would keep the last batch in memory.
        found = [loaded.probabilities(*(next(images) for images in each)).double() for _ in batches]
        given = torch.cat(found)
        # Rows of float32 sum to 1 only nearly.
        np.save(job.test, (given / given.sum(1, keepdim=True)).cpu().numpy())


class _Deadline(Nobody):
    """Ends a training when the budget is used up."""

    def __init__(self, budget: Budget) -> None:
        self._check: Callable[[], None] = budget.check

    def step(self) -> None:
        self._check()
