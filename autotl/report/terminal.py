"""Progress and results of a search: a live display in a terminal, plain lines in a file or a pipe."""

import math
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click
from rich.console import RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from autotl.engine.scale import Scale
from autotl.errors import StudyError
from autotl.registry import on_stderr
from autotl.report import advice as advices
from autotl.report import notebook, tables, words
from autotl.report.console import Console, say
from autotl.report.output import printable
from autotl.study.costs import COSTS, USUAL
from autotl.study.select import leaderboard, value_of
from autotl.study.watch import Estimate
from autotl.tracking import result as results
from autotl.tracking.advice import Advice
from autotl.tracking.folder import StudyFolder
from autotl.tracking.log import TrialRecord
from autotl.tracking.probe import ProbeRow, read_probe

if TYPE_CHECKING:
    from autotl.data.dataset import Dataset

TRIALS = "trials"
QUIET = 20.0
"""Seconds without output after which a log gets a line about the current step."""


@dataclass
class _Step:
    """Something that the search is doing."""

    what: str
    place: str = ""
    """How far it has come."""
    since: float = field(default_factory=time.monotonic)

    def __str__(self) -> str:
        return f"{self.what}: {self.place}" if self.place else self.what


class Terminal:
    """Shows a search on a console; see `autotl.study.watch.Watcher`."""

    def __init__(self, console: Console, *, brief: bool) -> None:
        self.console = console
        self.brief = brief
        """Only notes and failures, no tables: the result is printed elsewhere."""
        self._scale = Scale()
        self._left: Callable[[], float] = lambda: math.inf
        self._running: dict[int, _Step] = {}
        """The running trials, by number."""
        self._doing: dict[str, _Step] = {}
        """The other tasks, by name."""
        self._live = _Live(
            lambda: self._running.values(),
            _Words(lambda task: task.description),
            BarColumn(bar_width=16, table_column=Column(no_wrap=True)),
            TextColumn("{task.completed:.0f}/{task.total:.0f}", table_column=Column(no_wrap=True)),
            _Clock(lambda: self._left()),
            _Words(lambda task: task.fields["detail"]),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._started: dict[str, float] = {}
        self._best: TrialRecord | None = None
        self._between = self._printed = time.monotonic()
        """When the last step ended; when the last line was printed."""
        self._over = threading.Event()
        self._pulse = threading.Thread(target=self._break_silences, daemon=True)

    def __enter__(self) -> "Terminal":
        self._live.start()
        if not (self.brief or self.console.is_terminal):
            self._pulse.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()
        self._over.set()
        if self._pulse.is_alive():
            self._pulse.join()

    def note(self, text: str) -> None:
        self._print(text)

    def budget(self, left: Callable[[], float]) -> None:
        self._left = left

    def confirm(self, question: str) -> None:
        self._live.stop()
        if not sys.stdin.isatty():
            raise StudyError(f"{question} Use --yes (from Python: yes=True) to continue without being asked.")
        if not click.confirm(printable(question), err=True):
            raise StudyError("Nothing was downloaded or started. Choose other weights with --backbones or --pool.")
        self._live.start()

    def dataset(self, dataset: "Dataset") -> None:
        if not self.brief:
            self._print(tables.dataset(dataset))

    def scale(self, scale: Scale) -> None:
        self._scale = scale

    def estimate(self, estimate: Estimate) -> None:
        if not self.brief:
            features = f"will take about {_duration(estimate.features)}" if estimate.features else "are stored already"
            self.note(f"Features {features}. A linear probe takes about {_duration(estimate.linear_probe)}.")

    def progress(self, task: str, done: int, total: int) -> None:
        self._update(task, done, total)
        step = self._doing.setdefault(task, _Step(task))
        step.place = f"{done:,} of {total:,}" if total > 1 else ""
        if done >= total:
            del self._doing[task]
            self._between = time.monotonic()
            seconds = time.perf_counter() - self._started.pop(task)
            self._live.remove_task(self._tasks.pop(task))
            if not self.brief:
                self.note(f"{task}: {f'{total:,} in ' if total > 1 else ''}{_duration(seconds)}")

    def probed(self, rows: Sequence[ProbeRow]) -> None:
        if not self.brief:
            self._print(tables.probe(rows, self.console.width))

    def advised(self, advice: Advice) -> None:
        if not self.brief:
            self.note(advices.in_a_line(advice))

    def trial_planned(self, number: int, what: str, done: int, total: int) -> None:
        self._running[number] = _Step(f"trial {number}  {what}")
        self._update(TRIALS, done, total, self._so_far())

    def trial_epoch(self, number: int, place: str) -> None:
        if number in self._running:
            self._running[number].place = place

    def trial_ended(self, record: TrialRecord, best: TrialRecord | None, done: int, total: int) -> None:
        self._best = best
        self._running.pop(record.number, None)
        self._between = time.monotonic()
        self._update(TRIALS, done, total, self._so_far())
        if not self.brief and not self.console.is_terminal:
            self.note(_line(record, done, total, self._best, self._scale))
        elif record.state == "failed":
            self.note(f"Trial {record.number} failed: {record.reason}")

    def _update(self, task: str, done: int, total: int, detail: str = "") -> None:
        if task not in self._tasks:
            self._tasks[task] = self._live.add_task(task, total=total, detail=detail)
            self._started[task] = time.perf_counter()
        self._live.update(self._tasks[task], completed=done, detail=detail)

    def _print(self, what: RenderableType) -> None:
        self._printed = time.monotonic()
        if isinstance(what, str):
            say(self.console, what)
        else:
            self.console.print(what)

    def _break_silences(self) -> None:
        """Print the current steps after every silence, from a thread: one step of the search may take long."""
        while not self._over.wait(min(1.0, QUIET / 4)):
            now = time.monotonic()
            if now - self._printed >= QUIET:
                left = self._left()
                budget = f"; {_duration(left)} of the budget left" if math.isfinite(left) else ""
                steps = [*list(self._doing.values()), *list(self._running.values())]
                for step in steps or [_Step("working", since=self._between)]:
                    self.note(f"{step}, {_duration(now - step.since)} so far{budget}")

    def _so_far(self) -> str:
        return f"best {self._scale.text(value_of(self._best))} (trial {self._best.number})" if self._best else ""


class _Live(Progress):
    """Progress of tasks, and below them one line for each running trial."""

    def __init__(self, running: Callable[[], Iterable[_Step]], *columns: ProgressColumn, **options: Any) -> None:
        self._running = running
        super().__init__(*columns, **options)

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        for step in list(self._running()):
            yield Text(str(step), no_wrap=True, overflow="ellipsis")


class _Words(ProgressColumn):
    """Text about a task, in one line that is shortened to the width."""

    def __init__(self, of: Callable[[Task], str]) -> None:
        super().__init__()
        self._of = of

    def render(self, task: Task) -> Text:
        return Text(self._of(task), no_wrap=True, overflow="ellipsis")


class _Clock(ProgressColumn):
    """Time left of the budget; without a budget the estimated time left of a task, or of trials the time so far."""

    def __init__(self, left: Callable[[], float]) -> None:
        super().__init__(table_column=Column(no_wrap=True))
        self._budget_left = left

    def render(self, task: Task) -> Text:
        left, to_go = self._budget_left(), task.time_remaining
        if math.isfinite(left):
            return Text(f"{_clock(left)} left")
        # The duration of trials differs too much to predict the rest.
        if to_go is not None and task.description != TRIALS:
            return Text(f"about {_clock(to_go)} to go")
        return Text(f"{_clock(task.elapsed or 0.0)} so far")


class Epochs:
    """Shows a single training, epoch by epoch; see `autotl.engine.observe.Observer`."""

    may_have_enough = False

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal

    def step(self) -> None: ...

    def epoch(self, phase: int, epoch: int, facts: Mapping[str, float]) -> None:
        if not self._terminal.brief:
            shown = [f"{name} {value:.4g}" for name, value in facts.items() if name.endswith(("loss", ".accuracy"))]
            self._terminal.note(f"phase {phase} epoch {epoch}  {'  '.join(shown)}")

    def note(self, text: str) -> None:
        self._terminal.note(text)


@contextmanager
def watcher(*, quiet: bool) -> Iterator[Terminal]:
    """A watcher on standard output or below a notebook's cell; if `quiet`, a brief one on standard error.

    Other output, such as that of plugins, goes to standard error.
    """
    console = notebook.console() if notebook.is_here() else tables.console(stderr=quiet)
    with Terminal(console, brief=quiet) as terminal, on_stderr():
        yield terminal


def show_result(folder: StudyFolder) -> None:
    """Print the leaderboard, the summary of the winner, and the next commands."""
    definition, result = folder.definition, results.load(folder)
    console = tables.console()
    assert definition is not None
    records = list(folder.log.records())
    console.print()
    metric, scale = definition.metric, definition.scale
    board = leaderboard(records, scale, definition.fingerprint)
    cost = COSTS[definition.minimize or USUAL]
    table = tables.leaderboard(board, metric, scale, console.width, cost=cost)
    console.print(table)
    plans = "plan" if len(board) == 1 else "different plans"
    stars = any(not column.header for column in table.columns)  # a narrow table has none
    meaning = f"; *: no plan with {cost.less} is as good" if stars else ""
    say(console, f"{len(board)} {plans} trained in {len(records)} trials{meaning}")
    console.print()
    now = [record for record in records if not record.plan or record.plan.data.fingerprint == definition.fingerprint]
    console.print(tables.strategies(now, metric, scale, console.width))
    failed = [record for record in records if record.state == "failed"]
    for record in failed[:3]:
        say(console, f"Trial {record.number} failed: {record.reason}")
    console.print()
    if result is None:
        say(
            console,
            f"No winner yet. Wait if a search is running; otherwise resume it: {words.go_on(folder, definition)}",
        )
        return
    for line in words.summary(result):
        say(console, line)
    console.print(f"Bundle: {result.bundle}", soft_wrap=True)
    if folder.report.exists():
        console.print(f"Report: {folder.report}", soft_wrap=True)
    console.print("\nNext:")
    for line in words.next_steps(folder, result):
        say(console, f"  {line}")


def show_study(folder: StudyFolder) -> None:
    """Print the probe and the result of a study on disk."""
    if folder.probe.exists():
        console = tables.console()
        console.print(tables.probe(read_probe(folder), console.width))
    show_result(folder)


def _line(record: TrialRecord, done: int, total: int, best: TrialRecord | None, scale: Scale) -> str:
    head, plan = f"[{done}/{total}] trial {record.number}", record.plan
    what = ""
    if plan:
        kind = "" if plan.head.kind == "linear" else f", {plan.head.title}"
        what = f"  {record.params['strategy']} {plan.backbone} → {plan.cut} ({plan.head.pooling}{kind})"
    if record.value is None:
        return f"{head}  {record.state}{what}: {record.reason}"
    best_value = scale.text(value_of(best)) if best else ""
    return f"{head}  {scale.text(record.value)}  best {best_value}{what}  {_duration(record.seconds)}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _duration(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
