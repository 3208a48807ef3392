"""One trial after another: a strategy suggests, the engine trains, the log remembers, Optuna is told."""

import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property

import numpy as np
import optuna
import sqlalchemy
import torch
from optuna.trial import TrialState

from autotl.contracts import DataFacts
from autotl.data.dataset import Dataset
from autotl.data.rows import StoreError
from autotl.engine import precision
from autotl.engine.bench import Bench
from autotl.engine.fit import fit
from autotl.engine.precision import Arithmetic
from autotl.errors import AutotlError, PluginError, StudyError, one_line
from autotl.export import bundle
from autotl.plan import DataRef, TransferPlan
from autotl.registry import Entry
from autotl.search import select
from autotl.search.budget import Budget, OutOfTime
from autotl.search.finish import seconds_needed
from autotl.search.settings import Settings
from autotl.search.space import SearchContext
from autotl.search.watch import Watcher
from autotl.tracking.folder import StudyFolder
from autotl.tracking.log import ENDED, TrialRecord

MACHINE = (
    KeyboardInterrupt,
    OutOfTime,
    OSError,
    StoreError,
    MemoryError,
    torch.AcceleratorError,
    optuna.exceptions.StorageInternalError,
    sqlalchemy.exc.SQLAlchemyError,
)
"""What ends the search and not the trial alone: it would end every other trial, too."""
KILLS = 3
"""A trial in which the process was killed so often counts as failed."""


class Trials:
    """The trials of one study, carried out one by one."""

    def __init__(
        self,
        study: optuna.Study,
        folder: StudyFolder,
        settings: Settings,
        bench: Bench,
        *,
        backbones: Sequence[str],
        strategies: Mapping[str, Entry],
        augmentations: Mapping[str, Entry],
        watcher: Watcher,
        budget: Budget,
    ) -> None:
        self.study, self.folder, self.settings, self.bench = study, folder, settings, bench
        self.backbones, self.strategies, self.augmentations = backbones, strategies, augmentations
        self.watcher, self.budget = watcher, budget
        self._agree()
        records = list(folder.log.records())
        self._records = {record.number: record for record in records}
        self.done = sum(record.state in ENDED for record in records)
        # The same plan gives the same numbers, so it is not trained twice.
        self._known = {record.plan.hash: record.metrics for record in records if record.plan and record.metrics}
        self._plans = [record.plan for record in records if record.plan]
        self._arithmetics: dict[str, Arithmetic] = {}
        self._best: TrialRecord | None = None
        self._look_at_the_board()

    def run(self, total: int) -> None:
        """Carry out trials until `total` have ended or the time is up."""
        for trial in self._next(total):
            try:
                self.budget.check_search()
                self._carry_out(trial)
            except OutOfTime:
                return

    def _agree(self) -> None:
        """Tell Optuna what the log knows better: a process may have been killed between the two."""
        stored = {trial.number for trial in self.study.get_trials(deepcopy=False)}
        lost = [record.number for record in self.folder.log.records() if record.number not in stored]
        if lost:
            raise StudyError(
                f"Optuna's storage of study '{self.folder.name}' lacks trials that the study has, such as number "
                f"{lost[0]}. Put the storage back as it was, or start another study: --study NAME"
            )
        for trial in self.study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
            record = self.folder.log.read(trial.number)
            if record.state == "complete":
                self.study.tell(trial.number, record.value)
            elif record.state == "pruned":
                self.study.tell(trial.number, state=TrialState.PRUNED)
            elif record.state == "failed":
                self.study.tell(trial.number, state=TrialState.FAIL)
            elif record.kills >= KILLS:
                self.folder.log.end(trial.number, "failed", reason=f"its process was killed {record.kills} times")
                self.study.tell(trial.number, state=TrialState.FAIL)

    def _next(self, total: int) -> Iterator[optuna.Trial]:
        """Trials that were begun and never ended, then new ones: each has the number that it had, so that it
        draws what it drew."""
        for frozen in self.study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
            yield optuna.Trial(self.study, frozen._trial_id)
        while self.done < total:
            yield self.study.ask()

    def _carry_out(self, trial: optuna.Trial) -> None:
        log, began, number = self.folder.log, time.perf_counter(), trial.number
        log.begin(number)
        observer = _TrialObserver(trial, self)
        try:
            plan = observer.plan = self._suggest(trial)
            log.planned(number, trial.params, plan)
            what = f"{trial.params['strategy']} {plan.backbone} → {plan.cut}"
            self.watcher.trial_planned(number, what, self.done, self.settings.trials)
            measured = self._known.get(plan.hash)
            fitted = None
            if measured is None:
                fitted = fit(plan, self.bench, observer)
                measured = self._known[plan.hash] = fitted.metrics
            self._plans.append(plan)
            value = measured[f"rank.{self.settings.metric}"]
            if fitted and (self._best is None or value > (self._best.value or 0.0)):
                bundle.save(self.folder.bundle, fitted, self.bench.dataset.classes, {"validation": measured})
        except optuna.TrialPruned:
            reason = f"stopped after {observer.share} % of its epochs: the better half of the trials was ahead there"
            log.end(number, "pruned", seconds=time.perf_counter() - began, reason=reason)
            self.study.tell(number, state=TrialState.PRUNED)
        except MACHINE as error:
            # What is wrong with this machine would be wrong in every trial: this one is kept for later.
            why = "the budget ended" if isinstance(error, OutOfTime) else type(error).__name__
            with suppress(OSError):
                log.end(number, "interrupted", reason=f"{why} after {observer.share} % of its epochs")
            raise
        except Exception as error:
            kind = "" if isinstance(error, AutotlError) else f"{type(error).__name__}: "
            reason = one_line(f"{kind}{error}")
            log.end(number, "failed", seconds=time.perf_counter() - began, reason=reason)
            self.study.tell(number, state=TrialState.FAIL)
        else:
            log.end(number, "complete", value=value, metrics=measured, seconds=time.perf_counter() - began)
            self.study.tell(number, value)
        self.done += 1
        self._records[number] = log.read(number)
        self._look_at_the_board()
        self.watcher.trial_ended(self._records[number], self._best, self.done, self.settings.trials)

    def _look_at_the_board(self) -> None:
        """See which trial is the best by now, and what there will be to do after the trials."""
        board = select.leaderboard(self._records.values(), self.bench.dataset.fingerprint)
        self._best = board[0] if board else None
        self.budget.keep(seconds_needed(board, self.settings))

    def _suggest(self, trial: optuna.Trial) -> TransferPlan:
        entry = self.strategies[trial.suggest_categorical("strategy", list(self.strategies))]
        context = SearchContext(
            trial,
            catalogue=self.bench.catalogue,
            backbones=self.backbones,
            augmentations=self.augmentations,
            data=self._facts,
            data_ref=DataRef(fingerprint=self.bench.dataset.fingerprint, split_seed=self.settings.seed),
            seed=self.settings.seed,
            arithmetic=self._arithmetic,
        )
        plan = entry.item.suggest(trial, context)
        if not isinstance(plan, TransferPlan):
            raise PluginError(
                f"Strategy '{entry.name}' of {entry.owner.distribution} {entry.owner.version} suggested "
                f"{type(plan).__name__}, not a plan."
            )
        return plan

    def _arithmetic(self, backbone: str) -> Arithmetic:
        """How a backbone is trained in this study: as in its earlier trials, else as is fastest here."""
        for plan in self._plans:
            if plan.backbone == backbone and any(phase.method != "closed-form" for phase in plan.phases):
                return Arithmetic(plan.compute_dtype, plan.memory_format)
        if backbone in self._arithmetics:
            return self._arithmetics[backbone]
        bench = self.bench
        chosen = self._arithmetics[backbone] = precision.choose(
            bench.catalogue, backbone, bench.device, bench.features.cache_dir
        )
        seconds = chosen.image_seconds * len(bench.shas("train"))
        self.watcher.note(
            f"{backbone} is trained in {chosen.compute_dtype}, {chosen.memory_format.replace('_', ' ')}: "
            f"{seconds:.1f} s for an epoch of the whole network."
        )
        return chosen

    @cached_property
    def _facts(self) -> DataFacts:
        return facts_of(self.bench.dataset)


class _TrialObserver:
    """Writes down every epoch of a trial, and ends it when it falls behind or the time is up."""

    def __init__(self, trial: optuna.Trial, trials: Trials) -> None:
        self._trial, self._trials = trial, trials
        self.plan: TransferPlan | None = None
        self.share = 0
        """How much of the plan's epochs is done, in percent."""
        # What was asked for by name runs to its end, so that every strategy is seen at its best guess once.
        self._may_prune = trials.settings.prune and "guess" not in trial.user_attrs

    def step(self) -> None:
        self._trials.budget.check_search()

    def epoch(self, phase: int, epoch: int, facts: Mapping[str, float]) -> None:
        self._trials.folder.log.epoch(self._trial.number, phase, epoch, facts)
        assert self.plan is not None
        before = sum(earlier.epochs for earlier in self.plan.phases[: phase - 1])
        self.share = 100 * (before + epoch) // sum(each.epochs for each in self.plan.phases)
        self._trials.watcher.trial_epoch(self._trial.number, f"epoch {epoch} of phase {phase}, {self.share} %")
        metric = self._trials.settings.metric
        values = [facts[f"{split}.{metric}"] for split in ("stop", "rank") if f"{split}.{metric}" in facts]
        if values and 0 < self.share < 100:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # a trial that goes on reports its first epochs again
                self._trial.report(values[0], self.share)
            if self._trial.should_prune() and self._may_prune:
                raise optuna.TrialPruned

    def note(self, text: str) -> None:
        self._trials.watcher.note(f"Trial {self._trial.number}: {text}")


def facts_of(dataset: Dataset) -> DataFacts:
    """What plugins may know of the data."""
    labels = dataset.labels("train")
    shorter = [min(image.width, image.height) for image in dataset.of("train")]
    return DataFacts(
        classes=len(dataset.classes),
        train_images=len(labels),
        smallest_class=int(np.bincount(labels, minlength=len(dataset.classes)).min()),
        has_stop=bool(dataset.shas("stop")),
        image_size=int(np.median(shorter)),
    )
