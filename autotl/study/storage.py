"""The study in Optuna's storage, which all processes of a search share."""

import os
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
import sqlalchemy
from filelock import FileLock
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from autotl.engine.scale import Scale
from autotl.errors import StudyError, masked, one_line, unknown
from autotl.plan import TransferPlan
from autotl.study.blame import BLAMED, names
from autotl.study.pruner import SameImagesPruner
from autotl.study.sampler import NumberedSampler

BEAT = 5
"""Seconds between two heartbeats of a worker."""
GRACE = 30
"""Seconds without a heartbeat after which a worker counts as dead."""
BUSY = 60
"""Seconds that SQLite waits for another process to finish writing."""
OPTUNA_STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
"""Optuna's states for the end states of a trial's log."""
DESCRIBED = {"log-loss": "val.loss", "parameters": "parameters", "FLOPs": "flops", "latency_ms": "latency_ms"}
"""The metrics in the user attributes of a trial, by the names of the leaderboard."""
SEARCH = "search"
"""The process that runs a trial: this, `search:<id>` for a worker that the search has started, or the name of one that
somebody else has started."""
GUESS = "guess"
"""The user attribute of a trial with enqueued parameters: which guess it is."""
_TERMS, _SPLIT, _JOINED = "autotl", "split", "joined"
_WHO, _PLACE, _EVENTS = "worker", "place", "events"
_FIXED = "fixed_params"
"""Optuna's attribute for the enqueued parameters of a trial."""


Direction = Literal["maximize", "minimize"]


def directions_of(scale: Scale, minimize: str | None) -> list[Direction]:
    """Optuna's directions: that of a metric, and that of a cost if one is minimised, too."""
    of_metric: Direction = "maximize" if scale.greater_is_better else "minimize"
    return [of_metric, "minimize"] if minimize else [of_metric]


def is_of_search(who: str) -> bool:
    """Whether a trial's process is the search or one of its own workers: both write the study's logs."""
    return who.partition(":")[0] == SEARCH


class TakenAway(Exception):
    """Another process has claimed the trial, because this one sent no heartbeat for too long."""


@dataclass
class Hold:
    """What a worker learns about the trial that it runs."""

    closed: bool = False
    """The study wants no more trials, or has another definition."""
    taken: bool = False
    """Another process has this trial."""


@dataclass(frozen=True)
class LeftBehind:
    """A running trial whose process is dead."""

    number: int
    who: str
    place: tuple[int, int] | None
    """The phase and the epoch after which a worker died; the search's own trials have that in their log."""


class SharedStudy:
    """A study in a database.

    A process claims a trial by its number, which Optuna gives out once. Trials with numbers below the total are run;
    one beyond is released and waits for a larger total. A trial that was started and not ended is released too: it is
    claimed again under its number and draws the same parameters.

    One process, the search, holds the study's lock; only that one releases the trials of dead processes.
    """

    def __init__(self, study: optuna.Study, storage: RDBStorage, who: str) -> None:
        self.optuna = study
        self.who = who
        self._storage = storage
        self._nameless: dict[int, float] = {}
        # SQLite has no row locks: two processes could claim the same waiting trial.
        file = storage.engine.url.database if storage.engine.name == "sqlite" else None
        self._one_at_a_time: AbstractContextManager[object] = FileLock(f"{file}.lock") if file else nullcontext()
        self._claiming = 0.0 if file else GRACE
        """The most seconds that another process takes to claim a trial, as this one sees it."""

    @classmethod
    def create(
        cls, url: str, name: str, seed: int, directions: Sequence[Direction], missing: Set[str] = frozenset()
    ) -> "SharedStudy":
        """The study of this name, for the search; created if it does not exist. Nothing `missing` is drawn.

        Raises: StudyError if the storage cannot be used.
        """
        storage = _open(url)
        with _one_kind_of_error(url):
            study = optuna.create_study(
                study_name=name, storage=storage, directions=directions, load_if_exists=True, **_how(seed, missing)
            )
        made = cls(study, storage, SEARCH)
        for trial in made.trials(TrialState.WAITING):
            if names(missing, trial.system_attrs.get(_FIXED, {})):  # it is drawn instead
                storage.set_trial_system_attr(trial._trial_id, _FIXED, {})
        return made

    @classmethod
    def all_of(cls, url: str) -> Iterator[tuple["SharedStudy", str]]:
        """Every study of a storage that has a definition, with its definition."""
        storage = _open(url)
        with _one_kind_of_error(url):
            for name in optuna.get_all_study_names(storage):
                study = optuna.load_study(study_name=name, storage=storage)
                if _TERMS in study.user_attrs:
                    yield cls(study, storage, SEARCH), study.user_attrs[_TERMS]["definition"]

    def close(self) -> None:
        """Close the storage, so that its file can be moved."""
        self._storage.remove_session()
        self._storage.engine.dispose()

    @staticmethod
    def forget(url: str, name: str) -> None:
        """Delete a study that was started and has no trials, if it exists."""
        with suppress(KeyError):
            optuna.delete_study(study_name=name, storage=_open(url))

    @classmethod
    def join(cls, url: str, name: str, who: str | None = None) -> "SharedStudy":
        """The study that a search has started under this name, for a worker; its own name is `who`.

        Raises: StudyError if there is none, or more than one.
        """
        storage = _open(url)
        with _one_kind_of_error(url):
            known = optuna.get_all_study_names(storage)
        found = [each for each in known if name in (each, each.rpartition("-")[0])]
        if not found:
            names = sorted({each.rpartition("-")[0] for each in known})
            raise StudyError(unknown("study", name, names, "Start its search in this storage first."))
        if len(found) > 1:
            raise StudyError(f"Several studies of this storage are named '{name}'. Use one of: {', '.join(found)}")
        with _one_kind_of_error(url):
            study = optuna.load_study(study_name=found[0], storage=storage)
            if _TERMS not in study.user_attrs:
                raise StudyError(f"The search of study '{name}' is still starting. Try again in a moment.")
            terms = study.user_attrs[_TERMS]
            how = _how(terms["seed"], frozenset(terms.get("missing", ())))
            study = optuna.load_study(study_name=found[0], storage=storage, **how)
            study.set_user_attr(_JOINED, True)
        return cls(study, storage, who or f"{socket.gethostname()}:{os.getpid()}")

    # Shared terms

    def agree(self, terms: Mapping[str, Any], split: Mapping[str, str] | None) -> None:
        """Store the terms of the study for workers; and the split by image hash, if it can no longer be computed from
        the images because some were added."""
        if split is not None:
            self.optuna.set_user_attr(_SPLIT, dict(split))
        self.optuna.set_user_attr(_TERMS, {**terms, "total": None})

    @property
    def terms(self) -> dict[str, Any]:
        """The terms of `agree`, with `total`: how many trials may be started, None before the trials start."""
        try:
            found: dict[str, Any] = self.optuna.user_attrs.get(_TERMS, {})
        except KeyError:
            raise StudyError("The study no longer exists: its search was started anew. Run the worker again.") from None
        return found

    @property
    def split(self) -> dict[str, Any] | None:
        found: dict[str, Any] | None = self.optuna.user_attrs.get(_SPLIT)
        return found

    def open(self, total: int) -> None:
        """Let trials be started until there are `total`; with 0 none are started, and running ones stop."""
        self.optuna.set_user_attr(_TERMS, {**self.terms, "total": total})

    def settled(self, what: str, choose: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What the first process chose for the study."""
        found = self.known(what)
        if found is None:
            chosen = choose()
            found = self.known(what)  # another process may have chosen in the meantime
            if found is None:
                self.optuna.set_user_attr(what, chosen)
        return found or chosen

    def known(self, what: str) -> dict[str, Any] | None:
        """What `settled` gave, if anybody has chosen yet."""
        found: dict[str, Any] | None = self.optuna.user_attrs.get(what)
        return found

    # Trials

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        return self.optuna.get_trials(deepcopy=False, states=states or None)

    def ended(self) -> list[FrozenTrial]:
        """The trials that have ended."""
        return self.trials(*OPTUNA_STATES.values())

    @property
    def done(self) -> int:
        """How many trials have ended."""
        return len(self.ended())

    def has_unclaimed(self, total: int) -> bool:
        """Whether a trial below the total is left to claim."""
        known = self.trials()
        return len(known) < total or any(trial.state == TrialState.WAITING for trial in known[:total])

    def claim(self, total: int) -> optuna.Trial | None:
        """A trial to run; None if each below the total is taken."""
        with self._one_at_a_time, warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # heartbeats are sent here, not by `Study.optimize`
            if not self.has_unclaimed(total):
                return None
            trial = self.optuna.ask()
            if trial.number >= total:  # another process was faster
                self.give_back(trial.number)
                return None
            if not is_of_search(self.who):
                self._storage.record_heartbeat(trial._trial_id)  # the heartbeat of an earlier attempt may be old
            trial.set_user_attr(_WHO, self.who)
            return trial

    def events_of(self, trial: FrozenTrial) -> list[dict[str, Any]]:
        """The events that a worker stored when it ended a trial; a worker of the search writes them to the logs."""
        found: list[dict[str, Any]] = trial.user_attrs.get(_EVENTS, [])
        return found

    def give_back(self, number: int) -> None:
        """Release a trial to be claimed again, unless it has ended in the meantime."""
        at = self._id(number)
        with suppress(optuna.exceptions.UpdateFinishedTrialError):
            self._storage.set_trial_user_attr(at, _WHO, None)
            self._storage.set_trial_user_attr(at, _PLACE, None)
            self._storage.set_trial_state_values(at, TrialState.WAITING)

    def arrived(self, trial: optuna.Trial, phase: int, epoch: int) -> None:
        """A worker stores how far a trial has come, in case it dies in it."""
        if not is_of_search(self.who):
            trial.set_user_attr(_PLACE, [phase, epoch])

    def is_mine(self, trial: optuna.Trial) -> bool:
        """Whether this process still has the trial: without heartbeats it may have lost it."""
        found = self._storage.get_trial(trial._trial_id)
        return found.state == TrialState.RUNNING and found.user_attrs.get(_WHO) == self.who

    def left_behind(self, alive: Set[str] = frozenset()) -> list[LeftBehind]:
        """Running trials of dead processes; `alive` are the names of the search's own workers.

        Only for the search, and only while it runs no trial itself.
        """
        with self._one_at_a_time:  # so that nobody is between claiming a trial and writing its name into it
            running = self.trials(TrialState.RUNNING)
        stale = set(self._storage._get_stale_trial_ids(self.optuna._study_id)) if running else set()
        joined = self.optuna.user_attrs.get(_JOINED, False)
        nameless = {trial.number for trial in running if _WHO not in trial.user_attrs or not trial.user_attrs[_WHO]}
        self._nameless = {number: self._nameless.get(number, time.monotonic()) for number in nameless}

        def is_dead(trial: FrozenTrial) -> bool:
            who = trial.user_attrs.get(_WHO)
            if who is None and joined:  # just being claimed, or its process died while claiming
                return time.monotonic() - self._nameless[trial.number] > self._claiming
            return who is None or (who not in alive if is_of_search(who) else trial._trial_id in stale)

        def left(number: int, attrs: Mapping[str, Any]) -> LeftBehind:
            return LeftBehind(number, attrs.get(_WHO) or SEARCH, tuple(attrs.get(_PLACE) or ()) or None)

        return [left(trial.number, trial.user_attrs) for trial in running if is_dead(trial)]

    @contextmanager
    def alive(self, trial: optuna.Trial) -> Iterator["Hold"]:
        """Sends a worker's heartbeats, and learns whether its trial is still wanted.

        The search sends none, because it holds the study's lock, and knows whether its own workers are alive.
        """
        hold = Hold()
        if is_of_search(self.who):
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
            # A database that is briefly unavailable is no reason to stop; the trial itself will notice a longer outage.
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
        """Store what made a trial fail, before it ends.

        Raises: TakenAway if another process has claimed it.
        """
        with _taken_away():
            trial.set_user_attr(BLAMED, [kind, value])

    def end(
        self,
        trial: optuna.Trial,
        state: str,
        values: Sequence[float] | None,
        events: Sequence[Mapping[str, Any]],
    ) -> None:
        """End a trial. A worker also stores its events for the search to collect.

        Raises: TakenAway if another process has claimed it.
        """
        if not self.is_mine(trial):
            raise TakenAway
        if not is_of_search(self.who):
            with _taken_away():
                trial.set_user_attr(_EVENTS, list(events))
        self.tell(trial.number, state, values)

    def tell(self, number: int, state: str, values: Sequence[float] | None) -> None:
        """Report the end of a trial to Optuna; its values count if the state is complete.

        Raises: TakenAway if it has ended with another state, or was released.
        """
        with _taken_away():
            self.optuna.tell(number, values if state == "complete" else None, state=OPTUNA_STATES[state])

    def _id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self.optuna._study_id, number)


def described(plan: TransferPlan, measured: Mapping[str, float]) -> dict[str, Any]:
    """User attributes that describe a trial in Optuna's tools, where the parameter `cut` is only a share of the depth.

    `measured`: empty until the plan has been trained.
    """
    costs = {name: measured[key] for name, key in DESCRIBED.items() if key in measured}
    return {"cut": plan.cut, "frozen": plan.phases[-1].frozen or "none", **costs}


def describe(trial: optuna.Trial, plan: TransferPlan, measured: Mapping[str, float] | None = None) -> None:
    """Store the attributes of `described` in a trial."""
    known = trial.user_attrs
    for name, value in described(plan, measured or {}).items():
        if known.get(name) != value:
            trial.set_user_attr(name, value)


def lasting(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """The user attributes of a trial that are kept after its end."""
    return {name: value for name, value in attrs.items() if name not in (_WHO, _PLACE, _EVENTS)}


@contextmanager
def _taken_away() -> Iterator[None]:
    """Raises: TakenAway for Optuna's errors if another process has the trial."""
    try:
        yield
    except (optuna.exceptions.UpdateFinishedTrialError, ValueError) as error:
        raise TakenAway from error


def _how(seed: int, missing: Set[str] = frozenset()) -> dict[str, Any]:
    """The study's sampler and pruner."""
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
            Path(named.database).touch(0o600)  # events of trials may contain a URL
        return RDBStorage(url, engine_kwargs=waiting, heartbeat_interval=BEAT, grace_period=GRACE)


def check_url(url: str) -> None:
    """Raises: StudyError for an invalid database URL; the message omits it, because it may contain a password."""
    try:
        host = sqlalchemy.make_url(url).host or ""
    except (sqlalchemy.exc.ArgumentError, ValueError):
        raise StudyError("The storage is not a database URL, such as postgresql://user@host/name.") from None
    if "@" in host:
        raise StudyError("The storage URL has two '@' before its host. Write %40 for the one in the password.")


@contextmanager
def _one_kind_of_error(url: str) -> Iterator[None]:
    try:
        yield
    except StudyError:
        raise
    except Exception as error:  # drivers of databases raise errors of many kinds
        raise StudyError(f"Optuna cannot use the storage {masked(url)}: {one_line(error, 300)}") from error
