"""The end of a search: reruns of the best plans, refit of the winner, baselines, the test, the bundle."""

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import torch

from autotl.data.dataset import Dataset, Opening
from autotl.engine import feed, intervals, metrics
from autotl.engine.bench import Bench
from autotl.engine.fit import Fitted, fit, on_all_images
from autotl.engine.observe import Nobody
from autotl.engine.scale import Scale
from autotl.errors import AutotlError, PluginError, StudyError, one_line
from autotl.export import bundle
from autotl.files import append_line, read_lines, write
from autotl.plan import TransferPlan, digest
from autotl.study import select
from autotl.study.budget import Budget, OutOfTime
from autotl.study.controls import PROBE_SECONDS, Control, controls_of
from autotl.study.machine import of_the_machine
from autotl.study.settings import Settings
from autotl.study.suggestions import facts_of
from autotl.study.watch import Watcher
from autotl.tracking import result as results
from autotl.tracking.folder import Rerun, StudyFolder
from autotl.tracking.log import ENDED, STATES, TrialRecord
from autotl.tracking.probe import read_probe
from autotl.tracking.result import Best, Comparison, OfClass, Result, Run, Test

BEST = 3
"""How many of the best plans are rerun with new seeds."""
ENDING = {"refit", "reruns", "compare"}
"""The settings that the steps after the trials depend on."""


def finish(folder: StudyFolder, settings: Settings, bench: Bench, watcher: Watcher, budget: Budget) -> Result:
    """The result of the trials so far; the stored result if nothing has changed since.

    Raises: StudyError if no trial succeeded on these images.
    """
    records = list(folder.log.records())
    known = results.load(folder)
    made_from = _made_from(records, settings, bench.dataset)
    if known and known.made_from == made_from and not known.skipped and bundle.plan_of(folder.bundle) == known.final:
        return known
    board = _board(records, folder.name, bench)
    end = _End(folder, settings, bench, watcher, budget, known)
    end.skipped += [f"trial {record.number}: {record.reason}" for record in records if record.state == "interrupted"]
    ended = sum(record.state in ENDED for record in records)
    if ended < settings.trials:
        end.skipped.append(f"no time for {settings.trials - ended} of {settings.trials} trials")
    winner, final = end.train(end.contenders(board[:BEST]), board)
    run = winner.median(bench.scale)
    test, comparisons = (known.test, known.comparisons) if known and known.final == final else (None, {})
    if settings.compare:
        controls = list(end.controls(winner, board))
        comparisons = {control.name: comparisons[control.name] for control in controls if control.name in comparisons}
        lacking = [control for control in controls if control.name not in comparisons]
        missing = list(end.trained_controls(lacking, on_all="val" in final.train_on))
    else:
        missing = []
    if test is None or missing:
        test, more = end.judge(final, missing, len(records))
        comparisons |= more
    result = Result(
        study=folder.name,
        trials={state: sum(record.state == state for record in records) for state in STATES},
        plans=len(board),
        best=Best(
            trial=winner.record.number,
            strategy=winner.record.params["strategy"],
            plan=run.plan,
            validation=winner.mean,
            metrics=run.metrics,
            runs=tuple(Run(seed=run.plan.seed, value=run.value) for run in winner.runs),
        ),
        final=final,
        imbalance=facts_of(bench.dataset).imbalance,
        test=test,
        comparisons=comparisons,
        skipped=tuple(end.skipped),
        test_opened=len({opening["plan"] for opening in read_lines(folder.test_openings, Opening.model_validate)}),
        made_from=made_from,
        seconds=budget.used,
        bundle=str(folder.bundle),
    )
    tested = result.model_dump(mode="json", include={"test", "comparisons"})
    bundle.describe(folder.bundle, {"validation": run.metrics, **tested})
    write(folder.result, result.to_json())
    return result


def seconds_needed(board: Sequence[TrialRecord], settings: Settings, bench: Bench) -> float:
    """Seconds that reruns, refit and comparisons will take, estimated from the trials so far."""
    again = [_seconds(record) for record in board[:BEST] if select.depends_on_seed(select.plan_of(record))]
    last = bench.refit_factor * max(map(_seconds, board[:BEST]), default=0.0)
    probe = (1 + bench.refit_factor) * PROBE_SECONDS
    return settings.reruns * sum(again) + last + settings.compare * (last + probe)


def _made_from(records: Sequence[TrialRecord], settings: Settings, dataset: Dataset) -> str:
    """A hash of everything that a result depends on."""
    trials = [[record.number, record.state, record.plan.hash if record.plan else None] for record in records]
    return digest({"trials": trials, "fingerprint": dataset.fingerprint, **settings.model_dump(include=ENDING)})


def _board(records: Sequence[TrialRecord], study: str, bench: Bench) -> list[TrialRecord]:
    board = select.leaderboard(records, bench.scale, bench.dataset.fingerprint)
    if board:
        return board
    if earlier := sum(record.state == "complete" for record in records):
        raise StudyError(
            f"The images have changed: the {earlier} complete trials of study '{study}' used other images. "
            f"Search the new images with --trials {len(records) + 1} or more, or restore the old ones."
        )
    reasons = sorted({record.reason for record in records if record.reason})
    raise StudyError(
        f"No trial of study '{study}' succeeded on these images"
        + (f": {'; '.join(reasons[:3])}" if reasons else ". Use more --trials or a larger --budget.")
    )


@dataclass(frozen=True)
class _Run:
    """A plan that was run with one seed."""

    plan: TransferPlan
    value: float
    metrics: dict[str, float]


@dataclass(frozen=True)
class _Contender:
    """One of the best plans with its trial and all its runs, the trial's own first."""

    record: TrialRecord
    runs: tuple[_Run, ...]

    @property
    def mean(self) -> float:
        return float(np.mean([run.value for run in self.runs]))

    def median(self, scale: Scale) -> _Run:
        """The median run; the worse of two."""
        return sorted(self.runs, key=lambda run: -scale.order(run.value))[(len(self.runs) - 1) // 2]


class _Failed(Exception):
    """A training after the trials failed; the message is the reason."""


class _Deadline(Nobody):
    """Ends a training when the budget is used up."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget

    def step(self) -> None:
        self._budget.check()


class _End:
    """The steps after the trials. Those that there is no time for are skipped and reported."""

    def __init__(
        self,
        folder: StudyFolder,
        settings: Settings,
        bench: Bench,
        watcher: Watcher,
        budget: Budget,
        before: Result | None,
    ) -> None:
        """`before`: the result of an earlier run of the study."""
        self.folder, self.settings, self.bench = folder, settings, bench
        self.watcher, self.budget = watcher, budget
        self.skipped: list[str] = []
        self._before = before
        self._last = "refit" if settings.refit else "training"
        self._known = _reruns(folder)

    def contenders(self, best: Sequence[TrialRecord]) -> list[_Contender]:
        """The best plans by their mean over seeds, without those that fail with another seed."""
        contenders = [_Contender(record, (self._own_run(record),)) for record in best]
        again = [_seconds(record) for record in best if select.depends_on_seed(select.plan_of(record))]
        turns = self.settings.reruns if again and len(best) > 1 else 0
        self._keep_for_the_test(best)
        try:
            for turn in range(1, turns + 1):
                if self.budget.left() < sum(again) + self.bench.refit_factor * max(map(_seconds, best)):
                    raise OutOfTime
                ran = []
                for contender in tuple(contenders):
                    if run := self._run_again(contender, turn):
                        ran.append(run)
                    else:
                        contenders.remove(contender)
                contenders = ran
        except OutOfTime:
            rounds = f"{turns - turn + 1} of {turns} rounds"
            self.skipped.append(f"no time for {rounds} of reruns of the best plans with new seeds")
        return sorted(contenders, key=lambda contender: self.bench.scale.order(contender.mean))

    def _keep_for_the_test(self, best: Sequence[TrialRecord]) -> None:
        """Reserve time to evaluate the bundle and its controls on the test images."""
        looks = 4 if self.settings.compare else 1
        share = len(self.bench.shas("test")) / len(self.bench.shas("val"))
        seconds = looks * share * max(record.metrics.get("val.seconds", 0.0) for record in best)
        counts = self.bench.dataset.counts_in("test")
        self.budget.keep_at_last(seconds + metrics.interval_seconds(self.bench.metrics[0], counts))

    def _own_run(self, record: TrialRecord) -> _Run:
        return _Run(select.plan_of(record), select.value_of(record), record.metrics)

    def _run_again(self, contender: _Contender, turn: int) -> _Contender | None:
        """The contender with one more run, if another seed can change the result; None if the run fails."""
        plan = select.plan_of(contender.record)
        if not select.depends_on_seed(plan):
            return contender
        plan = select.with_seed(plan, plan.seed + turn)
        if plan.hash not in self._known:
            task = f"trial {contender.record.number} with seed {plan.seed}"
            try:
                self._known[plan.hash] = self._fit(plan, task).metrics
            except _Failed as failed:
                self.skipped.append(f"trial {contender.record.number}, which failed with seed {plan.seed}: {failed}")
                return None
            event = {"time": time.time(), "trial": contender.record.number, "plan": plan.hash}
            event |= {"metrics": self._known[plan.hash], "carried_out": plan.model_dump(mode="json")}
            append_line(self.folder.reruns, json.dumps(event))
        measured = self._known[plan.hash]
        run = _Run(plan, measured[f"val.{self.settings.metric}"], measured)
        return _Contender(contender.record, (*contender.runs, run))

    def train(self, contenders: Sequence[_Contender], board: Sequence[TrialRecord]) -> tuple[_Contender, TransferPlan]:
        """Save the winner as the bundle, with `refit` trained on all images except the test images.

        Without time for it, the existing bundle is kept: that of the best trial, or of an earlier run.
        """
        there = bundle.plan_of(self.folder.bundle)
        in_time = True
        for winner in contenders:
            run, final = winner.median(self.bench.scale), self._final(winner)
            if there == final:
                return winner, final
            try:
                if self.budget.left() < self._seconds_again(final, run):
                    raise OutOfTime
                fitted = self._fit(final, f"{self._last} of the winner, trial {winner.record.number}")
                bundle.save(self.folder.bundle, fitted, self.bench.dataset.classes, {"validation": run.metrics})
            except OutOfTime:
                in_time = False
                break
            except _Failed as failed:
                self.skipped.append(f"trial {winner.record.number}, whose {self._last} failed: {failed}")
            else:
                return winner, final
        best = contenders[0].record.number if contenders else board[0].number
        for winner, final in self._possible_bundles(contenders, board):
            if there == final:
                self.skipped.append(
                    f"the {self._last} of the winner, trial {best}; the bundle is that of trial {winner.record.number}"
                )
                return winner, final
        if in_time:
            raise StudyError(f"None of the best plans could be trained again: {'; '.join(self.skipped)}.")
        raise StudyError(
            "The budget ended before the winner could be trained. Finished trials are saved; run the same command "
            "again with a larger --budget."
        )

    def _final(self, winner: _Contender) -> TransferPlan:
        """The plan that the winner's bundle is trained by."""
        run = winner.median(self.bench.scale)
        return on_all_images(run.plan, run.metrics, self.bench) if self.settings.refit else run.plan

    def _seconds_again(self, final: TransferPlan, run: _Run) -> float:
        """About how long the winner's refit takes: on more images, but only up to its best epochs."""
        images = self.bench.refit_factor if self.settings.refit else 1.0
        epochs, ran = 0, 0
        for number, (phase, last) in enumerate(zip(run.plan.phases, final.phases, strict=True), 1):
            stop = phase.training.stop if phase.training else None
            end = last.training.stop if last.training else None
            if phase.training and stop and stop.patience and end and end.at_epoch is not None:
                epochs += end.at_epoch
                ran += min(phase.training.epochs, int(run.metrics[f"phase{number}.best_epoch"]) + stop.patience)
        return run.metrics["seconds"] * images * (epochs / ran if ran else 1.0)

    def _possible_bundles(
        self, contenders: Sequence[_Contender], board: Sequence[TrialRecord]
    ) -> Iterator[tuple[_Contender, TransferPlan]]:
        """The contenders that the existing bundle may belong to, with the plans that would have made it."""
        for contender in contenders:
            yield contender, self._final(contender)
        for record in board:
            contender = _Contender(record, (self._own_run(record),))
            yield contender, select.plan_of(record)
            if self._before and self._before.best.trial == record.number:
                yield contender, self._before.final

    def _fit(self, plan: TransferPlan, task: str) -> Fitted:
        """Train a plan after the trials.

        Raises: OutOfTime; _Failed with the reason if the training fails.
        """
        self.watcher.progress(task, 0, 1)
        try:
            fitted = fit(plan, self.bench, _Deadline(self.budget))
        except (AutotlError, RuntimeError) as error:
            if of_the_machine(error):
                raise
            if isinstance(error, PluginError):
                self.settings.tolerate(f"{task}: {error}")
            raise _Failed(one_line(error, 200)) from error
        self.watcher.progress(task, 1, 1)
        fitted.model.observer = Nobody()  # time is reserved for its predictions on the test images
        return fitted

    def controls(self, winner: _Contender, board: Sequence[TrialRecord]) -> Iterator[Control]:
        """The controls that the winner is compared with."""
        catalogue, note = self.bench.catalogue, self.watcher.note
        rows = [row for row in read_probe(self.folder) if row.backbone.partition(":")[0] in catalogue.host.backbones]
        run = winner.median(self.bench.scale)
        facts = facts_of(self.bench.dataset)
        return controls_of(run.plan, run.metrics["seconds"], board, rows, catalogue, facts, note)

    def trained_controls(self, controls: Iterable[Control], *, on_all: bool) -> Iterator[tuple[str, Fitted]]:
        """Controls by name, trained as the winner was: refit with `on_all`."""
        for control in controls:
            try:
                yield control.name, self._train_control(control, on_all)
            except OutOfTime:
                self.skipped.append(f"no time for the comparison with {control.name}")
            except _Failed as failed:
                self.skipped.append(f"the comparison with {control.name}, which failed: {failed}")

    def _train_control(self, control: Control, on_all: bool) -> Fitted:
        """Raises: OutOfTime, before training if the estimate exceeds the time left."""
        plan, measured = control.plan, control.measured
        itself = 0.0 if on_all and measured else control.seconds
        again = self.bench.refit_factor * control.seconds if on_all else 0.0
        if self.budget.left() < itself + again:
            raise OutOfTime
        if not on_all:
            return self._fit(plan, control.name)
        measured = measured or self._fit(plan, control.name).metrics
        return self._fit(on_all_images(plan, measured, self.bench), f"refit of {control.name}")

    def judge(
        self, final: TransferPlan, controls: Sequence[tuple[str, Fitted]], trials: int
    ) -> tuple[Test, dict[str, Comparison]]:
        """Open the sealed test split, once, for the bundle and the controls together."""
        given = self._probabilities()
        others = {name: metrics.probabilities(control.logits("test")) for name, control in controls}
        dataset, metric = self.bench.dataset, self.bench.metrics[0]
        labels = dataset.open_test(self.folder.test_openings, plan=final.hash, trials=trials)
        units, guessed = dataset.units("test"), given.argmax(1)
        comparisons = {}
        for name, control in controls:
            right = guessed == labels, others[name].argmax(1) == labels
            difference, low, high = intervals.paired_difference(*right, units)
            value = metrics.measure(metric, labels, others[name])
            comparisons[name] = Comparison(plan=control.plan, value=value, difference=difference, low=low, high=high)
        test = Test(
            **asdict(metrics.score(metric, labels, given, units)),
            scale=self.bench.scale,
            near_apart=sum(image.path in dataset.near_apart for image in dataset.of("test")),
            most_frequent=metrics.most_frequent(metric, labels, len(dataset.classes)),
            classes={
                dataset.classes[number]: OfClass(images=images, right=right)
                for number, images, right in metrics.by_class(labels, guessed)
            },
        )
        return test, comparisons

    def _probabilities(self) -> np.ndarray:
        """The predictions of the saved bundle for the test images: [N, C] float64."""
        loaded = bundle.load(self.folder.bundle, self.bench.catalogue).to(self.bench.device)
        self.bench.decode(loaded.plan.input)
        pixels = partial(self.bench.features.pixels.read, loaded.plan.input)
        shas = self.bench.shas("test")
        batches = [shas[start : start + bundle.BATCH] for start in range(0, len(shas), bundle.BATCH)]
        found = [loaded.probabilities(images).double() for images in feed.images(pixels, batches, self.bench.device)]
        given = torch.cat(found)
        return (given / given.sum(1, keepdim=True)).cpu().numpy()  # rows of float32 sum to 1 only nearly


def _reruns(folder: StudyFolder) -> dict[str, dict[str, float]]:
    """The metrics of reruns with new seeds, by the hash of the plan."""
    return {event["plan"]: event["metrics"] for event in read_lines(folder.reruns, Rerun.model_validate)}


def _seconds(record: TrialRecord) -> float:
    return record.metrics["seconds"]
