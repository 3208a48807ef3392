"""A study on disk: what lies where in the workspace."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import Annotated, Any, Literal, TypeVar

from filelock import FileLock, Timeout
from pydantic import BaseModel, Field

from autotl.errors import DamagedFile, PlanError, StudyError, unknown
from autotl.files import is_utf8, read, write
from autotl.plan import NearCopies, Record
from autotl.tracking.log import TrialLog


class Definition(Record):
    """What a study is: fixed before its first trial, compared when it goes on. `study.json`."""

    schema_: Literal[1] = Field(default=1, alias="schema")
    name: str
    data: str = ""
    """The folder or manifest of the images, where it lay when the study was last searched."""
    columns: dict[str, str] = Field(default={})
    """The columns that the user named, where the data is a manifest: of `path` and of `label`."""
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
    owners: dict[str, Annotated[dict[str, str], Field(min_length=1, max_length=1)]] = Field(default={})
    """Who provides what it may use, by kind and name: the distribution with its version."""
    metric: str
    seed: int
    near_copies: NearCopies = "together"
    """As in `DataRef`."""
    device: str
    """Its kind, such as `cuda`."""
    versions: dict[str, str]

    def differences(self, other: "Definition") -> dict[str, str]:
        """Each key that differs, with `this → other`; of a table each name in it, as in `versions timm`.

        Where the images lie, and by which columns they are known, makes no difference.
        """
        mine, theirs = self.model_dump(exclude={"data", "columns"}), other.model_dump()
        found = {}
        for key, value in mine.items():
            named = isinstance(value, dict)
            one, two = (value, theirs[key]) if named else ({"": value}, {"": theirs[key]})
            for name in one | two:
                if one.get(name) != two.get(name):
                    found[f"{key} {name}".strip()] = f"{_shown(one.get(name))} → {_shown(two.get(name))}"
        return found


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {each}" for name, each in value.items())
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


R = TypeVar("R", bound=Record)


def read_record(kind: type[R], file: Path) -> R | None:
    """What a file of a study holds, None where there is none.

    Raises: DamagedFile.
    """
    if not file.exists():
        return None
    try:
        return kind.from_json(read(file), name="what it holds")
    except PlanError as error:
        raise DamagedFile(file, str(error).rstrip(".")) from None


class Rerun(BaseModel):
    """A line of `reruns.jsonl`: one of the best plans, carried out again with another seed."""

    time: float
    trial: int
    plan: str
    """The hash of the plan that was carried out."""
    carried_out: dict[str, Any]
    """That plan."""
    metrics: dict[str, float]


class SearchLine(BaseModel):
    """A line of `searches.jsonl`: how the study was searched at a time."""

    time: float
    command: str
    options: dict[str, Any]


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
        self.searches = path / "searches.jsonl"
        self.result = path / "result.json"
        self._lock = FileLock(path / ".lock")

    @property
    def exists(self) -> bool:
        """Whether a study lies here, though its `study.json` may be lost."""
        return os.path.lexists(self.path / "study.json") or bool(self.log.files())

    @property
    def words(self) -> str:
        """The words by which commands find this study: its name, and `--home` where that is needed."""
        return f"{quote(self.name)}{home_option(self.path.parent)}"

    @property
    def definition(self) -> Definition | None:
        """Raises: DamagedFile."""
        return read_record(Definition, self.path / "study.json")

    def require_definition(self) -> Definition:
        """Raises: DamagedFile, also where it is missing."""
        found = self.definition
        if found is None:
            raise StudyError(f"{self.path / 'study.json'} is missing. Say the same search again: it is made anew.")
        return found

    @property
    def database(self) -> Path:
        """Optuna's storage, where it is no other one."""
        return self.path / "optuna.db"

    @property
    def storage(self) -> str:
        """As `storage_of`, by `study.json`."""
        return self.storage_of(self.definition)

    def storage_of(self, definition: Definition | None) -> str:
        """Where Optuna keeps a study that lies in this folder.

        Raises: StudyError where its password is not known here.
        """
        if definition is None or definition.storage is None:
            return f"sqlite:///{self.database.resolve()}"
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
    if home.is_dir():
        yield from (folder for path in sorted(home.iterdir()) if (folder := StudyFolder(path)).exists)


def find_study(home: Path, name: str) -> StudyFolder:
    """Raises: StudyError for a study that is not there, with the nearest name; DamagedFile."""
    folder = StudyFolder(home / name)
    if not folder.exists:
        raise StudyError(unknown("study", name, [study.name for study in studies(home)], f"Looked in {home}."))
    folder.require_definition()
    return folder
