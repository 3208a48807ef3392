"""A search with several processes: they share all of its work, and none outlives it."""

import itertools
import os
import pickle
import signal
from collections import Counter
from types import SimpleNamespace

import psutil
import pytest

from autotl.engine.device import resolve
from autotl.errors import DamagedFile, StudyError
from autotl.plan import Input, Network
from autotl.study import team
from autotl.study.settings import Settings
from autotl.study.storage import SharedStudy
from autotl.study.team import Team
from autotl.study.watch import Silent
from autotl.study.worker import Failed, NextTrial, Pass, Ran, Training
from autotl.tracking import result as results
from autotl.tracking.folder import StudyFolder
from autotl.tracking.log import attempts

TRIALS = 6
OPTIONS = ("--backbones", "tiny:net", "--strategies", "fine-tune,full", "--augmentations", "gate", "--no-prune")
OPTIONS += ("--reruns", "1", "--no-mlflow", "--workers", "2", "--trials", TRIALS, "--max-kills", 99)


@pytest.fixture
def folder(tmp_path):
    return StudyFolder(tmp_path / "studies" / "stripes")


def _workers(search):
    """The processes that a search has started."""
    return psutil.Process(search.pid).children()


def _working(until, gate, search):
    """The workers of a search when both run a trial and wait at the gate."""
    until(lambda: gate.came == 2)
    return _workers(search)


def _all_ended(folder):
    return [record.state for record in folder.log.records()] == ["complete"] * TRIALS


def test_two_workers_share_all_work_and_their_search_shows_both(start, until, gate, stripes, folder):
    gate.shut()
    search = start("search", stripes, *OPTIONS)
    workers = _working(until, gate, search)
    assert len(workers) == 2
    gate.open()
    assert search.wait(240) == 0, search.printed()
    assert not any(worker.is_running() for worker in workers)

    assert _all_ended(folder)
    hands = Counter(attempts(file)[-1][0]["worker"] for file in folder.log.files())
    assert len(hands) == 2 and all(name.startswith("search:") for name in hands)
    said = search.printed()
    assert all(f"/{TRIALS}] trial {number}  " in said for number in range(TRIALS))
    assert said.count("features of tiny:net: 72 in") == 1
    result = results.load(folder)
    assert len(result.best.runs) == 2 and not result.skipped
    assert len(result.comparisons) == 2
    assert len(folder.test_openings.read_text().splitlines()) == 1
    assert not (folder.path / ".test").exists()
    shared = SharedStudy.join(folder.storage, "stripes")
    assert [trial.value for trial in shared.trials()] == [record.value for record in folder.log.records()]
    plans = {record.plan.hash for record in folder.log.records()}
    assert {file.stem for file in folder.predictions.iterdir()} >= plans  # and those of reruns
    assert "autotl" in folder.report.read_text()
    # Alone, the search finds everything done.
    again = start("search", stripes, *OPTIONS, "--workers", "1")
    assert again.wait(120) == 0 and f"already has {TRIALS} trials" in again.printed()
    assert results.load(folder) == result


def test_a_worker_that_is_killed_is_started_again_and_its_trial_is_run_again(start, until, gate, stripes, folder):
    gate.shut()
    search = start("search", stripes, *OPTIONS)
    worker = _working(until, gate, search)[0]
    worker.kill()
    until(lambda: "was killed by signal 9. It is started again." in search.printed())
    until(lambda: gate.came == 3)  # somebody has begun the same trial again, at once
    gate.open()
    assert search.wait(240) == 0, search.printed()
    assert _all_ended(folder)
    tried = [attempts(file) for file in folder.log.files()]
    again = next(each for each in tried if len(each) == 2)
    assert again[0][0]["worker"] != again[1][0]["worker"]
    assert sorted(map(len, tried)) == [1] * (TRIALS - 1) + [2]
    assert not results.load(folder).skipped


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_no_worker_outlives_its_search_and_the_next_one_goes_on(start, until, gate, stripes, folder, how):
    gate.shut()
    search = start("search", stripes, *OPTIONS)
    workers = _working(until, gate, search)
    os.kill(search.pid, how)
    search.wait(30)
    until(lambda: not any(worker.is_running() for worker in workers), 10)
    assert "Traceback" not in search.printed()
    begun = list(folder.log.records())
    drawn = [trial.params for trial in SharedStudy.join(folder.storage, "stripes").trials()[:2]]
    assert len(begun) == 2 and all("strategy" in params for params in drawn)
    if how != signal.SIGKILL:
        assert search.returncode == 130
        assert [(each.state, each.reason) for each in begun] == [("interrupted", "the search was stopped")] * 2
    gate.open()
    again = start("search", stripes, *OPTIONS)
    assert again.wait(240) == 0, again.printed()
    assert _all_ended(folder)
    for params, record in zip(drawn, folder.log.records(), strict=False):
        assert params.items() <= record.params.items()


def test_a_worker_that_cannot_join_ends_the_search_with_its_reason(start, stripes, installed):
    """There, a plugin is missing."""
    installed("fickle", FICKLE)
    options = ("--backbones", "tiny:net", "--strategies", "fickle", "--no-mlflow", "--workers", "2", "--trials", "2")
    search = start("search", stripes, *options)
    assert search.wait(120) == 2
    assert "Error: The search uses strategy 'fickle'" in search.printed()
    assert "Traceback" not in search.printed()


FICKLE = """
import sys
from autotl import hookimpl

@hookimpl
def register_strategies(register):
    if "autotl.study.team" not in sys.orig_argv:
        register("fickle", Fickle, summary="not for workers")

class Fickle:
    def suggest(self, trial, context):
        raise NotImplementedError
"""


# The processes and what they do, without a search


INPUT = Input(size=32, resize=32, interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """`fake(text, size)`: a team of processes that run this code, which has `pipe` and `jobs()`."""
    made = []

    def start(text, size=2, watcher=None):
        code = tmp_path / "autotl_fake.py"
        code.write_text(FAKE + text)
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")])))
        monkeypatch.setattr(team, "ENTRY", "autotl_fake")
        made.append(Team(tmp_path, ["cpu"] * size, watcher or Silent()))
        made[-1]._invitation = "an invitation"
        return made[-1]

    yield start
    for each in made:
        each.end()


FAKE = """
import os, sys, time
from multiprocessing.connection import Connection
pipe = Connection(int(sys.argv[1]))
def jobs():
    while True:
        yield pipe.recv()
"""
ANSWER = """
for job in jobs():
    if isinstance(job, tuple):
        continue
    if getattr(job, "task", "") == "deadly":
        os._exit(3)
    pipe.send(("progress", "features of a", job.total if hasattr(job, "total") else len(getattr(job, "shas", ())), 4))
    pipe.send(("done", {"pid": os.getpid()}))
"""


def _train(task):
    return Training(task, None)


def test_jobs_are_done_at_the_same_time_and_may_give_out_others(fake):
    made = fake(ANSWER)
    seen = {}
    for job, outcome in made.carry_out(_train(str(number)) for number in range(6)):
        seen[job.task] = outcome["pid"]
        if job.task == "0":  # in the middle of this, somebody needs another one
            ((inner, _),) = made.carry_out([_train("inner")])
            assert inner.task == "inner"
    assert sorted(seen) == [str(number) for number in range(6)]
    assert len(set(seen.values())) == 2
    assert list(made.carry_out([])) == []


def test_while_there_is_no_job_a_team_asks_again(fake, monkeypatch):
    monkeypatch.setattr(team, "LOOK", 0.01)
    made = fake(ANSWER)
    assert [job.task for job, _ in made.carry_out([None, None, _train("late"), None])] == ["late"]


def test_a_job_that_kills_every_worker_fails_and_trials_are_left_to_the_crew(fake, monkeypatch):
    monkeypatch.setattr(team, "STARTS", 9)
    watcher = Notes()
    made = fake(ANSWER, watcher=watcher)
    found = {job.task: outcome for job, outcome in made.carry_out([_train("deadly"), _train("sound")])}
    assert isinstance(found["deadly"], Failed) and str(found["deadly"]).startswith("3 workers died in it; the last one")
    assert "pid" in found["sound"]
    assert (
        len([note for note in watcher.notes if "ended with exit code 3 (no reason given). It is started" in note]) == 3
    )
    made = fake("for job in jobs():\n    if not isinstance(job, tuple):\n        os._exit(3)", size=1)
    (outcome,) = made.carry_out([NextTrial(1)])
    assert outcome == (NextTrial(1), Ran(more=True))
    network = Network(backbone="tiny:net", weights="none", input=INPUT)
    with pytest.raises(
        StudyError, match="3 workers died in the pass of the images through tiny:net; the last one ended"
    ):
        list(made.carry_out([Pass(network, ("a",), 1)]))


def test_a_search_without_workers_ends(fake):
    made = fake("sys.exit('no such library')")
    with pytest.raises(
        StudyError, match=r"All workers .* it ended with exit code 1 \(no such library\)\. .* --workers"
    ):
        list(made.carry_out(itertools.repeat(NextTrial(1))))


def test_progress_of_parts_is_added_up(fake):
    watcher = Notes()
    made = fake(ANSWER, watcher=watcher)
    network = Network(backbone="a", weights="none", input=INPUT)
    assert len(list(made.carry_out([Pass(network, ("1", "2"), 4), Pass(network, ("3", "4"), 4)]))) == 2
    assert watcher.seen == [("features of a", 2, 4), ("features of a", 4, 4)]


class Notes(Silent):
    def __init__(self):
        self.notes, self.seen = [], []

    def note(self, text):
        self.notes.append(text)

    def progress(self, *what):
        self.seen.append(what)


def test_an_error_reaches_the_search_whatever_it_is_made_of(tmp_path):
    damaged = team._portable(DamagedFile(tmp_path / "file", "half of it is missing"))
    assert "half of it is missing" in str(pickle.loads(pickle.dumps(damaged)))
    failed = pickle.loads(pickle.dumps(Failed("the loss is nan", by_plugin=True)))
    assert (str(failed), failed.by_plugin) == ("the loss is nan", True)


# Which devices


def _devices(stripes, device="cpu", **settings):
    return team.devices(Settings(data=stripes, **settings), device)


def test_each_gpu_gets_a_worker_and_more_workers_share_them(stripes, monkeypatch):
    monkeypatch.setattr(team.torch.cuda, "device_count", lambda: 2)
    assert _devices(stripes, "cuda", workers="auto") == ["cuda:0", "cuda:1"]
    assert _devices(stripes, "cuda", workers=3) == ["cuda:0", "cuda:1", "cuda:0"]
    assert _devices(stripes, "cuda:1", workers=2) == ["cuda:1", "cuda:1"]
    assert _devices(stripes, "cuda:1", workers="auto") == ["cuda:1"]
    assert _devices(stripes, "cuda") == ["cuda"]


def test_each_core_gets_a_worker_while_there_is_memory(stripes, monkeypatch):
    monkeypatch.setattr(team, "_cores", lambda: 8)
    for gigabytes, expected in ((64, 8), (7, 3), (1, 1)):
        memory = SimpleNamespace(available=gigabytes * 10**9)
        monkeypatch.setattr(team.psutil, "virtual_memory", lambda memory=memory: memory)
        assert _devices(stripes, workers="auto") == ["cpu"] * expected
    assert _devices(stripes, workers=9) == ["cpu"] * 9
    assert _devices(stripes, resolve("cpu")) == ["cpu"]


def test_plugins_that_are_objects_cannot_be_shared(stripes):
    with pytest.raises(StudyError, match=r"With several workers a plugin must be installed or a file"):
        _devices(stripes, workers=2, plugins=(SimpleNamespace(),))


@pytest.mark.parametrize("value", ["0", "none", "1.5"])
def test_other_numbers_of_workers_are_refused(stripes, value):
    with pytest.raises(StudyError, match=r"workers='.*': it must be a number of processes, at least 1, or auto\."):
        Settings.of({"data": stripes, "workers": value})
    assert Settings.of({"data": stripes, "workers": "3"}).workers == 3
