"""A study on disk: what lies where in the workspace."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import Literal

from filelock import FileLock, Timeout
from pydantic import Field

from autotl.errors import StudyError, unknown
from autotl.files import is_utf8, write
from autotl.plan import Record
from autotl.tracking.log import TrialLog


class Definition(Record):
    """What a study is: fixed before its first trial, compared when it goes on. `study.json`."""

    schema_: Literal[1] = Field(default=1, alias="schema")
    name: str
    data: str = ""
    """The folder or manifest of the images, where it lay when the study was last searched."""
    optuna: str
    """The study's name in Optuna's storage: unique, as several workspaces may share one."""
    storage: str | None
    """Optuna's storage without its password, None: SQLite in this folder."""
    fingerprint: str
    classes: tuple[str, ...]
    backbones: dict[str, str]
    """Every backbone that may be chosen, with its weights as a plan records them."""
    left_out: tuple[str, ...] = ()
    """Backbones that were asked for, and that failed or that the budget had no time for."""
    strategies: tuple[str, ...]
    augmentations: tuple[str, ...]
    owners: dict[str, dict[str, str]] = Field(default={})
    """Who provides what it may use, by kind and name: the distribution with its version."""
    metric: str
    seed: int
    device: str
    """Its kind, such as `cuda`."""
    versions: dict[str, str]

    def differences(self, other: "Definition") -> dict[str, str]:
        """Each key that differs, with `this → other`; where the images lie makes no difference."""
        mine, theirs = self.model_dump(exclude={"data"}), other.model_dump()
        return {key: f"{mine[key]} → {theirs[key]}" for key in mine if mine[key] != theirs[key]}


class StudyFolder:
    """The folder of one study."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        self.log = TrialLog(path)
        self.bundle = path / "bundle"
        self.test_openings = path / "test_openings.jsonl"
        self.probe = path / "probe.json"
        self.reruns = path / "reruns.jsonl"
        self.result = path / "result.json"
        self._lock = FileLock(path / ".lock")

    @property
    def words(self) -> str:
        """The words by which commands find this study: its name, and `--home` where that is needed."""
        return f"{quote(self.name)}{home_option(self.path.parent)}"

    @property
    def definition(self) -> Definition | None:
        file = self.path / "study.json"
        return Definition.from_json(file.read_text(), name=str(file)) if file.exists() else None

    @property
    def storage(self) -> str:
        """Where Optuna keeps the study.

        Raises: StudyError where its password is not known here.
        """
        definition = self.definition
        if definition is None or definition.storage is None:
            return f"sqlite:///{self.path.resolve() / 'optuna.db'}"
        if "***" in definition.storage:
            raise StudyError(f"The password of {definition.storage} is not kept: set AUTOTL_STORAGE to the whole URL.")
        return definition.storage

    def define(self, definition: Definition) -> None:
        """Write `study.json`, whole or not at all."""
        write(self.path / "study.json", definition.to_json(), private=True)

    @property
    def is_live(self) -> bool:
        """Whether a process is searching in it."""
        try:
            with self._lock.acquire(timeout=0):
                return False
        except Timeout:
            return True

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the study for this process.

        Raises: StudyError when another process is searching in it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout:
            raise StudyError(
                f"Study '{self.name}' is being searched by another process. Wait for it, or start another: --study NAME"
            ) from None
        except OSError as error:
            raise StudyError(f"The study cannot be written to {self.path}: {error.strerror}. Say --home DIR.") from None
        try:
            yield
        finally:
            self._lock.release()


def home(named: Path | None) -> Path:
    """The workspace: what the user named, `AUTOTL_HOME`, or `./autotl-studies`.

    Raises: StudyError for a name that is not UTF-8.
    """
    place = named or Path(os.environ.get("AUTOTL_HOME") or "autotl-studies")
    if not is_utf8(place):
        raise StudyError(f"The name of the workspace '{place}' is not UTF-8. Name another folder: --home DIR")
    return place


def home_option(workspace: Path) -> str:
    """` --home DIR` as commands need it to look in this workspace, nothing where they do anyway."""
    return "" if workspace.resolve() == home(None).resolve() else f" --home {quote(str(workspace))}"


def cache_dir(named: Path | None) -> Path:
    """Where pixels, features and facts are kept: what the user named, or the user's cache folder."""
    if named:
        return named
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "autotl"


def studies(home: Path) -> Iterator[StudyFolder]:
    """Every study of a workspace, by name."""
    for file in sorted(home.glob("*/study.json")):
        yield StudyFolder(file.parent)


def find_study(home: Path, name: str) -> StudyFolder:
    """Raises: StudyError for a study that is not there, with the nearest name."""
    folder = StudyFolder(home / name)
    if folder.definition is None:
        raise StudyError(unknown("study", name, [study.name for study in studies(home)], f"Looked in {home}."))
    return folder
