"""Keeping MLflow up to date while a search goes on, in a process beside it that the search never waits for."""

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
"""Seconds between two looks at the study folder."""
LONGEST_PAUSE = 30.0
"""Seconds after which an unreachable server is tried again, at the latest."""
LAST_TRIES = (2.0, 4.0, 8.0, 0.0)
"""Seconds after each vain try to ship the rest when the search is over."""
PATIENCE = 120.0
"""Seconds that a finished search waits for the last of it to arrive."""


def tracking_uri(named: str | None, home: Path) -> str:
    """MLflow's server or store: what the user named, `MLFLOW_TRACKING_URI`, or SQLite in the workspace."""
    uri = named or os.environ.get(URI) or f"{SQLITE}{home / 'mlflow.db'}"
    # Wherever the process runs that opens it: a relative path is meant from here.
    return f"{SQLITE}{Path(uri.removeprefix(SQLITE)).resolve()}" if uri.startswith(SQLITE) else uri


def tracking_option(named: str | None) -> str:
    """` --tracking-uri URI` as commands need it to find the server that the user named, without what is secret."""
    return f" --tracking-uri {quote(masked(named))}" if named else ""


def only_writer(folder: StudyFolder, uri: str) -> FileLock:
    """The lock that whoever ships this study to this server holds."""
    return FileLock(folder.path / f".mlflow-{sha256(uri.encode()).hexdigest()[:8]}.lock")


class Shipping:
    """The process beside a search; `autotl log --follow` is what it runs."""

    def __init__(self, folder: StudyFolder, uri: str, cache_dir: Path, say: Callable[[str], None]) -> None:
        """`say` is told, from another thread, what the user should read."""
        words = ["log", folder.name, "--home", str(folder.path.parent), "--follow"]
        words += ["--cache-dir", str(cache_dir)]
        with open(folder.path / ".mlflow.log", "w", opener=owner_only) as complaints:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "autotl", *words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=complaints,
                text=True,
                env={**os.environ, URI: uri, "OMP_NUM_THREADS": "1"},
                start_new_session=True,  # Ctrl-C is for the search: this one then ships the rest
            )
        threading.Thread(target=self._listen, args=[self._process.stdout, say], daemon=True).start()

    @staticmethod
    def _listen(lines: IO[str], say: Callable[[str], None]) -> None:
        for line in lines:
            say(line.strip())

    @property
    def failed(self) -> bool:
        """Whether it has ended without having told all."""
        return bool(self._process.returncode)

    def leave(self) -> None:
        """Tell the process that nothing more will come. It ships the rest and ends, in its own time."""
        assert self._process.stdin
        self._process.stdin.close()

    def wait(self, seconds: float) -> bool:
        """Whether it has ended after so many seconds at most."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True


def follow(projection: "Projection", outcome: "Outcome", say: Callable[[str], None], until: IO[str]) -> bool:
    """Ship what happens in a study until `until` is closed, then the rest; whether all of it arrived.

    A server that cannot be reached is tried again and again, and `say` tells of it once.
    """
    if hasattr(os, "nice"):
        os.nice(10)  # the search comes first
    place = masked(projection.uri)
    over = threading.Event()

    def listen() -> None:
        until.read()
        over.set()

    threading.Thread(target=listen, daemon=True).start()
    failures, watched, warm = 0, False, False
    watching = ExitStack()
    with only_writer(projection.folder, projection.uri):
        while not over.wait(min(EVERY * 2 ** min(failures, 8), LONGEST_PAUSE)):
            try:
                projection.ship()
                if failures or not watched:
                    watching.close()  # it gives up where the server does
                    watching.callback(projection.watch_the_machine())
                    watched = True
                failures = 0
                if not warm and projection.folder.bundle.exists():
                    warm = True
                    outcome.warm_up()
            except Exception as error:  # a server, a network and a database fail in many ways
                failures += 1
                if failures == 1:
                    say(f"MLflow at {place} fails, the search goes on without: {one_line(error, 200)}")
        watching.close()
        for pause in LAST_TRIES if watched else (0.0,):  # one that was there may come back
            try:
                projection.end(outcome)
                return True
            except Exception as error:
                reason = one_line(error, 200)
                time.sleep(pause)
    say(
        f"MLflow at {place} lacks the last of study '{projection.folder.name}': {reason} "
        "What there is lies in the study's folder."
    )
    return False
