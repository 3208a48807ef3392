"""The study in Optuna's storage: where all processes that search in it meet."""

import os
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from filelock import FileLock
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from autotl.errors import StudyError, masked, one_line, unknown
from autotl.plan import TransferPlan
from autotl.study.blame import BLAMED, names
from autotl.study.pruner import SameImagesPruner
from autotl.study.sampler import NumberedSampler

BEAT = 5
"""Seconds between two signs of life of a worker."""
GRACE = 30
"""Seconds without a sign of life after which a worker is taken for dead."""
BUSY = 60
"""Seconds that SQLite waits for another process that is writing."""
OPTUNA_STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
"""How Optuna calls the states in which a log says that a trial has ended."""
DESCRIBED = {"log-loss": "val.loss", "parameters": "parameters", "FLOPs": "flops"}
"""Which measurements the user attributes of a trial hold, by the names of the leaderboard."""
SEARCH = "search"
"""Who carries out a trial: this, or a worker's name."""
GUESS = "guess"
"""The user attribute of a trial whose parameters were known beforehand: which guess it is."""
_TERMS, _SPLIT, _JOINED = "autotl", "split", "joined"
_WHO, _PLACE, _EVENTS = "worker", "place", "events"
_FIXED = "fixed_params"
"""Where Optuna keeps the parameters of a trial that are known beforehand."""


class TakenAway(Exception):
    """A trial is another process's by now: this one gave no sign of life for too long."""


@dataclass
class Hold:
    """What a worker hears of the trial that it carries out."""

    closed: bool = False
    """The study wants no more trials, or has become another one."""
    taken: bool = False
    """Another process has this trial."""


@dataclass(frozen=True)
class LeftBehind:
    """A trial that is running in a process that is no more."""

    number: int
    who: str
    place: tuple[int, int] | None
    """The phase and the epoch after which a worker died; the search itself has a log for that."""


class SharedStudy:
    """A study in a database.

    A trial is claimed by its number, which Optuna gives out once: those below the total are carried out, whoever
    draws one beyond gives it back, to wait for a larger total. So it is with a trial that was begun and not ended:
    under its own number it is claimed again, and draws what it drew.

    One process, the search, holds the study's lock; only that one takes trials from others that have died.
    """

    def __init__(self, study: optuna.Study, storage: RDBStorage, who: str) -> None:
        self.optuna = study
        self.who = who
        self._storage = storage
        self._nameless: dict[int, float] = {}
        # SQLite locks no rows: two processes would be given one waiting trial.
        file = storage.engine.url.database if storage.engine.name == "sqlite" else None
        self._one_at_a_time: AbstractContextManager[object] = FileLock(f"{file}.lock") if file else nullcontext()

    @classmethod
    def create(cls, url: str, name: str, seed: int, missing: Set[str] = frozenset()) -> "SharedStudy":
        """The study of this name, for the search; made where there is none. Nothing `missing` is drawn.

        Raises: StudyError when the storage cannot be used.
        """
        storage = _open(url)
        with _one_kind_of_error(url):
            study = optuna.create_study(
                study_name=name, storage=storage, direction="maximize", load_if_exists=True, **_how(seed, missing)
            )
        made = cls(study, storage, SEARCH)
        for trial in made.trials(TrialState.WAITING):
            if names(missing, trial.system_attrs.get(_FIXED, {})):  # it is drawn instead
                storage.set_trial_system_attr(trial._trial_id, _FIXED, {})
        return made

    @classmethod
    def all_of(cls, url: str) -> Iterator[tuple["SharedStudy", str]]:
        """Every study of a storage that got so far as to say what it is, with what it said."""
        storage = _open(url)
        with _one_kind_of_error(url):
            for name in optuna.get_all_study_names(storage):
                study = optuna.load_study(study_name=name, storage=storage)
                if _TERMS in study.user_attrs:
                    yield cls(study, storage, SEARCH), study.user_attrs[_TERMS]["definition"]

    def close(self) -> None:
        """Let go of the storage: its file may then be moved."""
        self._storage.remove_session()
        self._storage.engine.dispose()

    @staticmethod
    def forget(url: str, name: str) -> None:
        """Delete a study that was begun and came to nothing, if it is there."""
        with suppress(KeyError):
            optuna.delete_study(study_name=name, storage=_open(url))

    @classmethod
    def join(cls, url: str, name: str) -> "SharedStudy":
        """The study that a search has begun under this name, for a worker.

        Raises: StudyError when there is none, or more than one.
        """
        storage = _open(url)
        with _one_kind_of_error(url):
            known = optuna.get_all_study_names(storage)
        found = [each for each in known if name in (each, each.rpartition("-")[0])]
        if not found:
            names = sorted({each.rpartition("-")[0] for each in known})
            raise StudyError(unknown("study", name, names, "A search must have begun it in this storage."))
        if len(found) > 1:
            raise StudyError(f"Several studies are named '{name}' there; say which: {', '.join(found)}")
        with _one_kind_of_error(url):
            study = optuna.load_study(study_name=found[0], storage=storage)
            if _TERMS not in study.user_attrs:
                raise StudyError(f"Study '{name}' has not got so far yet that anyone could join. Try again soon.")
            terms = study.user_attrs[_TERMS]
            how = _how(terms["seed"], frozenset(terms.get("missing", ())))
            study = optuna.load_study(study_name=found[0], storage=storage, **how)
            study.set_user_attr(_JOINED, True)
        return cls(study, storage, f"{socket.gethostname()}:{os.getpid()}")

    # What all agree on

    def agree(self, terms: Mapping[str, Any], split: Mapping[str, str] | None) -> None:
        """Tell whoever joins what the study is; and which image is in which split, where the images alone do not say
        it any more, as there have come some since."""
        if split is not None:
            self.optuna.set_user_attr(_SPLIT, dict(split))
        self.optuna.set_user_attr(_TERMS, {**terms, "total": None})

    @property
    def terms(self) -> dict[str, Any]:
        """As `agree` was told, and the `total` of trials up to which some may be begun; None before any may."""
        try:
            found: dict[str, Any] = self.optuna.user_attrs.get(_TERMS, {})
        except KeyError:
            raise StudyError("The study is there no more: its search was begun anew. Join again.") from None
        return found

    @property
    def split(self) -> dict[str, Any] | None:
        found: dict[str, Any] | None = self.optuna.user_attrs.get(_SPLIT)
        return found

    def open(self, total: int) -> None:
        """From now on trials may be begun until there are so many; with 0 no more, and those that run shall end."""
        self.optuna.set_user_attr(_TERMS, {**self.terms, "total": total})

    def settled(self, what: str, choose: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What was chosen once for the study, by whoever came first."""
        found: dict[str, Any] | None = self.optuna.user_attrs.get(what)
        if found is None:
            chosen = choose()
            found = self.optuna.user_attrs.get(what)  # another process may have chosen meanwhile
            if found is None:
                self.optuna.set_user_attr(what, chosen)
        return found or chosen

    # Trials

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        return self.optuna.get_trials(deepcopy=False, states=states or None)

    @property
    def done(self) -> int:
        """How many trials have ended."""
        return len(self.trials(*OPTUNA_STATES.values()))

    def claim(self, total: int) -> optuna.Trial | None:
        """A trial to carry out, None when each below the total is taken."""
        known = self.trials()
        if len(known) >= total and not any(t.state == TrialState.WAITING for t in known[:total]):
            return None
        with self._one_at_a_time, warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # heartbeats are given here, not by `Study.optimize`
            trial = self.optuna.ask()
            if trial.number >= total:  # another process was faster
                self.give_back(trial.number)
                return None
            if self.who != SEARCH:
                self._storage.record_heartbeat(trial._trial_id)  # that of an earlier attempt may be old
            trial.set_user_attr(_WHO, self.who)
            return trial

    def has_events(self, trial: FrozenTrial) -> bool:
        """Whether a worker has ended a trial and left what happened in it."""
        return _EVENTS in trial.user_attrs

    def give_back(self, number: int) -> None:
        """Let a trial wait to be claimed again, unless it has ended meanwhile."""
        at = self._id(number)
        with suppress(optuna.exceptions.UpdateFinishedTrialError):
            self._storage.set_trial_user_attr(at, _WHO, None)
            self._storage.set_trial_user_attr(at, _PLACE, None)
            self._storage.set_trial_state_values(at, TrialState.WAITING)

    def arrived(self, trial: optuna.Trial, phase: int, epoch: int) -> None:
        """A worker leaves word how far a trial has come, for the case that it dies in it."""
        if self.who != SEARCH:
            trial.set_user_attr(_PLACE, [phase, epoch])

    def is_mine(self, trial: optuna.Trial) -> bool:
        """Whether this process still has the trial: one that gave no sign of life for long may have lost it."""
        found = self._storage.get_trial(trial._trial_id)
        return found.state == TrialState.RUNNING and found.user_attrs.get(_WHO) == self.who

    def left_behind(self) -> list[LeftBehind]:
        """Running trials of processes that are no more.

        For the search alone, and while it runs none itself.
        """
        running = self.trials(TrialState.RUNNING)
        stale = set(self._storage._get_stale_trial_ids(self.optuna._study_id)) if running else set()
        joined = self.optuna.user_attrs.get(_JOINED, False)
        nameless = {trial.number for trial in running if _WHO not in trial.user_attrs or not trial.user_attrs[_WHO]}
        self._nameless = {number: self._nameless.get(number, time.monotonic()) for number in nameless}

        def is_dead(trial: FrozenTrial) -> bool:
            who = trial.user_attrs.get(_WHO)
            if who is None and joined:  # claimed this moment, or its process died in it
                return time.monotonic() - self._nameless[trial.number] > GRACE
            return who in (None, SEARCH) or trial._trial_id in stale

        def left(number: int, told: Mapping[str, Any]) -> LeftBehind:
            return LeftBehind(number, told.get(_WHO) or SEARCH, tuple(told.get(_PLACE) or ()) or None)

        return [left(trial.number, trial.user_attrs) for trial in running if is_dead(trial)]

    @contextmanager
    def alive(self, trial: optuna.Trial) -> Iterator["Hold"]:
        """Within, a worker gives signs of life, and hears whether the trial is still wanted from it.

        The search itself need not: it holds the study's lock.
        """
        hold = Hold()
        if self.who == SEARCH:
            yield hold
            return
        over = threading.Event()
        thread = threading.Thread(target=self._beat, args=[trial, hold, over, self.terms["definition"]], daemon=True)
        thread.start()
        try:
            yield hold
        finally:
            over.set()
            thread.join()

    def _beat(self, trial: optuna.Trial, hold: "Hold", over: threading.Event, agreed: str) -> None:
        while True:
            # A database that is away for a moment is no reason to stop; the trial itself will find out.
            with suppress(sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError):
                terms = self.terms
                if terms["total"] == 0 or terms["definition"] != agreed:
                    hold.closed = True
                elif self.is_mine(trial):
                    self._storage.record_heartbeat(trial._trial_id)
                else:
                    hold.taken = True
            if over.wait(BEAT):
                return

    def blame(self, trial: optuna.Trial, kind: str, value: str) -> None:
        """Note by whose fault a trial fails, which is about to end.

        Raises: TakenAway when it is another process's by now.
        """
        with _taken_away():
            trial.set_user_attr(BLAMED, [kind, value])

    def end(self, trial: optuna.Trial, state: str, value: float | None, events: Sequence[Mapping[str, Any]]) -> None:
        """A trial has ended. A worker leaves what happened in it for the search to collect.

        Raises: TakenAway when it is another process's by now.
        """
        if not self.is_mine(trial):
            raise TakenAway
        if self.who != SEARCH:
            with _taken_away():
                trial.set_user_attr(_EVENTS, list(events))
        self.tell(trial.number, state, value)

    def tell(self, number: int, state: str, value: float | None) -> None:
        """Tell Optuna how a trial has ended, as a log says it; its value counts where it is complete.

        Raises: TakenAway when it has ended otherwise, or waits to be claimed again.
        """
        with _taken_away():
            self.optuna.tell(number, value if state == "complete" else None, state=OPTUNA_STATES[state])

    def collected(self, known: Callable[[int], bool]) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        """The trials that workers have ended and that are not `known` yet, with what happened in them."""
        for trial in self.trials(*OPTUNA_STATES.values()):
            if self.has_events(trial) and not known(trial.number):
                yield trial.number, trial.user_attrs[_EVENTS]

    def _id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self.optuna._study_id, number)


def described(plan: TransferPlan, measured: Mapping[str, float]) -> dict[str, Any]:
    """User attributes for people who look at a trial through Optuna, whose `cut` is only a share of the depth.

    `measured`: nothing as long as the plan has not been carried out.
    """
    costs = {name: measured[key] for name, key in DESCRIBED.items() if key in measured}
    return {"cut": plan.cut, "frozen": plan.phases[-1].frozen or "none", **costs}


def describe(trial: optuna.Trial, plan: TransferPlan, measured: Mapping[str, float] | None = None) -> None:
    """Let a trial say what `described` says."""
    known = trial.user_attrs
    for name, value in described(plan, measured or {}).items():
        if known.get(name) != value:
            trial.set_user_attr(name, value)


def lasting(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """The user attributes of a trial that still count when it has ended."""
    return {name: value for name, value in attrs.items() if name not in (_WHO, _PLACE, _EVENTS)}


@contextmanager
def _taken_away() -> Iterator[None]:
    """Raises: TakenAway for what Optuna says to one whose trial another process has by now."""
    try:
        yield
    except (optuna.exceptions.UpdateFinishedTrialError, ValueError) as error:
        raise TakenAway from error


def _how(seed: int, missing: Set[str] = frozenset()) -> dict[str, Any]:
    """How trials are drawn and when they are stopped early."""
    return {"sampler": NumberedSampler(seed, missing), "pruner": SameImagesPruner()}


def _open(url: str) -> RDBStorage:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    check_url(url)
    named = sqlalchemy.make_url(url)
    on_disk = named.get_backend_name() == "sqlite"
    waiting = {"connect_args": {"timeout": BUSY}} if on_disk else {"pool_pre_ping": True}
    with _one_kind_of_error(url), warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if on_disk and named.database:
            Path(named.database).touch(0o600)  # what happens in trials may name a URL
        return RDBStorage(url, engine_kwargs=waiting, heartbeat_interval=BEAT, grace_period=GRACE)


def check_url(url: str) -> None:
    """Raises: StudyError for what is no database URL; without it, as who knows where in it the password is."""
    try:
        host = sqlalchemy.make_url(url).host or ""
    except (sqlalchemy.exc.ArgumentError, ValueError):
        raise StudyError("The storage is no database URL, such as postgresql://user@host/name.") from None
    if "@" in host:
        raise StudyError("The storage has two '@' before its host: write %40 for the one in the password.")


@contextmanager
def _one_kind_of_error(url: str) -> Iterator[None]:
    try:
        yield
    except StudyError:
        raise
    except Exception as error:  # whatever the database's driver raises
        raise StudyError(f"Optuna cannot use the storage {masked(url)}: {one_line(error, 300)}") from error
