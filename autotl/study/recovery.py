"""Recovery of a study that is partly lost or damaged: `study.json` and Optuna's storage are rebuilt from the rest.

The trial logs are authoritative. Optuna's record of a trial follows its log; a trial whose log does not record how it
ended is run again under its number.
"""

import json
import re
import sqlite3
from collections.abc import Callable, Mapping, Set
from contextlib import closing
from pathlib import Path

import optuna
from optuna.distributions import json_to_distribution
from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from autotl.errors import DamagedFile, StudyError, one_line
from autotl.study import select
from autotl.study.machine import STORAGE
from autotl.study.pruner import SameImagesPruner
from autotl.study.storage import OPTUNA_STATES, SharedStudy, described, directions_of
from autotl.tracking.folder import Definition, StudyFolder
from autotl.tracking.log import ENDED, TrialRecord

Say = Callable[[str], None]
BESIDE = ("", "-journal", "-wal", "-shm")
"""The endings of SQLite's files after the name of the database."""
OUT_OF_REACH = re.compile("locked|read-?only|full|unable to open|disk I/O")
"""Errors of SQLite for a database that may be intact."""


def definition_of(folder: StudyFolder, storage: str | None, say: Say) -> Definition | None:
    """The definition of a study that has trials, from `study.json` or else from Optuna; None without trials.

    Raises: StudyError if neither has it.
    """
    if not folder.log.files():
        return None
    lost = f"{folder.path / 'study.json'} is missing"
    try:
        if found := folder.definition:
            return found
    except DamagedFile as error:
        lost = str(error).partition(". ")[0]
    records = {record.number: record for record in folder.log.records()}
    url = storage or folder.storage_of(None)
    known = []
    if storage or (folder.database.is_file() and not _is_damaged(folder.database)):
        known = [text for shared, text in SharedStudy.all_of(url) if not _contradiction(shared, records)]
    if len(known) != 1:
        raise StudyError(
            f"{lost}, and Optuna's storage has {'several studies' if known else 'no study'} that it may be rebuilt "
            "from. Restore it, name the storage of the study (AUTOTL_STORAGE), or start another study: --study NAME"
        )
    say(f"Warning: {lost}. It was rebuilt from Optuna's storage.")
    return Definition.from_json(known[0], name="the study in Optuna's storage")


def opened(
    folder: StudyFolder, definition: Definition, storage: str | None, missing: Set[str], say: Say
) -> tuple[SharedStudy, bool]:
    """The study in Optuna's storage, and whether it was rebuilt from the trial logs.

    `missing`: what is not drawn any more because it is not installed.

    Raises: StudyError if the storage cannot be used, or the logs lack the distributions that trials were drawn from.
    """
    records = {record.number: record for record in folder.log.records()}
    url = storage or folder.storage_of(definition)
    directions = directions_of(definition.scale, definition.minimize)
    own = folder.database if url == folder.storage_of(None) else None
    study = None
    lost = ""
    if own and ((records and not own.exists()) or _is_damaged(own)):
        lost = f"{own} was {'damaged' if own.exists() else 'missing'}"
    if not lost:
        try:
            study = SharedStudy.create(url, definition.optuna, definition.seed, directions, missing)
            lost = _contradiction(study, records) or _untold(study, records)
        except Exception as error:  # Optuna's errors for damaged rows are of any kind
            if own is None or OUT_OF_REACH.search(str(error)):
                if isinstance(error, (StudyError, *STORAGE)):
                    raise
                raise StudyError(f"Optuna's storage of '{folder.name}' is damaged: {one_line(error, 200)}") from error
            lost = f"{own} was damaged"
    if study and not lost:
        return study, False
    complete = [record for record in records.values() if _is_complete(record)]
    if old := next((record for record in complete if record.params.keys() - record.distributions), None):
        raise StudyError(
            f"{lost}, and the logs of an earlier version do not record what trial {old.number} was drawn from. "
            "Restore the storage, or start another study: --study NAME"
        )
    if study:
        study.close()
    if own:
        _move_away(own)
    else:
        SharedStudy.forget(url, definition.optuna)
    study = SharedStudy.create(url, definition.optuna, definition.seed, directions, missing)
    study.optuna.add_trials(_replayed(records, definition))
    again = [str(number) for number in range(max(records, default=0)) if not _is_complete(records.get(number))]
    what = f" To be run again: trial {', '.join(again)}." if again else ""
    say(f"Warning: {lost}. Optuna's storage was rebuilt from the logs of {len(records)} trials.{what}")
    return study, True


def _is_damaged(database: Path) -> bool:
    """Whether SQLite cannot read the file, or finds it corrupt."""
    if not database.exists():
        return False
    if not database.is_file():
        return True
    try:
        with closing(sqlite3.connect(database)) as connection:
            return connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",)
    except sqlite3.OperationalError:  # it is busy, or not readable
        return False
    except sqlite3.DatabaseError:
        return True


def _move_away(database: Path) -> None:
    """Rename a damaged database, so that a new one can take its place."""
    for end in BESIDE:
        file = database.with_name(database.name + end)
        if file.exists():
            file.rename(database.with_name(f"former-{file.name}"))


def _contradiction(study: SharedStudy, records: Mapping[int, TrialRecord]) -> str:
    """What Optuna's storage lacks or contradicts in the logs; empty if they agree."""
    stored = {trial.number: trial for trial in study.trials()}
    for number, record in records.items():
        if number not in stored:
            return f"Optuna's storage lacked trials of the study, such as trial {number}"
        if _is_complete(record) and not _agree(stored[number], record):
            return f"Optuna's storage contradicted the log of trial {number}"
    return ""


def _untold(study: SharedStudy, records: Mapping[int, TrialRecord]) -> str:
    """Which trial has ended without a record in its log or a worker's events; empty if none."""
    for trial in study.ended():
        if not study.events_of(trial) and not _is_complete(records.get(trial.number)):
            return f"The log of trial {trial.number} does not record how it ended"
    return ""


def _is_complete(record: TrialRecord | None) -> bool:
    """Whether a log is the complete record of a trial that has ended."""
    return record is not None and record.state in ENDED and (record.plan is not None or record.state == "failed")


def _agree(trial: FrozenTrial, record: TrialRecord) -> bool:
    if trial.state == TrialState.RUNNING:
        return True  # its end has not been reported to Optuna yet
    same_value = record.state != "complete" or (trial.values or [])[:1] == [record.value]
    same_params = not record.params or trial.params == record.params  # a trial that was killed may have none
    return trial.state == OPTUNA_STATES[record.state] and same_value and same_params


def _replayed(records: Mapping[int, TrialRecord], definition: Definition) -> list[FrozenTrial]:
    """The trials as Optuna would have them if they had just been run, one after another.

    Raises: StudyError for a log whose parameters do not fit its distributions.
    """
    directions = directions_of(definition.scale, definition.minimize)
    study = optuna.create_study(directions=directions, pruner=SameImagesPruner(), sampler=RandomSampler())
    for number in range(max(records, default=-1) + 1):
        record = records.get(number)
        if record is None or not _is_complete(record):
            study.enqueue_trial(record.params if record else {}, user_attrs=record.attrs if record else {})
            continue
        try:
            space = {name: json_to_distribution(json.dumps(each)) for name, each in record.distributions.items()}
            attrs = record.attrs | (described(record.plan, record.metrics) if record.plan else {})
            begun = create_trial(state=TrialState.RUNNING, params=record.params, distributions=space, user_attrs=attrs)
        except (ValueError, KeyError, TypeError) as error:
            raise StudyError(f"The log of trial {number} is damaged: {error}.") from error
        study.add_trial(begun)
        trial = optuna.Trial(study, number)  # in memory, trials are known by their numbers
        for value, share in record.told:
            trial.report(value, share)
            trial.should_prune()  # it records the rungs that the trial has reached
        study.tell(number, select.values_of(record, definition.minimize), state=OPTUNA_STATES[record.state])
    return study.trials
