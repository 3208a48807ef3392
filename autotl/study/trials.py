"""Running trials: a strategy suggests a plan, the engine trains it, the log records it, Optuna gets the value."""

import json
import math
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import optuna
from filelock import FileLock
from optuna.distributions import distribution_to_json

from autotl.engine.fit import Fitted, check, fit
from autotl.engine.observe import Enough
from autotl.errors import (
    PluginError,
    StudyError,
    TrainingError,
    out_of_memory,
    reason,
    without_secrets,
)
from autotl.export import bundle
from autotl.plan import TransferPlan
from autotl.registry import TooLong
from autotl.study import blame, patience, schedule, select
from autotl.study.budget import OutOfTime
from autotl.study.estimate import seconds_at_the_end
from autotl.study.fixed import NotAllowed
from autotl.study.machine import STORAGE, of_the_machine
from autotl.study.pace import Pace
from autotl.study.pruner import IMAGES
from autotl.study.storage import GUESS, Hold, TakenAway, describe, lasting
from autotl.study.suggestions import Suggestions
from autotl.tracking import predictions
from autotl.tracking.folder import StudyFolder
from autotl.tracking.log import ENDED, TrialRecord

TRACEBACK = 4_000
"""How many of the last characters of a traceback a trial's log keeps."""
SLACK = 1.2
"""A training is started if the time left is at least this many times its estimate."""
PASSED_OVER = 3
"""No more trials are drawn after this many that there was no time for."""


class NoTime(Exception):
    """There is no time to train a plan, not even with fewer epochs."""


class TooCostly(Exception):
    """A plan is beyond the limits of the study; the message says by what."""


class FellBehind(Exception):
    """A trial is pruned. Not Optuna's `TrialPruned`, which a plugin may raise as well."""


class Trials:
    """The trials of one study, run one by one."""

    def __init__(self, suggestions: Suggestions, folder: StudyFolder, *, saves: bool) -> None:
        """`folder`: where they are logged. `saves`: whether the model of the best trial so far is saved there, too."""
        self.folder = folder
        self._saves = saves
        self._suggestions = suggestions
        self.study, self.settings = suggestions.study, suggestions.settings
        self.bench, self.watcher, self.budget = suggestions.bench, suggestions.watcher, suggestions.budget
        self._records = {record.number: record for record in self.folder.log.records()}
        # The same plan gives the same numbers, so it is not trained twice.
        self._known: dict[str, dict[str, float]] = {}
        self._best: TrialRecord | None = None
        self._out: blame.Out = {kind: set() for kind in blame.KINDS}
        self._refit_seconds = 0.0
        self.passed_over: set[int] = set()
        """Trials that were drawn in this run and not started because there was no time; the next run starts them."""
        self.told: set[int] = set()
        """The trials that have ended and are known here."""
        self._pace = Pace(self.bench, suggestions.stage_times)
        self._learn(*self._records.values())

    @property
    def done(self) -> int:
        """How many trials have ended."""
        return self.study.done

    def see_others(self) -> None:
        """Learn from the trials that other workers of the search have ended and logged."""
        ended = (trial.number for trial in self.study.ended() if trial.number not in self.told)
        self._learn(*map(self.folder.log.read, ended))

    def run_one(self, total: int) -> bool:
        """Run a trial; False if all of the `total` trials are claimed already.

        Raises: OutOfTime; PluginError with `strict_plugins` if a plugin fails in it; StudyError if all strategies or
        all backbones have failed too often.
        """
        if self.seconds_left() < 0 or len(self.passed_over) >= PASSED_OVER:
            raise OutOfTime
        self._see_what_is_out()
        trial = self.study.claim(total)
        if trial is None:
            return False
        with self.study.alive(trial) as hold:
            try:
                self._run_claimed(trial, hold)
            except TakenAway:
                self.watcher.note(
                    f"Trial {trial.number} was taken over by another process, because this one did not respond."
                )
        return True

    def _run_claimed(self, trial: optuna.Trial, hold: Hold) -> None:
        log, began, number = self.folder.log, time.perf_counter(), trial.number
        log.begin(number, self.study.who)
        observer = _TrialObserver(trial, self, hold)
        value: float | None = None
        try:
            trial.set_user_attr(IMAGES, self.bench.dataset.fingerprint)
            plan = observer.plan = self._in_time(number, self._suggestions.suggest(trial))
            log.planned(number, trial.params, plan, **_drawn(trial))
            describe(trial, plan)
            what = f"{trial.params['strategy']} {plan.backbone} → {plan.cut}"
            self.watcher.trial_planned(number, what, self.done, self.settings.trials)
            self._require_within_limits(trial, plan)
            measured = self._known.get(plan.hash)
            fitted = None
            if measured is None:
                with self._suggestions.answerable(trial):
                    fitted = self._fit(plan, observer)
                fitted.metrics.update(self._suggestions.limits.latency(plan.backbone, plan.input, plan.cut))
                measured = self._known[fitted.plan.hash] = fitted.metrics
            describe(trial, fitted.plan if fitted else plan, measured)
            value = measured[f"val.{self.settings.metric}"]
            if fitted and fitted.val is not None:
                whole = self.settings.ensemble > 1 or fitted.val.size <= predictions.FEW
                predictions.keep(self.folder.predictions_of(fitted.plan), fitted.val, whole=whole)
            if fitted and self._saves:
                self._save_best(fitted, value)
        except NoTime:
            log.end(number, "interrupted", reason="there was no time to start it", params=trial.params)
            self.passed_over.add(number)
            return
        except FellBehind:
            why = f"pruned at {observer.share} % of its epochs: its {self.settings.metric} was in the worse half"
            log.end(number, "pruned", seconds=time.perf_counter() - began, reason=why)
            state = "pruned"
        except TooCostly as error:  # the sampler learns to avoid it, as it does with a trial that fell behind
            log.end(number, "pruned", seconds=time.perf_counter() - began, reason=str(error))
            state = "pruned"
        except (TakenAway, optuna.exceptions.UpdateFinishedTrialError) as error:
            raise TakenAway from error
        except (KeyboardInterrupt, Exception) as error:
            if of_the_machine(error) or isinstance(error, NotAllowed):
                self._keep_for_later(trial, observer.share, error)
                raise
            # Before the end of the log: after a kill another process reports the trial without knowing the error.
            if cause := blame.blamed(trial, error):
                self.study.blame(trial, *cause)
            log.end(
                number,
                "failed",
                seconds=time.perf_counter() - began,
                reason=reason(error),
                params=trial.params,
                **_drawn(trial),
                traceback=without_secrets("".join(traceback.format_exception(error)))[-TRACEBACK:],
                by_plugin=isinstance(error, PluginError),
            )
            state = "failed"
        else:
            words = plan.words_in(measured)
            cut: dict[str, Any] = {"chosen": words} if words else {}
            if fitted and fitted.plan != plan:
                cut["plan"] = fitted.plan.model_dump(mode="json")
                ran = len(fitted.plan.phases)
                if fitted.plan.phases == plan.phases[:ran]:
                    why = f"phase {ran} of {len(plan.phases)} did not lower the loss, so the last ones were skipped"
                else:
                    why = f"the budget ended after {observer.share} % of its epochs; the best epoch so far counts"
                    cut["reason"] = why
                self.watcher.note(f"Trial {number}: {why}.")
            log.end(number, "complete", value=value, metrics=measured, seconds=time.perf_counter() - began, **cut)
            state = "complete"
        told = select.values_of(log.read(number), self.settings.minimize)
        self.study.end(trial, state, told, log.last_attempt(number))
        self.tell(number)

    def tell(self, number: int) -> None:
        """Record a trial that has ended, in this process or a worker.

        Raises: PluginError with `strict_plugins` if a plugin failed in it.
        """
        record = self.folder.log.read(number)
        self._learn(record)
        self.watcher.trial_ended(record, self._best, self.done, self.settings.trials)
        if record.by_plugin:
            self.settings.tolerate(f"Trial {number} failed: {record.reason}")

    def _see_what_is_out(self) -> None:
        """Report what is no longer drawn, once.

        Raises: StudyError if nothing is left to draw.
        """
        out = blame.out_of(self.study.trials())
        for kind in blame.KINDS:
            for value in sorted(out[kind] - self._out[kind]):
                self.watcher.note(
                    f"{kind.capitalize()} '{value}' is not tried any more: it failed in {blame.FAILURES} trials and "
                    "succeeded in none."
                )
        self._out = out
        asked = self._suggestions
        for kind, known in (("strategy", asked.strategies), ("backbone", asked.backbones)):
            if set(known) <= out[kind]:
                reasons = dict.fromkeys(each.reason for each in self._records.values() if each.state == "failed")
                raise StudyError(
                    f"No {kind} of study '{self.folder.name}' is left: each failed in {blame.FAILURES} trials and "
                    f"succeeded in none: {'; '.join(list(reasons)[:3])}"
                )

    @contextmanager
    def _interrupted(self) -> Iterator[None]:
        """Interrupts a training at the end of the budget, even in the code of a plugin.

        Raises: OutOfTime; TooLong if the code of a plugin is interrupted.
        """
        if not self.budget.limited:
            yield
            return
        try:
            with patience.within(max(0.0, self.seconds_left()) + patience.GRACE):
                yield
        except TooLong as error:
            raise OutOfTime from error

    def _keep_for_later(self, trial: optuna.Trial, share: int, error: BaseException) -> None:
        """Release a trial that an error of this machine ended, so that another process or run can claim it.

        Errors of the disk and the storage are ignored here.
        """
        why = "the budget ended" if isinstance(error, OutOfTime) else type(error).__name__
        why = "out of memory" if out_of_memory(error) else why
        with suppress(OSError):
            self.folder.log.end(trial.number, "interrupted", reason=f"{why} after {share} % of its epochs")
        with suppress(*STORAGE):
            if self.study.is_mine(trial):
                self.study.give_back(trial.number)

    def _learn(self, *records: TrialRecord) -> None:
        """Update what is known of the study: its best trial, how long work takes, and the time to reserve for the
        steps after the trials."""
        for record in records:
            self._records[record.number] = record
            if record.state in ENDED:
                self.told.add(record.number)
            self._pace.learn(record)
            if record.plan and record.metrics:
                self._known[record.plan.hash] = record.metrics
        board = select.leaderboard(self._records.values(), self.bench.scale, self.bench.dataset.fingerprint)
        self._best = board[0] if board else None
        longest = max((record.metrics["seconds"] for record in select.finalists(board)), default=0.0)
        self._refit_seconds = self._refit_share * longest
        self.budget.keep(seconds_at_the_end(board, self.settings, self.bench))

    def _save_best(self, fitted: Fitted, value: float) -> None:
        """Save a model as the bundle if it is the best so far, or if there is no bundle.

        If the best trial is that of a worker on another machine, the best of the others is saved.
        """
        folder, scale = self.folder.bundle, self.bench.scale
        order = select.order(value, fitted.metrics, scale)
        best = self._best and select.order(select.value_of(self._best), self._best.metrics, scale)
        if best and order >= best and folder.exists():
            return
        with FileLock(folder.with_name(".bundle.lock")):
            saved = bundle.validation_of(folder)  # by another worker of the search, which has not logged it yet
            if saved and saved[0].members[0].data.fingerprint == self.bench.dataset.fingerprint:
                measured = saved[1]
                if order >= select.order(measured[f"val.{self.settings.metric}"], measured, scale):
                    return
            classes = self.bench.dataset.classes
            bundle.save(folder, fitted, classes, {"validation": fitted.metrics}, fitted.calibration)

    def seconds_left(self) -> float:
        """Seconds until trials have to end; as long as there is no model, the whole budget."""
        return self.budget.left_to_search() if self._best else self.budget.left()

    def _in_time(self, number: int, plan: TransferPlan) -> TransferPlan:
        """The plan, or the same plan with fewer epochs that fits the time left.

        Time is reserved to refit the best plan so far, and this one too if possible. As long as there is no model, any
        number of epochs is accepted.

        Raises: NoTime.
        """
        if not self.budget.limited or plan.hash in self._known:
            return plan

        def fits(plan: TransferPlan, refit_too: bool) -> bool:
            seconds = self._pace.seconds(plan)
            refit = refit_too * self._refit_share * seconds
            needed = SLACK * seconds + max(self._refit_seconds, refit)
            return SLACK * seconds <= self.seconds_left() and needed <= self.budget.left()

        least = schedule.SHORTEST if self._best else 0.0
        found = schedule.longest(plan, partial(fits, refit_too=True), least)
        found = found or schedule.longest(plan, partial(fits, refit_too=False), least)
        if found is None and self._best:
            raise NoTime
        found = found or schedule.shortened(plan, 0.0)
        if found != plan:
            few, many = found.epochs(), plan.epochs()
            self.watcher.note(f"Trial {number} is trained for {few} of its {many} epochs: there is no time for more.")
        return found

    def _require_within_limits(self, trial: optuna.Trial, plan: TransferPlan) -> None:
        """Raises: TooCostly; PluginError for a plan that cannot be trained at all."""
        if not self.settings.limits:
            return
        with self._suggestions.answerable(trial):
            check(plan, self.bench)
        limits = self._suggestions.limits
        if excess := limits.excess(plan.backbone, plan.input, plan.cut, plan.head):
            raise TooCostly(f"not trained: it has {excess}, beyond {limits}")

    def _fit(self, plan: TransferPlan, observer: "_TrialObserver") -> Fitted:
        """Raises: OutOfTime if the time ends before there is a model."""
        try:
            with self._interrupted():
                return fit(plan, self.bench, observer)
        except Enough:
            raise OutOfTime from None

    def seconds(self, plan: TransferPlan) -> float:
        """Seconds that are needed to start a plan; infinite if it cannot be trained, which a trial will report."""
        try:
            return SLACK * self._pace.seconds(plan)
        except (PluginError, TrainingError):
            return math.inf

    def longest(self) -> float:
        """The most of those seconds with which there is also time to refit the plan."""
        return self.budget.left() * SLACK / (SLACK + self._refit_share)

    @property
    def _refit_share(self) -> float:
        """How much longer than a training its refit takes; 0 without refits."""
        return self.settings.refit * self.bench.refit_factor


class _TrialObserver:
    """Logs every epoch of a trial, and ends it if it falls behind or the time is up."""

    def __init__(self, trial: optuna.Trial, trials: Trials, hold: Hold) -> None:
        self._trial, self._trials, self._hold = trial, trials, hold
        self.may_have_enough = trials.budget.limited
        self.plan: TransferPlan | None = None
        self.share = 0
        """The finished share of the plan's epochs, in percent."""
        # First guesses are not pruned, so that every strategy is measured once at its best guess.
        self._may_prune = trials.settings.prune and GUESS not in trial.user_attrs

    def step(self) -> None:
        if self._hold.taken:
            raise TakenAway
        if self._hold.closed:
            raise OutOfTime
        if self._trials.seconds_left() < 0:
            raise Enough

    def epoch(self, phase: int, epoch: int, facts: Mapping[str, float]) -> None:
        assert self.plan is not None
        self.share = 100 * (self.plan.epochs(phase - 1) + epoch) // self.plan.epochs()
        metric = self._trials.settings.metric
        values = [facts[f"{split}.{metric}"] for split in ("early_stop", "val") if f"{split}.{metric}" in facts]
        # With several objectives Optuna prunes nothing.
        judged = values and 0 < self.share < 100 and not self._trials.settings.minimize
        told = (values[0], self.share) if judged else None
        self._trials.folder.log.epoch(self._trial.number, phase, epoch, facts, told)
        self._trials.study.arrived(self._trial, phase, epoch)
        self._trials.watcher.trial_epoch(self._trial.number, f"epoch {epoch} of phase {phase}, {self.share} %")
        if told:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # a resumed trial reports its first epochs again
                self._trial.report(*told)
            if self._trial.should_prune() and self._may_prune:
                raise FellBehind
        if self.share < 100 and self._trials.seconds_left() < facts.get("seconds", 0.0):
            raise Enough  # the next epoch would be cut off

    def note(self, text: str) -> None:
        self._trials.watcher.note(f"Trial {self._trial.number}: {text}")


def _drawn(trial: optuna.Trial) -> dict[str, Any]:
    """What a log keeps of a trial besides its parameters, so that Optuna's storage can be rebuilt from logs."""
    distributions = {name: json.loads(distribution_to_json(each)) for name, each in trial.distributions.items()}
    return {"distributions": distributions, "attrs": lasting(trial.user_attrs)}
