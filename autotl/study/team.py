"""The processes that a search starts on its machine: workers that it gives jobs, and that end with it.

A worker is `python -m autotl.study.team FD`, with one end of a pair of sockets as its file FD. It gets an invitation
and then jobs, and answers with what its watcher hears and with the outcome of each job. It ends when its search dies.
"""

import os
import pickle
import signal
import subprocess
import sys
import threading
import traceback
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

import psutil
import torch

from autotl.data.listing import Columns
from autotl.engine.exact import exact
from autotl.errors import AutotlError, StudyError, one_line
from autotl.files import owner_only
from autotl.host import Host
from autotl.study.budget import Budget
from autotl.study.joining import Joining, Shared
from autotl.study.machine import one_line_each
from autotl.study.opening import Opened
from autotl.study.settings import Settings
from autotl.study.storage import SEARCH, SharedStudy
from autotl.study.watch import Silent, Watcher
from autotl.study.worker import Failed, Job, NextTrial, Outcome, Pass, Ran, Worker, passing
from autotl.tracking.folder import StudyFolder

ENTRY = "autotl.study.team"
"""The module that a worker's process runs."""
LOOK = 0.5
"""Seconds to wait for a message before looking for new jobs."""
STARTS = 4
"""How often a worker is started before it is given up."""
TRIES = 3
"""After killing this many workers a job has failed."""
NEEDED = 2_000_000_000
"""Bytes of main memory for each worker on a CPU."""


def devices(settings: Settings, device: str) -> list[str]:
    """The device of each process of the search; one if it works alone.

    `auto` is one process for each GPU, and on a CPU one for each core while there is memory.

    Raises: StudyError if processes cannot share the plugins.
    """
    kind, _, number = device.partition(":")
    gpus = [f"cuda:{at}" for at in range(torch.cuda.device_count())] if kind == "cuda" and not number else [device]
    if settings.workers == "auto":
        fitting = min(_cores(), psutil.virtual_memory().available // NEEDED) if kind == "cpu" else len(gpus)
        wanted = max(1, fitting)
    else:
        wanted = settings.workers
    if wanted > 1 and not all(isinstance(plugin, Path) for plugin in settings.plugins):
        raise StudyError("With several workers a plugin must be installed or a file; name its file in plugins.")
    return [gpus[at % len(gpus)] for at in range(wanted)] if wanted > 1 else [device]


def _cores() -> int:
    """Physical cores that this process may use."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, psutil.cpu_count(logical=False) or usable)


@dataclass(frozen=True)
class Invitation:
    """What a process has to know to become a worker of a search."""

    url: str
    optuna: str
    folder: Path
    settings: Settings
    columns: Columns
    cache_dir: Path
    began: float
    """When the search began, by `time.monotonic()`, which all processes of a machine share."""


class Team:
    """The workers of a search, which do its jobs. A worker that dies is started again, and its job is done again."""

    def __init__(self, folder: Path, devices: list[str], watcher: Watcher) -> None:
        """`folder`: of the study, for what the workers write to standard error."""
        self.size = len(devices)
        self._watcher = watcher
        self._invitation: Invitation | None = None
        self._given: dict[_Process, tuple[int, Job]] = {}
        self._again: deque[tuple[int, Job]] = deque()
        self._finished: dict[int, tuple[Job, Outcome]] = {}
        self._tries: dict[int, int] = {}
        self._next = 0
        self._progress: dict[str, dict[int, int]] = {}
        self._noted: set[str] = set()
        threads = max(1, _cores() // self.size)
        start = partial(_Process, folder, threads)
        self._workers = [start(number, device) for number, device in enumerate(devices, 1)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    @property
    def alive(self) -> frozenset[str]:
        return frozenset(worker.who for worker in self._workers if worker.runs)

    def invite(self, opened: Opened, columns: Columns) -> None:
        """Let the processes join a study; they have been started before, because importing libraries takes long."""
        definition = opened.folder.require_definition()
        self._invitation = Invitation(
            opened.settings.storage or opened.folder.storage_of(definition),
            definition.optuna,
            opened.folder.path,
            opened.settings,
            columns,
            opened.bench.catalogue.cache_dir,
            opened.budget.began,
        )
        for worker in self._workers:
            worker.invite(self._invitation)

    def carry_out(self, jobs: Iterable[Job | None]) -> Iterator[tuple[Job, Outcome]]:
        """As `Hands.carry_out`. It may be called again while the jobs of another call are being done."""
        left, own = iter(jobs), set[int]()
        more = True
        while more or own:
            for worker in self._workers:
                if worker in self._given or not worker.runs:
                    continue
                if self._again:
                    self._give(worker, *self._again.popleft())
                    continue
                if not more:
                    break
                try:
                    job = next(left)
                except StopIteration:
                    more = False
                    break
                if job is None:
                    break
                self._next += 1
                own.add(self._next)
                self._give(worker, self._next, job)
            done = own & self._finished.keys()
            for number in sorted(done):
                own.remove(number)
                yield self._finished.pop(number)
            if not done and (more or own):
                self._listen()

    def end(self) -> None:
        """Stop all work. Nothing is lost by a kill, and none of them ignores it."""
        for worker in self._workers:
            worker.kill()
        self._given.clear()

    def _give(self, worker: "_Process", number: int, job: Job) -> None:
        self._given[worker] = number, job
        worker.send(job)

    def _listen(self) -> None:
        """Wait for a message and handle it, and those that came with it.

        Raises: an error that ended a worker's job and ends the search; StudyError if no worker is left.
        """
        running = [worker for worker in self._workers if worker.runs]
        if not running:
            raise StudyError(
                f"All workers of the search died, the last one because it {self._workers[-1].death()}. Finished trials "
                "are saved. Run the same command again, with fewer --workers if there is too little memory."
            )
        ready = wait([worker.pipe for worker in running], LOOK)
        for worker in running:
            if worker.pipe in ready:
                try:
                    kind, *what = worker.pipe.recv()
                except (EOFError, OSError, pickle.UnpicklingError):
                    self._died(worker)
                else:
                    self._heard(worker, kind, *what)

    def _heard(self, worker: "_Process", kind: str, *what: Any) -> None:
        if kind == "done":
            number, job = self._given[worker]
            if isinstance(job, Pass) and not isinstance(what[0], Exception):
                self._progressed(worker, passing(job), len(job.shas), job.of)
            self._finished[number] = self._given.pop(worker)[1], what[0]
        elif kind == "error":
            raise what[0]
        elif kind == "note":
            if what[0] not in self._noted:  # they all see the same plugins and stores
                self._noted.add(what[0])
                self._watcher.note(*what)
        elif kind == "progress":
            self._progressed(worker, *what)
        else:
            getattr(self._watcher, kind)(*what)

    def _progressed(self, worker: "_Process", task: str, done: int, total: int) -> None:
        """Several workers may do parts of one task."""
        parts = self._progress.setdefault(task, {})
        before = sum(parts.values()) if parts else -1
        parts[self._given[worker][0]] = done
        if sum(parts.values()) != before:
            self._watcher.progress(task, sum(parts.values()), total)

    def _died(self, worker: "_Process") -> None:
        worker.kill(after=LOOK)
        number, job = self._given.pop(worker, (0, None))
        how = worker.death()
        if isinstance(job, NextTrial):
            self._finished[number] = job, Ran(more=True)  # the crew finds the trial in the storage
        elif job:
            self._tries[number] = self._tries.get(number, 0) + 1
            if self._tries[number] < TRIES:
                self._again.append((number, job))
            elif isinstance(job, Pass):
                raise StudyError(
                    f"{TRIES} workers died in the pass of the images through {job.network.backbone}; the last one "
                    f"{how}. Finished work is saved. Search without this backbone, or with fewer --workers."
                )
            else:
                self._finished[number] = job, Failed(f"{TRIES} workers died in it; the last one {how}")
        if worker.starts < STARTS and self._invitation:
            self._watcher.note(f"Worker {worker.number} {how}. It is started again.")
            worker.start()
            worker.invite(self._invitation)
        else:
            self._watcher.note(f"Worker {worker.number} {how}. It is not started again.")


class _Process:
    """One worker, seen by its search."""

    def __init__(self, folder: Path, threads: int, number: int, device: str) -> None:
        self.number, self.device = number, device
        self.starts = 0
        self._complaints = folder / f".worker-{number}.log"
        self._complaints.unlink(missing_ok=True)
        self._environment = {"OMP_NUM_THREADS": str(threads), **os.environ, "PYTHONSAFEPATH": "1"}
        self.start()

    def start(self) -> None:
        self.starts += 1
        self.who = f"{SEARCH}:{uuid4().hex[:8]}"
        self.pipe, theirs = Pipe()
        with open(self._complaints, "a", opener=owner_only) as complaints:
            self._process = subprocess.Popen(
                [sys.executable, "-m", ENTRY, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=complaints,
                stderr=complaints,
                env=self._environment,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for the search, which stops its workers
            )
        theirs.close()
        self.runs = True

    def invite(self, invitation: Invitation) -> None:
        self.send((invitation, self.who, self.device))

    def send(self, what: object) -> None:
        with suppress(OSError):  # it has died, which reading from it will tell
            self.pipe.send(what)

    def kill(self, after: float = 0.0) -> None:
        """Kill it unless it ends by itself within `after` seconds."""
        if self.runs:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(after)
            self._process.kill()
            self._process.wait()
            self.pipe.close()
            self.runs = False

    def death(self) -> str:
        """How it ended: `was killed by signal 9`."""
        code = self._process.returncode
        if code < 0:
            return f"was killed by signal {-code}"
        last = self._complaints.read_text(errors="replace").strip().rpartition("\n")[2]
        return f"ended with exit code {code} ({one_line(last, 200) or 'no reason given'})"


class _Reporter(Silent):
    """Tells the search what its watcher should hear."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._turn = threading.Lock()
        self.works = False

    def tell(self, *message: object) -> None:
        with self._turn:
            self._pipe.send(message)

    def note(self, text: str) -> None:
        self.tell("note", text)

    def progress(self, task: str, done: int, total: int) -> None:
        if self.works:  # before, it gets ready, as the others do
            self.tell("progress", task, done, total)

    def trial_planned(self, number: int, what: str, done: int, total: int) -> None:
        self.tell("trial_planned", number, what, done, total)

    def trial_epoch(self, number: int, place: str) -> None:
        self.tell("trial_epoch", number, place)


def _run(pipe: Connection) -> None:
    """A worker's process, until its search ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    inbox: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_receive, args=[pipe, inbox], daemon=True).start()
    reporter = _Reporter(pipe)
    try:
        invitation, who, device = pickle.loads(inbox.get())
        worker, study = _joined(invitation, who, device, reporter)
        reporter.works = True
        while True:
            job = pickle.loads(inbox.get())
            if isinstance(job, NextTrial):
                worker.trials.see_others()
            with one_line_each(study), exact(worker.bench.device):
                outcome = worker.do(job)
            reporter.tell("done", _portable(outcome) if isinstance(outcome, AutotlError) else outcome)
    except AutotlError as error:
        reporter.tell("error", _portable(error))
    except Exception:  # a bug: its traceback is for the search's user
        reporter.tell("error", RuntimeError(f"A worker of the search failed.\n{traceback.format_exc()}"))
    threading.Event().wait()  # the search ends this process


def _joined(invitation: Invitation, who: str, device: str, reporter: _Reporter) -> tuple[Worker, str]:
    """The worker, and the name of its study."""
    settings, folder = invitation.settings, StudyFolder(invitation.folder)
    joining = Joining(
        SharedStudy.join(invitation.url, invitation.optuna, who),
        Host.from_environment(settings.plugins),
        reporter,
        data=settings.data,
        columns=invitation.columns,
        device=device,
        cache_dir=invitation.cache_dir,
        weights=settings.weights,
        shared=Shared(folder, settings, Budget(settings.budget, invitation.began)),
    )
    return joining.worker(folder), folder.name


def _receive(pipe: Connection, inbox: "SimpleQueue[bytes]") -> None:
    """Put what the search sends into the inbox; end this process when the search has ended."""
    while True:
        try:
            inbox.put(pipe.recv_bytes())
        except (EOFError, OSError):
            os._exit(1)


def _portable(error: AutotlError) -> AutotlError:
    """The error, or one with the same message that another process can read."""
    try:
        pickle.loads(pickle.dumps(error))
    except TypeError:
        return StudyError(str(error))
    return error


if __name__ == "__main__":
    _run(Connection(int(sys.argv[1])))
