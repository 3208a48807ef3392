"""The trial log: what happened in each trial, one JSON line an event, in `trials/<number>.jsonl`.

The study folder is the truth; leaderboards and trackers read from here.
"""

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from autotl.files import append_line, read_lines
from autotl.plan import TransferPlan

State = Literal["running", "complete", "pruned", "failed", "interrupted"]
STATES = get_args(State)
ENDED = ("complete", "pruned", "failed")
"""The states that count towards a study's total."""


@dataclass(frozen=True)
class TrialRecord:
    """A trial as its log tells it."""

    number: int
    state: State
    params: dict[str, Any]
    plan: TransferPlan | None
    value: float | None
    metrics: dict[str, float]
    seconds: float
    reason: str
    """Why a trial failed or was pruned."""
    epochs: tuple[dict[str, float], ...]
    """What was measured after each epoch, with its `phase` and `epoch`."""
    kills: int
    """How often its process was killed while it ran."""


class TrialLog:
    """The trial logs of one study, in its folder `trials/`."""

    def __init__(self, study_folder: Path) -> None:
        self.folder = study_folder / "trials"

    def begin(self, number: int) -> None:
        """A trial begins. What an earlier attempt at it left is kept, and no longer counts."""
        self._append(number, {"event": "begin"})

    def planned(self, number: int, params: dict[str, Any], plan: TransferPlan) -> None:
        self._append(number, {"event": "plan", "params": params, "plan": plan.model_dump(mode="json")})

    def epoch(self, number: int, phase: int, epoch: int, facts: Mapping[str, float]) -> None:
        self._append(number, {"event": "epoch", "phase": phase, "epoch": epoch, "facts": dict(facts)})

    def end(
        self,
        number: int,
        state: State,
        *,
        value: float | None = None,
        metrics: dict[str, float] | None = None,
        seconds: float = 0.0,
        reason: str = "",
    ) -> None:
        event = {"event": "end", "state": state, "value": value, "metrics": metrics or {}, "seconds": seconds}
        self._append(number, {**event, "reason": reason})

    def records(self) -> Iterator[TrialRecord]:
        """Every trial in order of number, as its last attempt left it."""
        for file in sorted(self.folder.glob("*.jsonl")):
            yield _read(file)

    def read(self, number: int) -> TrialRecord:
        """A trial that has not begun reads as one that is running and has done nothing."""
        return _read(self._file(number))

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:05d}.jsonl"

    def _append(self, number: int, event: dict[str, Any]) -> None:
        append_line(self._file(number), json.dumps({"time": time.time(), "trial": number, **event}))


def _read(file: Path) -> TrialRecord:
    attempt: dict[str, Any] = {}
    epochs: list[dict[str, float]] = []
    kills = 0
    running = False
    for event in read_lines(file):
        if event["event"] == "begin":
            kills += running
            attempt, epochs, running = {}, [], True
        elif event["event"] == "epoch":
            epochs.append({"phase": event["phase"], "epoch": event["epoch"], **event["facts"]})
        else:
            attempt |= event
            running = running and event["event"] != "end"
    plan = attempt.get("plan")
    return TrialRecord(
        number=int(file.stem),
        state=attempt.get("state", "running"),
        params=attempt.get("params", {}),
        plan=TransferPlan.from_json(json.dumps(plan), name=str(file)) if plan else None,
        value=attempt.get("value"),
        metrics=attempt.get("metrics", {}),
        seconds=attempt.get("seconds", 0.0),
        reason=attempt.get("reason", ""),
        epochs=tuple(epochs),
        kills=kills + running,
    )
