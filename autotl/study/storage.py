"""The study in Optuna's storage: where all processes that search in it meet."""

import os
import socket
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from autotl.errors import StudyError, one_line, unknown
from autotl.study.sampler import NumberedSampler

RUNG, HALVING = 25, 2
"""After 25 and 50 % of its epochs a trial goes on while it is among the better half of those that came so far
(Li et al. 2020, arXiv 1810.05934). Percent, for trials differ in their epochs and each has a schedule of its own."""
BEAT = 5
"""Seconds between two signs of life of a worker."""
GRACE = 30
"""Seconds without a sign of life after which a worker is taken for dead."""
BUSY = 60
"""Seconds that SQLite waits for another process that is writing."""
ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
SEARCH = "search"
"""Who carries out a trial: this, or a worker's name."""
_TERMS, _SPLIT, _JOINED = "autotl", "split", "joined"
_WHO, _EVENTS = "worker", "events"


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

    @classmethod
    def create(cls, url: str, name: str, seed: int) -> "SharedStudy":
        """The study of this name, for the search; made where there is none.

        Raises: StudyError when the storage cannot be used.
        """
        storage = _open(url)
        with _one_kind_of_error(url):
            study = optuna.create_study(
                study_name=name, storage=storage, direction="maximize", load_if_exists=True, **_how(seed)
            )
        return cls(study, storage, SEARCH)

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
            raise StudyError(unknown("study", name, names, "A search must have begun it: autotl search DATA --storage"))
        if len(found) > 1:
            raise StudyError(f"Several studies are named '{name}' there; say which: {', '.join(found)}")
        with _one_kind_of_error(url):
            study = optuna.load_study(study_name=found[0], storage=storage)
            if _TERMS not in study.user_attrs:
                raise StudyError(f"Study '{name}' has not got so far yet that anyone could join. Try again soon.")
            seed = study.user_attrs[_TERMS]["seed"]
            study = optuna.load_study(study_name=found[0], storage=storage, **_how(seed))
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
        found: dict[str, Any] = self.optuna.user_attrs.get(_TERMS, {})
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
            found = choose()
            self.optuna.set_user_attr(what, found)
        return found

    # Trials

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        return self.optuna.get_trials(deepcopy=False, states=states or None)

    @property
    def done(self) -> int:
        """How many trials have ended."""
        return len(self.trials(*ENDED))

    def claim(self, total: int) -> optuna.Trial | None:
        """A trial to carry out, None when each below the total is taken."""
        known = self.trials()
        if len(known) >= total and not any(t.state == TrialState.WAITING for t in known[:total]):
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # heartbeats are given here, not by `Study.optimize`
            trial = self.optuna.ask()
        if trial.number >= total:  # another process was faster
            self.give_back(trial.number)
            return None
        trial.set_user_attr(_WHO, self.who)
        return trial

    def give_back(self, number: int) -> None:
        """Let a trial wait to be claimed again."""
        at = self._id(number)
        self._storage.set_trial_user_attr(at, _WHO, None)
        self._storage.set_trial_state_values(at, TrialState.WAITING)

    def is_mine(self, trial: optuna.Trial) -> bool:
        """Whether this process still has the trial: one that gave no sign of life for long may have lost it."""
        found = self._storage.get_trial(trial._trial_id)
        return found.state == TrialState.RUNNING and found.user_attrs.get(_WHO) == self.who

    def left_behind(self) -> list[tuple[int, str]]:
        """Running trials of processes that are no more, with who that was.

        For the search alone, and while it runs none itself.
        """
        running = self.trials(TrialState.RUNNING)
        stale = set(self._storage._get_stale_trial_ids(self.optuna._study_id)) if running else set()
        joined = self.optuna.user_attrs.get(_JOINED, False)

        def is_dead(trial: FrozenTrial) -> bool:
            who = trial.user_attrs.get(_WHO)
            if who is None and joined and trial.datetime_start:  # just claimed, or its process died that moment
                return (datetime.now() - trial.datetime_start).total_seconds() > GRACE
            return who in (None, SEARCH) or trial._trial_id in stale

        return [(trial.number, trial.user_attrs.get(_WHO) or SEARCH) for trial in running if is_dead(trial)]

    @contextmanager
    def alive(self, trial: optuna.Trial, closed: Callable[[], None]) -> Iterator[None]:
        """Within, a worker gives signs of life; `closed` is called, once, when the study wants the trial no more.

        The search itself gives none: it holds the study's lock.
        """
        if self.who == SEARCH:
            yield
            return
        over = threading.Event()

        def beat() -> None:
            told = False
            while True:
                # A database that is away for a moment is no reason to stop; the trial itself will find out.
                with suppress(sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError):
                    self._storage.record_heartbeat(trial._trial_id)
                    if not told and not self._wanted(trial):
                        told = True
                        closed()
                if over.wait(BEAT):
                    return

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def end(
        self, trial: optuna.Trial, state: TrialState, value: float | None, events: Sequence[Mapping[str, Any]]
    ) -> None:
        """A trial has ended. A worker leaves what happened in it for the search to collect."""
        if self.who != SEARCH:
            trial.set_user_attr(_EVENTS, list(events))
        self.optuna.tell(trial.number, value if state == TrialState.COMPLETE else None, state=state)

    def collected(self, known: Callable[[int], bool]) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        """The trials that workers have ended and that are not `known` yet, with what happened in them."""
        for trial in self.trials(*ENDED):
            if _EVENTS in trial.user_attrs and not known(trial.number):
                yield trial.number, trial.user_attrs[_EVENTS]

    def _wanted(self, trial: optuna.Trial) -> bool:
        return trial.number < (self.terms["total"] or 0) and self.is_mine(trial)

    def _id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self.optuna._study_id, number)


def _how(seed: int) -> dict[str, Any]:
    """How trials are drawn and when they are stopped early."""
    return {
        "sampler": NumberedSampler(seed),
        "pruner": optuna.pruners.SuccessiveHalvingPruner(min_resource=RUNG, reduction_factor=HALVING),
    }


def _open(url: str) -> RDBStorage:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    waiting = {"connect_args": {"timeout": BUSY}} if url.startswith("sqlite") else {"pool_pre_ping": True}
    with _one_kind_of_error(url), warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return RDBStorage(url, engine_kwargs=waiting, heartbeat_interval=BEAT, grace_period=GRACE)


def without_password(url: str) -> str:
    """Raises: StudyError for what is no database URL."""
    try:
        return sqlalchemy.engine.make_url(url).render_as_string(hide_password=True)
    except sqlalchemy.exc.ArgumentError:
        raise StudyError(f"--storage '{url}' is no database URL, such as postgresql://user@host/name.") from None


@contextmanager
def _one_kind_of_error(url: str) -> Iterator[None]:
    try:
        yield
    except StudyError:
        raise
    except Exception as error:  # whatever the database's driver raises
        raise StudyError(f"Optuna cannot use the storage {without_password(url)}: {one_line(error, 300)}") from error
