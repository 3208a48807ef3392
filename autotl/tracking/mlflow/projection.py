"""Logs the study folder as MLflow runs: one for the study, a nested one for each attempt at a trial and for each
training after the trials.

The study folder is the source. Only what the server lacks is sent, and sending it again changes nothing: a tag of each
run says how many events of its log it has, and MLflow counts a metric that is logged twice once.
"""

import csv
import json
import math
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Run

from autotl.files import read_lines, write
from autotl.plan import TransferPlan, digest
from autotl.tracking.flat import flat
from autotl.tracking.folder import Definition, Rerun, SearchLine, StudyFolder
from autotl.tracking.log import Event, attempts
from autotl.tracking.mlflow import champion, page
from autotl.tracking.mlflow.server import Server, as_metrics, milliseconds
from autotl.tracking.result import Result, load

if TYPE_CHECKING:
    from autotl.export.bundle import Bundle

STATUS = {
    "complete": "FINISHED",
    "pruned": "KILLED",
    "failed": "FAILED",
    "interrupted": "KILLED",
}
KILLED = "its process was killed"
STUDY, TRIAL, ATTEMPT, EVENTS = "autotl.study", "autotl.trial", "autotl.attempt", "autotl.events"
STATE, RESULT = "autotl.state", "autotl.result"
AFTER, SHIPPED = "autotl.after", "autotl.shipped"
"""Tags of a run for a training after the trials: its key, and a hash of what was sent."""
PARENT, NAME, NOTE = "mlflow.parentRunId", "mlflow.runName", "mlflow.note.content"
CHOSEN = (
    "backbones",
    "strategies",
    "augmentations",
    "optimizers",
    "objectives",
    "adapters",
    "methods",
    "heads",
    "classifiers",
)
"""The keys of a study's definition with the names that it searches over."""
SPLIT = Path("data") / "split.csv"


@dataclass
class _Shown:
    """What the server has of an attempt at a trial."""

    run: str
    events: int
    open: bool


@dataclass(frozen=True)
class _After:
    """A training after the trials."""

    name: str
    plan: TransferPlan
    strategy: str
    metrics: dict[str, float]
    note: str
    at: float
    """When it ended."""
    seconds: float = 0.0
    """Its duration, 0 if unknown."""


class Outcome(Protocol):
    """What MLflow shows of a finished study besides its numbers."""

    def words(self, result: Result) -> list[str]:
        """The summary of the result, the most important line first."""

    def against(self, result: Result, control: str) -> str:
        """The line about one of the controls, by its name."""

    def files(self) -> dict[str, str | bytes]:
        """Tables and pictures by file name."""

    def model(self) -> "Bundle":
        """The winner, on the CPU."""

    def warm_up(self) -> None:
        """Import what exporting the model needs, while the search is still running."""


class Projection:
    """One study on one server. Every method may raise any exception of MLflow or of the network."""

    def __init__(self, folder: StudyFolder, uri: str) -> None:
        self.folder = folder
        self.uri = uri
        self._dataset: Dataset | None = None
        self._forget()

    def find(self) -> tuple[str, str] | None:
        """The ids of the experiment and of the study's run, None if the server does not have it."""
        definition = self.folder.definition
        assert definition is not None
        server = Server(self.uri, definition.name)
        experiment = server.experiment
        runs = server.runs(experiment.experiment_id, STUDY, definition.optuna) if experiment else []
        parent = _parent_of(runs)
        return (parent.info.experiment_id, parent.info.run_id) if parent else None

    def ship(self) -> None:
        """Send to the server what is new in the study folder."""
        try:
            self._ship_trials()
        except BaseException:
            self._forget()  # the server may have stored a part: its state is read again
            raise

    def end(self, outcome: Outcome) -> None:
        """Send the rest, the result and the model. Without a running search, trials still running count as killed."""
        self.ship()
        if not self._parent or self.folder.is_live:
            return
        for shown in self._shown.values():
            if shown.open:
                self._close(shown, "interrupted", KILLED, time.time())
        result, definition = load(self.folder), self.folder.definition
        if result and definition:
            self._ship_result(definition, result, outcome)
            champion.register(self._server, self._parent, self.folder, result, outcome.words(result), outcome.model)
        last = max((file.stat().st_mtime for file in self.folder.log.files()), default=0.0)
        finished = result is not None and self.folder.result.stat().st_mtime >= last
        self._server.client.set_terminated(self._parent, "FINISHED" if finished else "KILLED")

    def _ship_trials(self) -> None:
        definition = self.folder.definition
        if definition is None:
            return
        if not self._parent:
            self._connect(definition)
        for number, tried in self._changed_trials():
            for attempt, events in enumerate(tried):
                self._ship_attempt(definition, number, attempt, events, last=attempt == len(tried) - 1)
            if tried and tried[-1][-1]["event"] == "end":
                self._ends[number] = tried[-1][-1]
        self._ship_best(definition)
        if self._has_grown(self.folder.reruns):
            self._ship_reruns(definition)
        if self._has_grown(self.folder.searches):
            self._ship_search()

    def _forget(self) -> None:
        self._parent = ""
        self._experiment = ""
        self._shown: dict[tuple[int, int], _Shown] = {}
        self._after: dict[str, tuple[str, str]] = {}
        self._sizes: dict[Path, int] = {}
        self._ends: dict[int, Event] = {}
        self._best_shipped = 0

    def watch_the_machine(self) -> Callable[[], None]:
        """Log load and memory of this machine to the study's run until the returned function is called."""
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        monitor = SystemMetricsMonitor(self._parent, resume_logging=True, tracking_uri=self.uri)
        monitor.start()
        return monitor.finish

    def _connect(self, definition: Definition) -> None:
        """Find this study on the server, or create it there."""
        self._server = Server(self.uri, definition.name)
        home = self.folder.path.resolve().parent
        self._experiment = self._server.begin_experiment(home, page.tags(definition.metric, definition.scale))
        runs = self._server.runs(self._experiment, STUDY, definition.optuna)
        parent = _parent_of(runs) or self._begin_study(self._experiment, definition)
        for run in runs:
            tags = run.data.tags
            if PARENT in tags and tags[PARENT] != parent.info.run_id:  # the study's run before this one was deleted
                self._server.client.set_tag(run.info.run_id, PARENT, parent.info.run_id)
            if TRIAL in tags:
                shown = _Shown(run.info.run_id, int(tags.get(EVENTS, 0)), run.info.status == "RUNNING")
                self._shown[int(tags[TRIAL]), int(tags[ATTEMPT])] = shown
            elif AFTER in tags:
                self._after[tags[AFTER]] = run.info.run_id, tags.get(SHIPPED, "")
        if parent.info.status != "RUNNING":
            self._server.client.update_run(parent.info.run_id, status="RUNNING")
        if EVENTS not in parent.data.tags:
            self._describe_study(parent.info.run_id, definition)
        self._parent = parent.info.run_id

    def _begin_study(self, experiment: str, definition: Definition) -> Run:
        tags = {
            STUDY: definition.optuna,
            "autotl.device": definition.device,
            "autotl.data": definition.data,
            **{f"version.{name}": version for name, version in definition.versions.items()},
        }
        began = milliseconds((self.folder.path / SPLIT).stat().st_mtime)
        return self._server.client.create_run(experiment, start_time=began, tags=tags, run_name=definition.name)

    def _describe_study(self, run: str, definition: Definition) -> None:
        params = {
            "metric": definition.metric,
            "seed": definition.seed,
            "device": definition.device,
            "classes": len(definition.classes),
            **definition.limits,
            **({"minimize": definition.minimize} if definition.minimize else {}),
            **{f"set.{name}": value for name, value in definition.set.items()},
            **{key: ", ".join(getattr(definition, key)) for key in CHOSEN},
        }
        self._server.log(run, params=params)
        self._log_dataset(run, definition)
        self._server.client.set_tag(run, EVENTS, "started")

    def _log_dataset(self, run: str, definition: Definition) -> None:
        if self._dataset is None or not definition.fingerprint.startswith(self._dataset.digest):
            with open(self.folder.path / SPLIT, encoding="utf-8", errors="replace", newline="") as file:
                splits = Counter(row["split"] for row in csv.DictReader(file))
            self._dataset = Dataset(
                name=Path(definition.data).name or definition.name,
                digest=definition.fingerprint[:12],
                source_type="local",
                source=json.dumps({"uri": definition.data}),
                profile=json.dumps({"images": splits.total(), "classes": len(definition.classes), **splits}),
            )
        self._server.client.log_inputs(
            run, [DatasetInput(self._dataset, [InputTag("mlflow.data.context", "training")])]
        )

    def _changed_trials(self) -> Iterator[tuple[int, list[list[Event]]]]:
        """The trials whose logs have grown since the last call, with the events of each attempt."""
        for file in self.folder.log.files():
            if self._has_grown(file):
                yield int(file.stem), attempts(file)

    def _has_grown(self, file: Path) -> bool:
        """Whether a log has grown since the last call, or since sending failed."""
        size = file.stat().st_size if file.exists() else 0
        grown = self._sizes.get(file, 0) != size
        self._sizes[file] = size
        return grown

    def _ship_attempt(
        self, definition: Definition, number: int, attempt: int, events: Sequence[Event], *, last: bool
    ) -> None:
        shown = self._shown.get((number, attempt))
        if shown is None:
            shown = self._shown[number, attempt] = self._begin_attempt(definition, number, attempt, events[0])
        if not shown.events:
            self._log_dataset(shown.run, definition)
        if shown.events < len(events):
            plan = next((TransferPlan.from_json(json.dumps(e["plan"])) for e in events if e["event"] == "plan"), None)
            fresh = events[shown.events :]
            epochs = [event for event in fresh if event["event"] == "epoch"]
            self._server.log(shown.run, metrics=[metric for event in epochs for metric in _epoch_metrics(event, plan)])
            for event in fresh:
                if event["event"] == "plan":
                    assert plan is not None
                    self._log_plan(shown.run, number, event["params"], plan)
                elif event["event"] == "end":
                    words = plan.words_in(event["metrics"]) if plan else {}
                    numbers = {name: value for name, value in event["metrics"].items() if name not in words}
                    params = {f"chosen.{name}": word for name, word in words.items()}
                    self._server.log(shown.run, metrics=as_metrics(numbers, event["time"], 0), params=params)
                    self._close(shown, event["state"], event["reason"], event["time"])
            self._server.client.set_tag(shown.run, EVENTS, str(len(events)))
            shown.events = len(events)
        if shown.open and not last:
            self._close(shown, "interrupted", KILLED, events[-1]["time"])

    def _begin_attempt(self, definition: Definition, number: int, attempt: int, begin: Event) -> _Shown:
        tags = {
            PARENT: self._parent,
            STUDY: definition.optuna,
            TRIAL: str(number),
            ATTEMPT: str(attempt),
            "autotl.worker": begin.get("worker", ""),
            "autotl.device": definition.device,
            STATE: "running",
        }
        started = milliseconds(begin["time"])
        run = self._server.client.create_run(self._experiment, start_time=started, tags=tags, run_name=str(number))
        return _Shown(run.info.run_id, 0, open=True)

    def _log_plan(self, run: str, number: int, searched: Mapping[str, Any], plan: TransferPlan) -> None:
        tags = {
            NAME: f"{number} {_what(searched['strategy'], plan)}",
            **{f"version.{name}": version for name, version in plan.requires.items() if name != "stages"},
        }
        drawn = {f"searched.{name}": value for name, value in searched.items()}
        self._server.log(run, params={"strategy": searched["strategy"], **flat(plan), **drawn}, tags=tags)
        self._server.client.log_text(run, plan.to_json(), "plan.json")

    def _close(self, shown: _Shown, state: str, reason: str, at: float) -> None:
        """A run may have been closed as interrupted before, by a process without the whole log."""
        name = re.sub(r" \(\w+\)$", "", str(self._server.client.get_run(shown.run).info.run_name))
        tags = {STATE: state, NAME: name, NOTE: ""}
        if state != "complete":
            tags |= {NAME: f"{name} ({state})", NOTE: _note(state, reason)}
        self._server.log(shown.run, tags=tags)
        self._server.client.set_terminated(shown.run, STATUS[state], end_time=milliseconds(at))
        shown.open = False

    def _ship_best(self, definition: Definition) -> None:
        """Log the best value so far by number of trial, up to the first trial that has not ended."""
        best = math.nan
        points: list[Metric] = []
        for number, event in sorted(self._ends.items()):
            if number != len(points):
                break
            if event["state"] == "complete":
                value = event["value"]
                best = value if math.isnan(best) else min(best, value, key=definition.scale.order)
            points.append(Metric(f"best/{definition.metric}", best, milliseconds(event["time"]), number))
        fresh = [point for point in points[self._best_shipped :] if math.isfinite(point.value)]
        self._server.log(self._parent, metrics=fresh)
        self._best_shipped = len(points)

    def _ship_search(self) -> None:
        """Log the options of the last search as tags: they may change, and MLflow's params cannot."""
        *_, last = read_lines(self.folder.searches, SearchLine.model_validate)
        tags = {f"search.{name}": str(value) for name, value in last["options"].items()}
        self._server.log(self._parent, tags={**tags, "search.command": last["command"]})

    def _ship_reruns(self, definition: Definition) -> None:
        """Log the reruns of the best plans with other seeds."""
        for event in read_lines(self.folder.reruns, Rerun.model_validate):
            plan = TransferPlan.from_json(json.dumps(event["carried_out"]))
            number, metrics = event["trial"], event["metrics"]
            strategy = self.folder.log.read(number).params["strategy"]
            after = _After(
                name=f"{number} with seed {plan.seed}: {_what(strategy, plan)}",
                plan=plan,
                strategy=strategy,
                metrics=metrics,
                note=f"Rerun of trial {number} with seed {plan.seed}.",
                at=event["time"],
                seconds=metrics["seconds"],
            )
            self._ship_after(definition, after)

    def _tested(self, result: Result, outcome: Outcome, at: float) -> Iterator[_After]:
        """What was tested on the test split: the winner, if it was refit, and the controls.

        Of an ensemble the winner alone is a control.
        """
        metric, best = result.test.metric, result.best
        if result.final != best.plan and not result.ensemble:
            known = ("parameters", "flops", "latency_ms")
            costs = {name: best.metrics[name] for name in known if name in best.metrics}
            yield _After(
                name=f"winner, refit on all images except the test images (trial {best.trial})",
                plan=result.final,
                strategy=best.strategy,
                metrics={f"test.{metric}": result.test.value, **costs},
                note="The model in the study's bundle.",
                at=at,
            )
        for name, found in result.comparisons.items():
            yield _After(
                name=f"comparison: {name}",
                plan=found.plan,
                strategy="comparison",
                metrics={f"test.{metric}": found.value},
                note=outcome.against(result, name),
                at=at,
            )

    def _ship_after(self, definition: Definition, after: _After) -> None:
        key = f"{after.name} {after.plan.hash[:12]}"
        mark = digest([after.metrics, after.note])
        run, shipped = self._after.get(key, ("", ""))
        if shipped == mark:
            return
        if not run:
            tags = {PARENT: self._parent, STUDY: definition.optuna, AFTER: key, "autotl.device": definition.device}
            began = milliseconds(after.at - after.seconds)
            made = self._server.client.create_run(self._experiment, start_time=began, tags=tags, run_name=after.name)
            run = made.info.run_id
            self._after[key] = run, ""
        self._log_dataset(run, definition)
        words = after.plan.words_in(after.metrics)
        params = {"strategy": after.strategy, **flat(after.plan), **{f"chosen.{name}": w for name, w in words.items()}}
        numbers = {name: value for name, value in after.metrics.items() if name not in words}
        metrics = as_metrics(numbers, after.at, 0)
        self._server.log(run, params=params, metrics=metrics, tags={NOTE: after.note})
        self._server.client.log_text(run, after.plan.to_json(), "plan.json")
        self._server.client.set_terminated(run, "FINISHED", end_time=milliseconds(after.at))
        self._server.log(run, tags={SHIPPED: mark})
        self._after[key] = run, mark

    def _ship_result(self, definition: Definition, result: Result, outcome: Outcome) -> None:
        mark = digest(result.model_dump(mode="json"))
        if self._server.client.get_run(self._parent).data.tags.get(RESULT) == mark:
            return
        metric = result.test.metric
        metrics = {
            f"val.{metric}": result.best.validation,
            **{
                f"test.{name}": getattr(result.test, name)
                for name in ("low", "high", "images", "units", "most_frequent")
                if getattr(result.test, name) is not None
            },
            f"test.{metric}": result.test.value,
            "seconds": result.seconds,
        }
        at = self.folder.result.stat().st_mtime
        for after in self._tested(result, outcome, at):
            self._ship_after(definition, after)
        self._server.log(self._parent, metrics=as_metrics(metrics, at, 0))
        plan = result.best.plan
        winner = {"trial": str(result.best.trial), "strategy": result.best.strategy}
        winner |= {"backbone": plan.backbone, "cut": plan.cut}
        note = [*outcome.words(result), *self._link(result.best.trial)]
        self._server.log(
            self._parent,
            tags={NOTE: "\n\n".join(note), **{f"winner.{name}": value for name, value in winner.items()}},
        )
        files = {"result.json": result.to_json(), "best_plan.json": plan.to_json(), **outcome.files()}
        with tempfile.TemporaryDirectory() as place:
            for name, content in files.items():
                write(Path(place) / name, content)
            self._server.client.log_artifacts(self._parent, place)
        self._server.log(self._parent, tags={RESULT: mark})

    def _link(self, number: int) -> list[str]:
        """A link to the run of a trial."""
        runs = {attempt: shown.run for (trial, attempt), shown in self._shown.items() if trial == number}
        if not runs:
            return []
        return [f"[The run of trial {number}](#/experiments/{self._experiment}/runs/{runs[max(runs)]})"]


def _parent_of(runs: Sequence[Run]) -> Run | None:
    """The run of the study itself among its runs; None if it was never created, or was deleted."""
    return next((run for run in runs if PARENT not in run.data.tags), None)


def _note(state: str, reason: str) -> str:
    """The description of a run that did not complete: `**pruned**: at 27 % of its epochs`."""
    return f"**{state}**: {reason.removeprefix(f'{state} ')}"


def _what(strategy: str, plan: TransferPlan) -> str:
    return f"{strategy} {plan.backbone} → {plan.cut}"


def _epoch_metrics(event: Event, plan: TransferPlan | None) -> list[Metric]:
    """The metrics of an epoch, under `epoch/`, with its step among the epochs of all phases."""
    step = (plan.epochs(event["phase"] - 1) if plan else 0) + event["epoch"]
    return as_metrics({f"epoch/{name}": value for name, value in event["facts"].items()}, event["time"], step)
