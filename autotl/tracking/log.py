"""The trial log: the events of each trial, one JSON line each, in `trials/<number>.jsonl`.

These logs are the source for leaderboards and for MLflow.
"""

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter

from autotl.errors import DamagedFile, PlanError
from autotl.files import append_line, read_lines
from autotl.plan import TransferPlan

Event = dict[str, Any]
"""A line of a log: its `time`, `trial` and kind of `event`, and the fields of that kind."""
State = Literal["running", "complete", "pruned", "failed", "interrupted"]
STATES = get_args(State)
ENDED = ("complete", "pruned", "failed")
"""The states that count towards a study's total."""
MEASURED = ("val.loss", "parameters", "flops", "seconds")
"""The metrics of every completed trial, besides the study's metric."""


def _none_or_two(values: list[float]) -> list[float]:
    if len(values) not in (0, 2):
        raise ValueError("must be empty, or a value and a percentage")
    return values


class _Line(BaseModel):
    """The fields of every line of a log. Fields not named here are not checked."""

    model_config = ConfigDict(strict=True)

    time: float = 0.0


class _Begin(_Line):
    event: Literal["begin"]


class _Drawn(_Line):
    params: dict[str, Any] = {}
    distributions: dict[str, dict[str, Any]] = {}
    attrs: dict[str, Any] = {}


class _Planned(_Drawn):
    event: Literal["plan"]
    plan: dict[str, Any]


class _Epoch(_Line):
    event: Literal["epoch"]
    phase: int
    epoch: int
    facts: dict[str, float]
    told: Annotated[list[float], AfterValidator(_none_or_two)] = []


class _End(_Drawn):
    event: Literal["end"]
    state: State
    value: float | None = None
    metrics: dict[str, float] = {}
    seconds: float = 0.0
    reason: str = ""
    by_plugin: bool = False


_LINE: TypeAdapter[_Line] = TypeAdapter(Annotated[_Begin | _Planned | _Epoch | _End, Field(discriminator="event")])


@dataclass(frozen=True)
class TrialRecord:
    """A trial, read from its log."""

    number: int
    state: State
    params: dict[str, Any]
    plan: TransferPlan | None
    value: float | None
    metrics: dict[str, float]
    seconds: float
    reason: str
    """Why a trial failed, was pruned or was stopped by the budget."""
    by_plugin: bool
    """Whether a plugin caused the failure."""
    epochs: tuple[dict[str, float], ...]
    """The metrics of each epoch, with its `phase` and `epoch`."""
    kills: int
    """The highest number of times that its process was killed at the same place."""
    killed_at: str
    """That place, such as `after epoch 3 of phase 1`."""
    told: tuple[tuple[float, int], ...] = ()
    """The intermediate values reported to Optuna: the metric, and the share of its epochs in percent."""
    distributions: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The Optuna distribution of each of `params`."""
    attrs: dict[str, Any] = field(default_factory=dict)
    """Further attributes of the trial in Optuna, such as which first guess it was."""


class TrialLog:
    """The trial logs of one study, in its folder `trials/`."""

    def __init__(self, study_folder: Path) -> None:
        self.folder = study_folder / "trials"

    def begin(self, number: int, worker: str) -> None:
        """Log that `worker` starts a trial. Earlier attempts stay in the log but no longer count."""
        self._append(number, {"event": "begin", "worker": worker})

    def planned(self, number: int, params: dict[str, Any], plan: TransferPlan, **drawn: Any) -> None:
        """`drawn`: `distributions` and `attrs` as in `TrialRecord`."""
        self._append(number, {"event": "plan", "params": params, "plan": plan.model_dump(mode="json"), **drawn})

    def epoch(
        self, number: int, phase: int, epoch: int, facts: Mapping[str, float], told: tuple[float, int] | None = None
    ) -> None:
        """`told`: what is reported to Optuna, as in `TrialRecord`."""
        event = {"event": "epoch", "phase": phase, "epoch": epoch, "facts": dict(facts), "told": list(told or ())}
        self._append(number, event)

    def end(
        self,
        number: int,
        state: State,
        *,
        value: float | None = None,
        metrics: dict[str, float] | None = None,
        seconds: float = 0.0,
        reason: str = "",
        **more: Any,
    ) -> None:
        """`more`: of a trial that may have no plan its `params` as in `planned`; of a failed one the `traceback`, and
        `by_plugin`; of one that the budget stopped the `plan` that was trained; the `chosen` options that are words."""
        event = {"event": "end", "state": state, "value": value, "metrics": metrics or {}, "seconds": seconds}
        self._append(number, {**event, "reason": reason, **more})

    def adopt(self, number: int, events: Iterable[Event]) -> None:
        """Append the events that another process logged for its attempt at a trial."""
        for event in events:
            append_line(self._file(number), json.dumps(event))

    def last_attempt(self, number: int) -> list[Event]:
        tried = attempts(self._file(number))
        return tried[-1] if tried else []

    def records(self) -> Iterator[TrialRecord]:
        """The last attempt of every trial, in order of number."""
        return map(_read, self.files())

    def read(self, number: int) -> TrialRecord:
        """A trial that has not started is read as a running one without events."""
        return _read(self._file(number))

    def files(self) -> list[Path]:
        """The logs of all started trials, in order of number."""
        numbered = [file for file in self.folder.glob("*.jsonl") if file.stem.isdecimal()]
        return sorted(numbered, key=lambda file: int(file.stem))

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:05d}.jsonl"

    def _append(self, number: int, event: dict[str, Any]) -> None:
        append_line(self._file(number), json.dumps({"time": time.time(), "trial": number, **event}))


def attempts(file: Path) -> list[list[Event]]:
    """The events of each attempt at a trial: there are several if a process was killed or interrupted.

    Raises: DamagedFile.
    """
    found: list[list[Event]] = []
    for event in read_lines(file, _LINE.validate_python):
        if event["event"] == "begin" or not found:
            found.append([])
        found[-1].append(event)
    return found


def _place(events: Sequence[Event]) -> str:
    """The place up to which an attempt at a trial ran."""
    last = events[-1]
    if last["event"] == "epoch":
        return f"after epoch {last['epoch']} of phase {last['phase']}"
    return "before its first epoch"


def _read(file: Path) -> TrialRecord:
    """Raises: DamagedFile."""
    tried = attempts(file)
    last = tried[-1] if tried else []
    told: dict[str, Any] = {}
    for event in last:
        told |= event
    killed = Counter(_place(events) for events in tried if events[-1]["event"] != "end")
    ((killed_at, kills),) = killed.most_common(1) or [("", 0)]
    record = TrialRecord(
        number=int(file.stem),
        state=told.get("state", "running"),
        params=told.get("params", {}),
        plan=_plan(file, told.get("plan")),
        value=told.get("value"),
        metrics=told.get("metrics", {}),
        seconds=told.get("seconds", 0.0),
        reason=told.get("reason", ""),
        by_plugin=told.get("by_plugin", False),
        epochs=tuple(
            {"phase": event["phase"], "epoch": event["epoch"], **event["facts"]}
            for event in last
            if event["event"] == "epoch"
        ),
        kills=kills,
        killed_at=killed_at,
        told=tuple((event["told"][0], int(event["told"][1])) for event in last if event.get("told")),
        distributions=told.get("distributions", {}),
        attrs=told.get("attrs", {}),
    )
    if record.plan and "strategy" not in record.params:
        raise DamagedFile(file, "the strategy of its plan is missing")
    if record.plan and record.state == "complete":
        missing = [name for name in MEASURED if name not in record.metrics]
        if record.value is None or missing:
            raise DamagedFile(file, f"the trial is complete without {', '.join(missing) or 'its value'}")
    return record


def _plan(file: Path, plan: dict[str, Any] | None) -> TransferPlan | None:
    try:
        return TransferPlan.from_json(json.dumps(plan), name="its plan") if plan else None
    except PlanError as error:
        raise DamagedFile(file, str(error).rstrip(".")) from None
