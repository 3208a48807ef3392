"""A study with lost or damaged files resumes, and draws what it would have drawn."""

import json
import os
import shutil
import sqlite3
import time

import optuna
import pytest

from autotl.errors import StudyError
from autotl.host import Host
from autotl.study import recovery, sampler
from autotl.study.search import Search
from autotl.study.settings import Settings
from autotl.study.watch import Silent
from autotl.testing.lab import TinyPlugin, write_stripes
from autotl.tracking.folder import StudyFolder

RANDOM, BEFORE, TOTAL = 4, 8, 10
"""Numbers of trials: drawn at random or guessed, run before something is lost, and in the end."""


class Listening(Silent):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def search(data, home, trials=TOTAL, **settings):
    values = {
        "data": data,
        "home": home,
        "trials": trials,
        "backbones": ("tiny:net",),
        "strategies": ("linear-probe", "fine-tune"),
        "augmentations": ("none", "flip"),
        "reruns": 0,
        "compare": False,
        "refit": False,
        "device": "cpu",
        "mlflow": False,
        "cache_dir": home.parent / "cache",
        **settings,
    }
    host = Host()
    host.add(TinyPlugin(), "tiny-plugin")
    return Search(Settings(**values), host, Listening(), began=time.monotonic())


def drawn(made):
    """Everything about the trials of a study that must not depend on what was lost."""
    return [(r.number, r.state, r.params, r.plan and r.plan.hash, r.value, r.attrs) for r in made.folder.log.records()]


def in_storage(folder):
    """Everything that Optuna needs of the trials, to draw and to prune as before."""
    study = optuna.load_study(study_name=folder.definition.optuna, storage=folder.storage)

    def attrs(trial):
        """Without the worker, and what was needed only while the trial was drawn."""
        kept = {name: value for name, value in trial.user_attrs.items() if name != "worker"}
        return kept | {name: value for name, value in trial.system_attrs.items() if name.startswith("completed_rung")}

    return [
        (t.number, t.state, t.value, t.params, t.distributions, t.intermediate_values, attrs(t)) for t in study.trials
    ]


@pytest.fixture(scope="module", autouse=True)
def _fewer_at_random():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler, "START", RANDOM)
        yield


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """The images, a study of some trials, Optuna's record of it, and the draws of an uninterrupted study."""
    place = tmp_path_factory.mktemp("recovery")
    stripes = write_stripes(place / "stripes")
    made = search(stripes, place / "started", BEFORE)
    made.run()
    shutil.copytree(place / "started", place / "whole")
    whole = search(stripes, place / "whole")
    whole.run()
    assert {state for _, state, *_ in drawn(whole)} == {"complete", "pruned"}
    return stripes, place / "started", in_storage(made.folder), drawn(whole)


@pytest.fixture
def study(started, tmp_path):
    """A copy of the study, to be damaged."""
    shutil.copytree(started[1], tmp_path / "home")
    return StudyFolder(tmp_path / "home" / "stripes")


@pytest.fixture
def resumes(started, study):
    """`resumes()`: the search resumes and draws what it would have drawn; returns its warnings."""
    stripes, _, _, whole = started

    def run():
        made = search(stripes, study.path.parent)
        made.run()
        assert drawn(made) == whole
        assert [number for number, *_ in in_storage(study)] == list(range(TOTAL))
        return [note for note in made.watcher.notes if note.startswith("Warning: ")]

    return run


def opened(study, definition=None):
    said = []
    shared, made_again = recovery.opened(study, definition or study.definition, None, (), said.append)
    shared.close()
    assert made_again == bool(said)
    return said


def _deleted(file):
    file.unlink()


def _emptied(file):
    file.write_bytes(b"")


def _no_database(file):
    content = bytearray(file.read_bytes())
    content[:4096] = os.urandom(4096)
    file.write_bytes(content)


def _truncated(file):
    os.truncate(file, file.stat().st_size // 2 // 4096 * 4096)


def _a_folder(file):
    file.unlink()
    file.mkdir()


def _a_pipe(file):
    file.unlink()
    os.mkfifo(file)


def _without_a_trial(file):
    with sqlite3.connect(file) as database:
        database.execute("DELETE FROM trials WHERE number = 4")


def _with_another_value(file):
    with sqlite3.connect(file) as database:
        database.execute("UPDATE trial_values SET value = 0.123")


def _without_a_table(file):
    with sqlite3.connect(file) as database:
        database.execute("DROP TABLE trial_values")


def _with_nonsense(file):
    with sqlite3.connect(file) as database:
        database.execute("UPDATE trial_params SET distribution_json = '{' WHERE trial_id = 3")


@pytest.mark.parametrize(
    "damage",
    [
        _deleted,
        _emptied,
        _no_database,
        _truncated,
        _a_folder,
        _a_pipe,
        _without_a_trial,
        _with_another_value,
        _with_nonsense,
        _without_a_table,
    ],
)
def test_a_database_that_is_lost_or_damaged_is_rebuilt_from_the_logs(started, study, damage):
    damage(study.database)
    (said,) = opened(study)
    assert f"rebuilt from the logs of {BEFORE} trials" in said and "\n" not in said
    assert in_storage(study) == started[2]
    assert (study.path / "former-optuna.db").exists() == (damage != _deleted)
    assert opened(study) == []


def test_a_search_resumes_from_the_logs_alone_as_if_nothing_were_lost(study, resumes):
    _deleted(study.database)
    (said,) = resumes()
    assert "optuna.db was missing. Optuna's storage was rebuilt from the logs" in said
    assert resumes() == []


@pytest.mark.parametrize("damage", [_deleted, _emptied, _no_database, _a_folder, _a_pipe])
def test_a_study_file_that_is_lost_or_damaged_is_rebuilt_from_the_database(started, study, damage):
    file = study.path / "study.json"
    before = study.definition
    damage(file)
    said = []
    assert recovery.definition_of(study, None, said.append) == before
    assert len(said) == 1 and "study.json" in said[0] and "rebuilt from Optuna's storage" in said[0]
    assert "\n" not in said[0]


def test_trials_whose_logs_are_lost_are_run_again_under_their_numbers(study, resumes):
    definition = study.definition
    (study.path / "study.json").unlink()
    (study.path / "trials" / "00004.jsonl").unlink()
    log = study.path / "trials" / "00006.jsonl"
    log.write_bytes(log.read_bytes()[:-20])  # its last line
    said = resumes()
    assert "study.json is missing" in said[0]
    assert "The log of trial 4 does not record how it ended" in said[1] and "To be run again: trial 4, 6." in said[1]
    assert study.definition == definition


def test_without_study_file_and_database_nothing_is_guessed(study):
    (study.path / "study.json").unlink()
    study.database.unlink()
    with pytest.raises(StudyError, match=r"study\.json is missing, and Optuna's storage has no study .*--study NAME"):
        recovery.definition_of(study, None, print)
    assert not study.database.exists()


def test_logs_without_the_ranges_of_the_draws_are_not_made_a_database_of(study):
    for file in study.log.files():
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        file.write_text("".join(json.dumps({**line, "distributions": {}}) + "\n" for line in lines))
    study.database.unlink()
    with pytest.raises(StudyError, match="optuna.db was missing, and the logs of an earlier"):
        opened(study)
