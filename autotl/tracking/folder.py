"""The folder of a study: its files, its definition, its lock; and the workspace."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import Annotated, Any, Literal, TypeVar

from filelock import FileLock, Timeout
from pydantic import BaseModel, Field

from autotl.engine.scale import Scale
from autotl.errors import DamagedFile, PlanError, StudyError, unknown
from autotl.files import is_utf8, read, write
from autotl.plan import HeadKind, Minimized, NearCopies, Pooling, Record, Technique, TransferPlan
from autotl.tracking.log import TrialLog


class Definition(Record):
    """The settings of a study: fixed before its first trial, compared when it resumes. `study.json`."""

    schema_: Literal[1] = Field(default=1, alias="schema")
    name: str
    data: str = ""
    """The folder or manifest of the images, as of the last search."""
    columns: dict[str, str] = Field(default={})
    """If the data is a manifest, the columns that the user named for `path` and `label`."""
    optuna: str
    """The study's name in Optuna's storage: unique, because workspaces may share a storage."""
    storage: str | None
    """Optuna's storage without its password, None: SQLite in this folder."""
    fingerprint: str
    classes: tuple[str, ...]
    backbones: dict[str, str]
    """Every backbone to search over, with its weights as a plan records them."""
    providers: dict[str, Annotated[dict[str, str], Field(min_length=1, max_length=1)]] = Field(default={})
    """The distribution, with its version, whose plugin provided the weights of a backbone, by backbone."""
    skipped: tuple[str, ...] = ()
    """Backbones that were requested but failed, cost too much, or for which the budget was too short."""
    strategies: tuple[str, ...]
    augmentations: tuple[str, ...]
    optimizers: tuple[str, ...]
    objectives: tuple[str, ...]
    adapters: tuple[str, ...]
    methods: tuple[str, ...]
    classifiers: tuple[str, ...] = ()
    """The methods that fit linear heads; empty: those that are used by default."""
    heads: tuple[HeadKind, ...] = ("linear",)
    poolings: tuple[Pooling, ...] = ()
    techniques: tuple[Technique, ...] = ()
    limits: dict[str, int | float] = Field(default={})
    """The limits on what a network may cost, by the names of their settings."""
    minimize: Minimized | None = None
    """The cost that is a second objective."""
    latency: dict[str, tuple[float, ...]] = Field(default={})
    """Measured milliseconds up to each stage of each backbone at each input size, if the study needs them."""
    owners: dict[str, Annotated[dict[str, str], Field(min_length=1, max_length=1)]] = Field(default={})
    """The distribution, with its version, that provides each plugin item, by kind and name."""
    set: dict[str, Any] = Field(default={})
    """The parameters that are fixed instead of searched, with their values."""
    plugins: dict[str, str] = Field(default={})
    """The plugins that are not installed: the SHA-256 of each file by its path, and "" for each object by name."""
    metric: str
    scale: Scale = Field(default=Scale())
    seed: int
    near_copies: NearCopies = "together"
    """As in `DataRef`."""
    device: str
    """Its kind, such as `cuda`."""
    versions: dict[str, str]

    def differences(self, other: "Definition") -> dict[str, str]:
        """Each key that differs, with `this → other`; of a table each name in it, as in `versions timm`.

        The location of the images, the names of their columns, latencies, the files of plugins and the providers of
        weights are not compared; what plugins register is, by `owners`, and weights by their hashes.
        """
        mine, theirs = (
            self.model_dump(exclude={"data", "columns", "latency", "plugins", "providers"}),
            other.model_dump(),
        )
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
    """The content of a file of a study, None if the file does not exist.

    Raises: DamagedFile.
    """
    if not file.exists():
        return None
    try:
        return kind.from_json(read(file), name="what it holds")
    except PlanError as error:
        raise DamagedFile(file, str(error).rstrip(".")) from None


class Rerun(BaseModel):
    """A line of `reruns.jsonl`: one of the best plans, rerun with another seed."""

    time: float
    trial: int
    plan: str
    """The hash of the plan that was trained."""
    carried_out: dict[str, Any]
    """That plan."""
    metrics: dict[str, float]


class SearchLine(BaseModel):
    """A line of `searches.jsonl`: one command that searched the study, with its options."""

    time: float
    command: str
    options: dict[str, Any]


MEMBERS = "members"
"""The folder in that of a study with the bundles of the models of its ensemble."""


class StudyFolder:
    """The folder of one study."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        self.log = TrialLog(path)
        self.bundle = path / "bundle"
        self.members = path / MEMBERS
        self.test_openings = path / "test_openings.jsonl"
        self.probe = path / "probe.json"
        self.advice = path / "advice.json"
        self.reruns = path / "reruns.jsonl"
        self.searches = path / "searches.jsonl"
        self.result = path / "result.json"
        self.predictions = path / "predictions"
        self.report = path / "report.html"
        self._lock = FileLock(path / ".lock")

    def member(self, plan: TransferPlan) -> Path:
        """The bundle of one model of an ensemble."""
        return self.members / plan.hash[:12]

    def predictions_of(self, plan: TransferPlan) -> Path:
        """The file with the predictions of a plan for `val`."""
        return self.predictions / f"{plan.hash}.npy"

    @property
    def exists(self) -> bool:
        """Whether this folder has a study; its `study.json` may be missing."""
        return os.path.lexists(self.path / "study.json") or bool(self.log.files())

    @property
    def words(self) -> str:
        """The arguments by which commands find this study: its name, and `--home` if needed."""
        return f"{quote(self.name)}{home_option(self.path.parent)}"

    @property
    def definition(self) -> Definition | None:
        """Raises: DamagedFile."""
        return read_record(Definition, self.path / "study.json")

    def require_definition(self) -> Definition:
        """Raises: DamagedFile; StudyError if it is missing."""
        found = self.definition
        if found is None:
            raise StudyError(f"{self.path / 'study.json'} is missing. Rerun the same search to recreate it.")
        return found

    @property
    def database(self) -> Path:
        """Optuna's default storage."""
        return self.path / "optuna.db"

    @property
    def storage(self) -> str:
        """As `storage_of`, read from `study.json`."""
        return self.storage_of(self.definition)

    def storage_of(self, definition: Definition | None) -> str:
        """The URL of the Optuna storage of the study in this folder.

        Raises: StudyError if its password is not known here.
        """
        if definition is None or definition.storage is None:
            return f"sqlite:///{self.database.resolve()}"
        if "***" in definition.storage:
            raise StudyError(f"The password of {definition.storage} is not stored. Set AUTOTL_STORAGE to the URL.")
        return definition.storage

    def define(self, definition: Definition) -> None:
        """Write `study.json`, whole or not at all."""
        write(self.path / "study.json", definition.to_json(), private=True)

    @property
    def is_live(self) -> bool:
        """Whether a process is searching this study."""
        try:
            with self._lock.acquire(timeout=0):
                return False
        except Timeout:
            return True

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the study for this process.

        Raises: StudyError if another process is searching it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout:
            raise StudyError(
                f"Study '{self.name}' is being searched by another process. Wait for it, or start another: --study NAME"
            ) from None
        except OSError as error:
            raise StudyError(f"The study cannot be written to {self.path}: {error.strerror}. Use --home DIR.") from None
        try:
            yield
        finally:
            self._lock.release()


def of_bundle(bundle: Path) -> StudyFolder:
    """The folder of the study whose model, or a member of whose ensemble, a bundle is; without that, no study's."""
    place = bundle.resolve().parent
    return StudyFolder(place.parent if place.name == MEMBERS else place)


def home(named: Path | None) -> Path:
    """The workspace: what the user named, `AUTOTL_HOME`, or `./autotl-studies`.

    Raises: StudyError for a name that is not UTF-8.
    """
    place = named or Path(os.environ.get("AUTOTL_HOME") or "autotl-studies")
    if not is_utf8(place):
        raise StudyError(f"The name of the workspace '{place}' is not UTF-8. Choose another folder: --home DIR")
    return place


def home_option(workspace: Path) -> str:
    """` --home DIR` if commands need it to find this workspace, otherwise empty."""
    return "" if workspace.resolve() == home(None).resolve() else f" --home {quote(str(workspace))}"


def cache_dir(named: Path | None) -> Path:
    """The folder for pixels and features: what the user named, or the user's cache folder."""
    if named:
        return named
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "autotl"


def studies(home: Path) -> Iterator[StudyFolder]:
    """Every study of a workspace, by name."""
    if home.is_dir():
        yield from (folder for path in sorted(home.iterdir()) if (folder := StudyFolder(path)).exists)


def find_study(home: Path, name: str) -> StudyFolder:
    """Raises: StudyError for an unknown study, with the nearest name; DamagedFile."""
    folder = StudyFolder(home / name)
    if not folder.exists:
        known = [study.name for study in studies(home)]
        hint = f"Looked in {home}. List them: autotl studies{home_option(home)}"
        raise StudyError(unknown("study", name, known, hint))
    folder.require_definition()
    return folder
