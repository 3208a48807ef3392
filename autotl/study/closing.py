"""The end of a search: reruns of the best plans, refit of the winner, baselines, the test, the bundle."""

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from autotl.data.dataset import Dataset, Opening
from autotl.engine import intervals, metrics
from autotl.engine.bench import Bench
from autotl.engine.fit import on_all_images
from autotl.errors import StudyError
from autotl.export import bundle
from autotl.files import read_lines, write
from autotl.plan import Made, TransferPlan, digest
from autotl.study import advice, estimate, select
from autotl.study.budget import OutOfTime
from autotl.study.calibrating import calibrated
from autotl.study.controls import Control, controls_of
from autotl.study.costs import COSTS
from autotl.study.crew import Crew
from autotl.study.ensemble import Ensembling
from autotl.study.opening import Opened
from autotl.study.pick import picked
from autotl.study.reruns import Contender, Reruns, SeedRun
from autotl.study.settings import BEST, RERUN, Settings
from autotl.study.suggestions import facts_of
from autotl.study.worker import Outcome, Prediction, Training, why_not
from autotl.tracking import result as results
from autotl.tracking.advice import Advice, AdviceTested, read_advice
from autotl.tracking.log import ENDED, STATES, TrialRecord
from autotl.tracking.probe import read_probe
from autotl.tracking.result import Best, Comparison, OfClass, Picked, Result, Run, Test

ENDING = {"refit", "reruns", "compare"}
"""The settings that the steps after the trials depend on."""


def finish(opened: Opened, crew: Crew) -> Result:
    """The result of the trials so far; the stored result if nothing has changed since.

    Raises: StudyError if no trial succeeded on these images.
    """
    folder, settings, bench = opened.folder, opened.settings, opened.bench
    cost = settings.cost
    records = list(folder.log.records())
    known = results.load(folder)
    made_from = _made_from(records, settings, bench.dataset)
    if known and known.made_from == made_from and not known.skipped and bundle.plan_of(folder.bundle) == known.made:
        return known
    board = _board(records, folder.name, bench)
    skipped = [f"trial {record.number}: {record.reason}" for record in records if record.state == "interrupted"]
    ended = sum(record.state in ENDED for record in records)
    if ended < settings.trials:
        skipped.append(f"no time for {settings.trials - ended} of {settings.trials} trials")
    best = picked(settings.pick, board, cost.metric, bench.scale)
    interval = metrics.interval_seconds(bench.metrics[0], bench.dataset.counts_in("test"))
    opened.budget.keep_at_last(estimate.seconds_to_test(best, settings, bench) + interval)
    reruns = Reruns(opened, crew)
    contenders = reruns.contenders(best)
    with _place(folder.path / ".test") as place:
        end = _End(opened, crew, known, place)
        contenders = end.with_views(contenders)
        judged = {each.record.number: each.record for each in contenders}  # more reliably than by their trials
        others = [record for record in board if record.number not in judged]
        ranked = [*judged.values(), *others]
        winner, final, controls = end.train(contenders, ranked)
        ensemble = end.ensembling.made(winner.record, final, ranked)
        if ensemble:
            controls = {**end.alone(winner, final), **controls}
        test, comparisons = end.test(ensemble.plan if ensemble else final, controls, len(records))
    run = winner.median(bench.scale)
    latency = COSTS["latency"].metric
    timed = {name: run.plan.test_views * value for name, value in winner.record.metrics.items() if name == latency}
    result = Result(
        study=folder.name,
        trials={state: sum(record.state == state for record in records) for state in STATES},
        plans=len(board),
        best=Best(
            trial=winner.record.number,
            strategy=winner.record.params["strategy"],
            plan=run.plan,
            validation=winner.mean,
            metrics={**timed, **run.metrics},
            runs=tuple(Run(seed=run.plan.seed, value=run.value) for run in winner.runs),
        ),
        picked=Picked(
            how=settings.pick,
            cost=cost.metric,
            best=board[0].number,
            value=select.value_of(board[0]),
            costs=board[0].metrics[cost.metric],
        )
        if settings.pick not in RERUN
        else None,
        simplest=reruns.simplest,
        ensemble=ensemble,
        calibration=bundle.calibration_of(folder.bundle),
        final=final,
        imbalance=facts_of(bench.dataset).imbalance,
        test=test,
        comparisons=comparisons,
        advice=_tested(read_advice(folder), board, bench),
        skipped=(*skipped, *reruns.skipped, *end.skipped, *end.ensembling.skipped),
        test_opened=len({opening["plan"] for opening in read_lines(folder.test_openings, Opening.model_validate)}),
        made_from=made_from,
        seconds=opened.budget.used,
        bundle=str(folder.bundle),
    )
    tested = result.model_dump(mode="json", include={"test", "comparisons"})
    bundle.describe(folder.bundle, {"validation": ensemble.metrics if ensemble else run.metrics, **tested})
    write(folder.result, result.to_json())
    return result


def _tested(advised: Advice | None, board: Sequence[TrialRecord], bench: Bench) -> AdviceTested | None:
    return advice.tested(advised, board, len(bench.shas("val")), bench.scale) if advised else None


def _made_from(records: Sequence[TrialRecord], settings: Settings, dataset: Dataset) -> str:
    """A hash of everything that a result depends on."""
    trials = [[record.number, record.state, record.plan.hash if record.plan else None] for record in records]
    usual = {"pick": BEST, "views": 1, "ensemble": 1}
    unusual = {name: value for name in usual if (value := getattr(settings, name)) != usual[name]}
    ending = {**settings.model_dump(include=ENDING), **unusual}
    return digest({"trials": trials, "fingerprint": dataset.fingerprint, **ending})


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


@contextmanager
def _place(folder: Path) -> Iterator[Path]:
    """An empty folder that exists in this context."""
    shutil.rmtree(folder, ignore_errors=True)  # of a search that was killed
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class _Tested:
    """A control that was trained, with the file of its probabilities for the test images."""

    plan: TransferPlan
    test: Path


class _End:
    """The steps after the trials. Those that there is no time for are skipped and reported."""

    def __init__(self, opened: Opened, crew: Crew, before: Result | None, place: Path) -> None:
        """`before`: the result of an earlier run of the study. `place`: a folder for predictions."""
        self.folder, self.settings, self.bench = opened.folder, opened.settings, opened.bench
        self.watcher, self.budget, self.crew = opened.watcher, opened.budget, crew
        self.skipped: list[str] = []
        self.ensembling = Ensembling(opened, crew)
        self._before, self._place = before, place
        self._wanted: list[str] = []
        """The names of the controls, in the order of the summary."""
        self._last = "refit" if self.settings.refit else "training"

    def train(
        self, contenders: Sequence[Contender], board: Sequence[TrialRecord]
    ) -> tuple[Contender, TransferPlan, dict[str, _Tested]]:
        """Save the winner as the bundle, with `refit` trained on all images except the test images; train its controls.

        Without time for it, the existing bundle is kept: that of the best trial, or of an earlier run.
        """
        there = bundle.plan_of(self.folder.bundle)
        in_time = True
        for winner in contenders:
            final = self._final(winner)
            if there == final or self.ensembling.restore(final):
                return winner, final, self._trained(None, winner, final, board)[1]
            number = winner.record.number
            task = f"{self._last} of the winner, trial {number}"
            measured = winner.median(self.bench.scale).metrics
            calibration = calibrated(self.folder, self.bench, winner.runs)
            job = Training(task, final, bundle=self.folder.bundle, validation=measured, calibration=calibration)
            outcome, controls = self._trained(job, winner, final, board)
            if isinstance(outcome, dict):
                return winner, final, controls
            if why := why_not(outcome, task, self.settings):
                self.skipped.append(f"trial {number}, whose {self._last} failed: {why}")
                continue
            in_time = False
            break
        best = contenders[0].record.number if contenders else board[0].number
        for winner, final in self._possible_bundles(contenders, board):
            if there == final or self.ensembling.restore(final):
                self.skipped.append(
                    f"the {self._last} of the winner, trial {best}; the bundle is that of trial {winner.record.number}"
                )
                return winner, final, self._trained(None, winner, final, board)[1]
        if in_time:
            raise StudyError(f"None of the best plans could be trained again: {'; '.join(self.skipped)}.")
        raise StudyError(
            "The budget ended before the winner could be trained. Finished trials are saved; run the same command "
            "again with a larger --budget."
        )

    def with_views(self, contenders: Sequence[Contender]) -> list[Contender]:
        """The contenders, the first with two views of each image if the user wants that: with `auto` if it is better.

        Its median run is repeated and evaluated in both ways.
        """
        if self.settings.views == 1 or not contenders:
            return list(contenders)
        first, *others = contenders
        limits, costs = self.settings.limits, first.record.metrics
        for cost in COSTS.values():
            if cost.by_view and 2 * costs.get(cost.metric, 0.0) > limits.get(cost.limit, math.inf):
                self.skipped.append(f"two views of an image, {cost.text(2 * costs[cost.metric])}: beyond the limit")
                return [first, *others]
        run = first.median(self.bench.scale)
        plan = run.plan.model_copy(update={"test_views": 2})
        task = f"views of the winner, trial {first.record.number}"
        outcome: Outcome = OutOfTime()
        if self.budget.left() > run.metrics["seconds"] + self._seconds_again(self._final(first), run):
            ((_, outcome),) = self.crew.carry_out([Training(task, plan, val=True)])
        if not isinstance(outcome, dict):
            why = why_not(outcome, task, self.settings)
            self.skipped.append(f"{task}, which failed: {why}" if why else f"no time for {task}")
            return [first, *others]
        value = outcome[f"val.{self.settings.metric}"]
        better = outcome["val.views.low"] > 0 and self.bench.scale.order(value) < self.bench.scale.order(run.value)
        used = self.settings.views == 2 or better
        self.watcher.note(
            f"With the mirrored image, too: {outcome['val.views.gain'] * 100:+.1f} points of accuracy on val (95 % "
            f"confidence interval {outcome['val.views.low'] * 100:+.1f} to {outcome['val.views.high'] * 100:+.1f}); "
            f"{'used' if used else 'not used'}."
        )
        return [Contender(first.record, (SeedRun(plan, value, outcome),)) if used else first, *others]

    def _final(self, winner: Contender) -> TransferPlan:
        """The plan that the winner's bundle is trained by."""
        run = winner.median(self.bench.scale)
        return on_all_images(run.plan, run.metrics, self.bench) if self.settings.refit else run.plan

    def _seconds_again(self, final: TransferPlan, run: SeedRun) -> float:
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
        self, contenders: Sequence[Contender], board: Sequence[TrialRecord]
    ) -> Iterator[tuple[Contender, TransferPlan]]:
        """The contenders that the existing bundle may belong to, with the plans that would have made it."""
        for contender in contenders:
            yield contender, self._final(contender)
        for record in board:
            contender = Contender.alone(record)
            yield contender, select.plan_of(record)
            if self._before and self._before.best.trial == record.number:
                yield contender, self._before.final

    def controls(self, winner: Contender, board: Sequence[TrialRecord]) -> Iterator[Control]:
        """The controls that the winner is compared with."""
        catalogue, note = self.bench.catalogue, self.watcher.note
        rows = [row for row in read_probe(self.folder) if row.backbone.partition(":")[0] in catalogue.host.backbones]
        run = winner.median(self.bench.scale)
        facts = facts_of(self.bench.dataset)
        return controls_of(run.plan, run.metrics["seconds"], board, rows, catalogue, facts, note)

    def _trained(
        self, job: Training | None, winner: Contender, final: TransferPlan, board: Sequence[TrialRecord]
    ) -> tuple[Outcome, dict[str, _Tested]]:
        """The outcome of the winner's last training, and the controls that were trained meanwhile or after it.

        `job`: None if the bundle is there already.
        """
        outcome: Outcome = None
        asked: dict[str, Control] = {}
        found: dict[str, _Tested] = {}

        def jobs() -> Iterator[Training]:
            nonlocal outcome
            if job:
                if self.budget.left() < self._seconds_again(final, winner.median(self.bench.scale)):
                    outcome = OutOfTime()
                    return
                yield job
            for control in self._lacking(final, winner, board):
                if isinstance(outcome, Exception):
                    return
                if asks := self._training(control, final):
                    asked[asks.task] = control
                    yield asks

        for done, result in self.crew.carry_out(jobs()):
            assert isinstance(done, Training)
            if done is job:
                outcome = result
                continue
            control = asked[done.task]
            if isinstance(result, dict):
                assert done.test
                found[control.name] = _Tested(control.plan, done.test)
            elif why := why_not(result, done.task, self.settings):
                self.skipped.append(f"the comparison with {control.name}, which failed: {why}")
            else:
                self._no_time_for(control)
        return outcome, found

    def _lacking(self, final: TransferPlan, winner: Contender, board: Sequence[TrialRecord]) -> Iterator[Control]:
        """The controls that the winner has to be compared with and is not yet."""
        if not self.settings.compare:
            return
        for control in self.controls(winner, board):
            self._wanted.append(control.name)
            if self.settings.ensemble > 1 or control.name not in self._earlier(final)[1]:
                yield control

    def _training(self, control: Control, final: TransferPlan) -> Training | None:
        """The training of a control, with a refit if the winner's plan `final` is one; None if there is no time."""
        plan, measured = control.plan, control.measured
        refit = "val" in final.train_on
        itself = 0.0 if refit and measured else control.seconds
        again = self.bench.refit_factor * control.seconds if refit else 0.0
        if self.budget.left() < itself + again:
            self._no_time_for(control)
            return None
        test = self._place / f"{len(self._wanted)}.npy"
        if refit and measured:
            plan = on_all_images(plan, measured, self.bench)
            return Training(f"refit of {control.name}", plan, test=test)
        return Training(control.name, plan, refit=refit, test=test)

    def _no_time_for(self, control: Control) -> None:
        self.skipped.append(f"no time for the comparison with {control.name}")

    def _earlier(self, made: Made) -> tuple[Test | None, dict[str, Comparison]]:
        """The test of this model by an earlier run of the study, with its comparisons."""
        known = self._before
        return (known.test, known.comparisons) if known and known.made == made else (None, {})

    def alone(self, winner: Contender, final: TransferPlan) -> dict[str, _Tested]:
        """The winner's model as a control of its ensemble."""
        name = f"the winner alone (trial {winner.record.number})"
        self._wanted.insert(0, name)
        return {name: _Tested(final, self._predicted(self.folder.member(final), "winner.npy"))}

    def test(self, made: Made, controls: Mapping[str, _Tested], trials: int) -> tuple[Test, dict[str, Comparison]]:
        """The test of the bundle, and its comparisons with controls: of an earlier run, as far as it had them."""
        test, comparisons = self._earlier(made)
        if test is None or controls:
            test, more = self.judge(made, controls, trials)
            comparisons = comparisons | more
        return test, {name: comparisons[name] for name in self._wanted if name in comparisons}

    def judge(self, made: Made, controls: Mapping[str, _Tested], trials: int) -> tuple[Test, dict[str, Comparison]]:
        """Open the sealed test split, once, for the bundle and the controls together."""
        given = np.load(self._predicted(self.folder.bundle, "bundle.npy"))
        others = {name: np.load(control.test) for name, control in controls.items()}
        dataset, metric = self.bench.dataset, self.bench.metrics[0]
        labels = dataset.open_test(self.folder.test_openings, plan=made.hash, trials=trials)
        units, guessed = dataset.units("test"), given.argmax(1)
        comparisons = {}
        for name, control in controls.items():
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

    def _predicted(self, model: Path, name: str) -> Path:
        """The file with the predictions of a saved bundle for the test images: [N, C] float64."""
        job = Prediction(model, self._place / name)
        for _, outcome in self.crew.carry_out([job]):
            if isinstance(outcome, Exception):
                raise outcome
        return job.test
