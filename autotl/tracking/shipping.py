"""The process that logs a running search to MLflow, so that the search never waits for the server."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from shlex import quote
from typing import IO, TYPE_CHECKING

from filelock import FileLock

from autotl.errors import masked, one_line
from autotl.files import owner_only
from autotl.tracking.folder import StudyFolder

if TYPE_CHECKING:
    from autotl.tracking.mlflow import Outcome, Projection

URI = "MLFLOW_TRACKING_URI"
SQLITE = "sqlite:///"
EVERY = 2.0
"""Seconds between two reads of the study folder."""
LONGEST_PAUSE = 30.0
"""The longest pause before an unreachable server is tried again, in seconds."""
LAST_TRIES = (2.0, 4.0, 8.0, 0.0)
"""Pauses after each failed attempt to send the rest when the search is over, in seconds."""
PATIENCE = 120.0
"""Seconds that a finished search waits until the rest has been sent."""
LAST = 19
"""The lowest priority."""
RESTARTS = 3
"""How often a process that died is restarted."""
NOT_ALL = 3
"""The exit code of a process that has already reported what MLflow lacks."""
LATER = "The rest of this search is not logged to MLflow; send it later with autotl log."
SAFE_PATH = {"PYTHONSAFEPATH": "1"}
"""As `python -P`, for a process and its children: no module is imported from the working folder."""


def tracking_uri(named: str | None, home: Path) -> str:
    """MLflow's server or store: what the user named, `MLFLOW_TRACKING_URI`, or SQLite in the workspace."""
    uri = named or os.environ.get(URI) or f"{SQLITE}{home / 'mlflow.db'}"
    # A relative path is resolved here, as the process that opens it may run elsewhere.
    if uri.startswith(SQLITE):
        return f"{SQLITE}{Path(uri.removeprefix(SQLITE)).resolve()}"
    folder = uri.removeprefix("file:")
    return uri if ":" in folder or folder.startswith("/") or folder == "databricks" else str(Path(folder).resolve())


def tracking_option(named: str | None) -> str:
    """` --tracking-uri URI` for the server that the user named, without its secrets."""
    return f" --tracking-uri {quote(masked(named))}" if named else ""


def why(error: object) -> str:
    """The message of a failure of MLflow or of the network; of a long one, such as a page, only both ends."""
    return one_line(error, 700)


def only_writer(folder: StudyFolder, uri: str) -> FileLock:
    """The lock of the process that logs this study to this server."""
    return FileLock(folder.path / f".mlflow-{sha256(uri.encode()).hexdigest()[:8]}.lock")


class Shipping:
    """The process beside a search, which runs `autotl log --follow`. It is restarted if it dies."""

    def __init__(self, folder: StudyFolder, uri: str, cache_dir: Path, say: Callable[[str], None]) -> None:
        """`say` is called from another thread with messages for the user."""
        self._say = say
        self._complaints = folder.path / ".mlflow.log"
        self._words = ["log", folder.name, "--home", str(folder.path.parent), "--follow", "--cache-dir", str(cache_dir)]
        self._environment = {**os.environ, **SAFE_PATH, URI: uri, "OMP_NUM_THREADS": "1"}
        self._turn = threading.Lock()
        self._left = False
        self._complaints.unlink(missing_ok=True)
        self._process = self._start()
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._keeper.start()

    def _start(self) -> "subprocess.Popen[str]":
        with open(self._complaints, "a", opener=owner_only) as complaints:
            process = subprocess.Popen(
                [sys.executable, "-m", "autotl", *self._words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=complaints,
                text=True,
                env=self._environment,
                start_new_session=True,  # Ctrl-C stops only the search: this process then sends the rest
            )
        if hasattr(os, "setpriority"):
            # The search comes first, already while this process imports MLflow.
            os.setpriority(os.PRIO_PROCESS, process.pid, LAST)
        return process

    def _keep(self) -> None:
        """Pass on the messages of the process, and restart it if it dies."""
        for starts_left in range(RESTARTS, -1, -1):
            with self._process as process:
                assert process.stdout
                for line in process.stdout:
                    self._say(line.strip())
            if process.returncode in (0, NOT_ALL):
                return
            what = f"The process that logs to MLflow {self._death()}"
            if not starts_left:
                self._say(f"{what}. It is not restarted. {LATER}")
                return
            self._say(f"{what}. It is restarted.")
            with self._turn:
                try:
                    self._process = self._start()
                except OSError as error:
                    self._say(f"It cannot be restarted: {error.strerror}. {LATER}")
                    return
                if self._left:
                    self._close()

    def _death(self) -> str:
        code = self._process.returncode
        if code < 0:
            return f"was killed by signal {-code}"
        last = self._complaints.read_text(errors="replace").strip().rpartition("\n")[2]
        return f"ended with exit code {code} ({one_line(last, 200) or 'no reason given'})"

    @property
    def failed(self) -> bool:
        """Whether it has ended without sending everything."""
        return bool(self._process.returncode)

    def leave(self) -> None:
        """Signal the process that the search is over. It sends the rest and then ends."""
        with self._turn:
            self._left = True
            self._close()

    def _close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()

    def wait(self, seconds: float) -> bool:
        """Wait up to `seconds`; whether it has ended."""
        self._keeper.join(seconds)
        return not self._keeper.is_alive()


def follow(projection: "Projection", outcome: "Outcome", say: Callable[[str], None], until: IO[str]) -> bool:
    """Log a study to MLflow until `until` is closed, then the rest; whether all of it arrived.

    A server that cannot be reached is retried, and `say` is called once.
    """
    place = masked(projection.uri)
    over = threading.Event()

    def listen() -> None:
        until.read()
        over.set()

    threading.Thread(target=listen, daemon=True).start()
    failures, watched, warm, reported = 0, False, False, ""
    watching = ExitStack()
    with only_writer(projection.folder, projection.uri):
        while not over.wait(min(EVERY * 2 ** min(failures, 8), LONGEST_PAUSE)):
            try:
                projection.ship()
                if failures or not watched:
                    watching.close()  # it stops when the server fails
                    watching.callback(projection.watch_the_machine())
                    watched = True
                failures = 0
                if not warm and projection.folder.bundle.exists():
                    warm = True
                    outcome.warm_up()
            except Exception as error:  # a server, a network and a database fail in many ways
                failures += 1
                if failures == 1:
                    reported = why(error)
                    say(f"MLflow at {place} fails; the search continues without it: {reported}")
        watching.close()
        for pause in LAST_TRIES if watched else (0.0,):  # a server that was reachable may return
            try:
                projection.end(outcome)
                return True
            except Exception as error:
                reason = why(error)
                time.sleep(pause)
    lacks = f"lacks the end of study '{projection.folder.name}'" if watched else "has received nothing of this search"
    because = "." if reason == reported else f": {reason}"
    say(f"MLflow at {place} {lacks}{because} It is all in the study's folder; send it later with autotl log.")
    return False
