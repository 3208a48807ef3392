"""Several processes in one study: with SQLite, and with PostgreSQL if Debian's packages are installed."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState
from PIL import Image

from autotl.data.listing import BY_NAME, Columns
from autotl.engine import latency
from autotl.errors import DataError, PluginError, StudyError
from autotl.study import storage as storages
from autotl.study.crew import Alone, Crew
from autotl.study.joining import Joining
from autotl.study.search import Search
from autotl.study.settings import Settings
from autotl.study.storage import Hold, LeftBehind, SharedStudy, TakenAway
from autotl.study.watch import Silent
from autotl.tracking.folder import StudyFolder
from autotl.tracking.log import attempts

TRIALS = 6
OPTIONS = ("--backbones", "tiny:net", "--strategies", "fine-tune,full,scratch", "--augmentations", "gate")
OPTIONS += ("--no-prune", "--reruns", "0", "--no-mlflow", "--no-compare")


def _binaries():
    found = shutil.which("initdb")
    return Path(found).parent if found else max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)


@pytest.fixture
def postgresql(tmp_path_factory):
    """The URL of a new database on a server of our own."""
    binaries = _binaries()
    if binaries is None:
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    folder = Path(os.path.realpath("/tmp")) / f"autotl-postgresql-{os.getpid()}"  # a short path, for its socket
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    become = []
    if os.geteuid() == 0:  # it refuses to run as root
        shutil.chown(folder, "postgres")
        become = ["runuser", "-u", "postgres", "--"]
    run = lambda *words: subprocess.run([*become, *map(str, words)], check=True, capture_output=True, cwd=folder)  # noqa: E731
    port = 54000 + os.getpid() % 1000
    run(binaries / "initdb", "-D", folder / "data", "-A", "trust", "-U", "autotl")
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1"
    run(binaries / "pg_ctl", "-D", folder / "data", "-o", options, "-l", folder / "log", "-w", "start")
    yield f"postgresql+psycopg://autotl@127.0.0.1:{port}/postgres"
    run(binaries / "pg_ctl", "-D", folder / "data", "-m", "immediate", "stop")
    shutil.rmtree(folder, ignore_errors=True)


def _joined(start, until, folder, *words, **environment):
    """A worker, started when its search has written its definition."""
    until(lambda: (folder.path / "study.json").exists())
    time.sleep(1)
    return start("worker", "stripes", *words, **environment)


def _together(gate, until):
    """Open the gate once three processes wait: all have a share of the trials, however long each takes to start."""
    until(lambda: gate.came == 3)
    gate.open()


def test_workers_on_sqlite_share_the_trials_of_a_search(start, until, gate, stripes, tmp_path):
    folder = StudyFolder(tmp_path / "studies" / "stripes")
    gate.shut()
    search = start("search", stripes, "--trials", TRIALS, *OPTIONS)
    workers = [_joined(start, until, folder) for _ in range(2)]
    _together(gate, until)
    assert search.wait(240) == 0, search.printed()
    assert [worker.wait(60) for worker in workers] == [0, 0], [worker.printed() for worker in workers]

    records = list(folder.log.records())
    assert [record.number for record in records] == list(range(TRIALS))
    assert Counter(record.state for record in records) == {"complete": TRIALS}
    hands = Counter(attempts(file)[-1][0]["worker"] for file in folder.log.files())
    assert len(hands) == 3, hands
    printed = sum(int(worker.printed().split(" trials done")[0].rpartition("\n")[2]) for worker in workers)
    assert printed == TRIALS - hands["search"]
    assert all(record.epochs for record in records)
    assert all(f"/{TRIALS}] trial {record.number}  " in search.printed() for record in records)


def test_a_worker_that_is_killed_leaves_the_total_exact(start, until, gate, stripes, tmp_path, postgresql):
    """Two workers on PostgreSQL, without the study's folder; one is killed during a trial."""
    folder = StudyFolder(tmp_path / "studies" / "stripes")
    join = ("--storage", postgresql, "--home", tmp_path / "elsewhere", "--data", stripes)
    gate.shut()
    search = start("search", stripes, "--trials", TRIALS, "--storage", postgresql, *OPTIONS)
    workers = [_joined(start, until, folder, *join, PAUSE=pause) for pause in ("0", "0.3")]
    _together(gate, until)
    shared = optuna.load_study(study_name=folder.definition.optuna, storage=postgresql)

    def in_a_training_of_the_second():
        return next(
            (
                trial.number
                for trial in shared.get_trials(states=[TrialState.RUNNING])
                if (trial.user_attrs.get("worker") or "").endswith(f":{workers[1].pid}") and trial.intermediate_values
            ),
            None,
        )

    killed = until(in_a_training_of_the_second)
    workers[1].send_signal(signal.SIGKILL)
    assert search.wait(240) == 0, search.printed()
    assert workers[0].wait(60) == 0, workers[0].printed()

    records = list(folder.log.records())
    assert [record.number for record in records] == list(range(TRIALS))
    assert Counter(record.state for record in records) == {"complete": TRIALS}
    known = shared.get_trials()
    assert [trial.state for trial in known[:TRIALS]] == [TrialState.COMPLETE] * TRIALS
    assert [trial.value for trial in known[:TRIALS]] == [record.value for record in records]
    # Two that claim at the same moment may create one trial too many; it waits for a larger total.
    assert all(trial.state == TrialState.WAITING for trial in known[TRIALS:])
    # The trial was run again under its number, and its log has both attempts.
    first, second = attempts(folder.log.files()[killed])
    assert first[0]["worker"].endswith(f":{workers[1].pid}")
    assert second[-1]["state"] == "complete"
    assert not (tmp_path / "elsewhere").exists()
    # The URL without a password is kept, and the workers have written no logs of their own.
    assert json.loads((folder.path / "study.json").read_text())["storage"] == postgresql


# What a worker must have in common with the search


@pytest.fixture
def joining(host, stripes, tmp_path):
    """A worker of a search that has ended; parts of the search's definition may be changed."""
    settings = Settings(data=stripes, trials=2, backbones=("tiny:net",), strategies=("linear-probe",), device="cpu")
    search = Search(settings, host, Silent(), time.monotonic())
    search.run()

    def join(said=None, data=None, host=host, columns=BY_NAME):
        shared = SharedStudy.join(search.folder.storage, "stripes")
        definition = search.folder.definition.model_copy(update=said or {})
        shared.agree({**shared.terms, "definition": definition.to_json()}, None)
        shared.open(4)
        cache = tmp_path / "elsewhere"
        return Joining(shared, host, Silent(), data=data, columns=columns, device="cpu", cache_dir=cache, weights={})

    return join


def test_a_worker_runs_the_remaining_trials_and_ends(joining, host, stripes):
    worker = joining()
    assert worker.run() == 2
    assert worker.run() == 0
    events = [[event["event"] for event in trial.user_attrs["events"]] for trial in worker.study.trials()[2:]]
    assert events == [["begin", "plan", "end"]] * 2
    # The search adds the worker's trials to its logs.
    settings = Settings(data=stripes, trials=4, backbones=("tiny:net",), strategies=("linear-probe",), device="cpu")
    again = Search(settings, host, Silent(), time.monotonic())
    assert sum(again.run().trials.values()) == 4
    assert [attempts(file)[-1][0]["worker"] for file in again.folder.log.files()] == ["search"] * 2 + [
        worker.study.who
    ] * 2


def test_a_worker_elsewhere_draws_within_the_limits_and_reports_both_values(host, stripes, tmp_path, monkeypatch):
    """By the latencies that the search has measured."""
    monkeypatch.setattr(latency, "measure", lambda stages, input, device: (1.0, 2.0, 4.0))
    values = {"data": stripes, "trials": 1, "backbones": ["tiny:net"], "strategies": ["linear-probe"], "device": "cpu"}
    search = Search(
        Settings.of({**values, "max_latency_ms": 2, "minimize": "latency"}), host, Silent(), time.monotonic()
    )
    search.run()
    monkeypatch.setattr(latency, "milliseconds", lambda *where: 1 / 0)
    shared = SharedStudy.join(search.folder.storage, "stripes")
    shared.open(7)
    where = {"data": None, "device": "cpu", "cache_dir": tmp_path / "elsewhere", "weights": {}}
    assert Joining(shared, host, Silent(), **where).run() == 6
    trials = shared.trials()[1:]
    costs = {"0.2": 1.0, "1.2": 2.0}
    assert [trial.values[1] for trial in trials] == [costs[trial.user_attrs["cut"]] for trial in trials]


def test_a_strict_search_ends_with_what_a_plugin_got_wrong_at_a_worker(joining, host, stripes):
    shared = joining().study
    trial = shared.claim(3)
    end = {"event": "end", "state": "failed", "reason": "Strategy 'moody' fails: no plan today", "by_plugin": True}
    shared.end(trial, "failed", None, [end])
    options = {"backbones": ("tiny:net",), "strategies": ("linear-probe",), "device": "cpu", "trials": 4}
    strict = Search(Settings(data=stripes, strict_plugins=True, **options), host, Silent(), time.monotonic())
    with pytest.raises(PluginError, match=r"^Trial 2 failed: Strategy 'moody' fails: no plan today\. Fix it, or"):
        strict.run()
    # It is in the log now, and does not end another search.
    again = Search(Settings(data=stripes, **options), host, Silent(), time.monotonic())
    trials = again.run().trials
    assert (trials["complete"], trials["failed"]) == (3, 1)


def test_a_worker_that_would_give_other_numbers_does_not_start(joining, stripes, tmp_path):
    with pytest.raises(StudyError, match="The search runs on cuda, this worker on cpu. Use --device cuda"):
        joining({"device": "cuda"})
    with pytest.raises(StudyError, match=r"The search uses torch 0\.1, this worker .*Install the same version"):
        joining({"versions": {"torch": "0.1"}})
    with pytest.raises(
        StudyError, match="The search uses other weights for 'tiny:net@random'. Use the same: --weights"
    ):
        joining({"backbones": {"tiny:net@random": "random:7"}})
    lacks = "The search uses strategy 'magic' of autotl-magic 1.0, which is not installed .*autotl-magic==1.0"
    with pytest.raises(StudyError, match=lacks):
        joining({"strategies": ("magic",), "owners": {"strategies magic": {"autotl-magic": "1.0"}}})
    other = tmp_path / "other"
    shutil.copytree(stripes, other)
    next((other / "down").iterdir()).unlink()
    with pytest.raises(StudyError, match="are not those of the search. Name their folder: --data PATH"):
        joining(data=other).run()
    moved = stripes.rename(tmp_path / "moved")
    with pytest.raises(DataError, match="does not exist"):
        joining().run()
    assert joining(data=moved).run() == 2


def test_a_worker_knows_the_columns_of_a_manifest(joining, stripes):
    rows = "".join(f"{file.relative_to(stripes)},{file.parent.name}\n" for file in stripes.glob("*/*.png"))
    for name in ("of the search", "another"):
        (stripes / f"{name}.csv").write_text(f"{name} 1,{name} 2\n{rows}")
    said = {"columns": {"path": "of the search 1", "label": "of the search 2"}}
    for data, columns in (("of the search", BY_NAME), ("another", Columns("another 1", "another 2"))):
        worker = joining(said, stripes / f"{data}.csv", columns=columns)
        assert worker._open().dataset.fingerprint == worker.definition.fingerprint
    assert joining(said).columns == BY_NAME  # a folder has none


def test_images_that_were_added_later_are_in_the_search_s_splits(host, stripes, tmp_path):
    """A new split of the images would differ: images added after the start of the study are in train."""
    options = {"backbones": ("tiny:net",), "strategies": ("linear-probe",), "device": "cpu"}
    Search(Settings(data=stripes, trials=2, **options), host, Silent(), time.monotonic()).run()
    for number in range(12):
        noise = np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(noise).save(stripes / "down" / f"late-{number}.png")
    grown = Search(Settings(data=stripes, trials=3, **options), host, Silent(), time.monotonic())
    grown.run()
    shared = SharedStudy.join(grown.folder.storage, "stripes")
    shared.open(4)
    worker = Joining(shared, host, Silent(), data=None, device="cpu", cache_dir=tmp_path / "elsewhere", weights={})
    assert worker.run() == 1


# In the database


@pytest.fixture
def study(tmp_path):
    """A study in a database, as the search opens it, and a function that opens it as a worker."""
    url = f"sqlite:///{tmp_path / 'optuna.db'}"
    made = SharedStudy.create(url, "flowers-1234", seed=0, directions=["maximize"])
    made.agree({"definition": "{}", "seed": 0, "prune": True}, None)
    return made, lambda: SharedStudy.join(url, "flowers")


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_waiting_trial_is_claimed_by_one_process_only(study, tmp_path):
    search, join = study
    for number in range(40):
        search.optuna.enqueue_trial({"cut": number / 40})
    children = []
    for name in range(3):
        child = os.fork()
        if child == 0:
            try:
                worker = join()
                claimed = []
                while trial := worker.claim(40):
                    claimed.append(trial.number)
                (tmp_path / f"{name}.json").write_text(json.dumps(claimed))
            finally:
                os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    claimed = [number for name in range(3) for number in json.loads((tmp_path / f"{name}.json").read_text())]
    assert sorted(claimed) == list(range(40))


def test_a_trial_that_was_taken_away_ends_here_and_counts_there(study):
    search, join = study
    worker = join()
    trial = worker.claim(5)
    worker.give_back(trial.number)  # as the search does if there is no heartbeat for too long
    again = search.claim(5)
    with pytest.raises(TakenAway):
        worker.end(trial, "complete", 0.9, [])
    search.end(again, "complete", 0.5, [])
    with pytest.raises(TakenAway):
        worker.end(trial, "complete", 0.9, [])
    assert [each.value for each in search.trials()] == [0.5]
    worker.give_back(trial.number)  # too late, so it changes nothing
    assert [each.state for each in search.trials()] == [TrialState.COMPLETE]


@pytest.mark.filterwarnings("ignore:Heartbeat of storage")
def test_no_trial_beyond_the_total_is_run(study):
    search, join = study
    worker = join()
    claimed = [claim.number for who in (search, worker, search) if (claim := who.claim(3))]
    assert claimed == [0, 1, 2]
    assert search.claim(3) is None
    assert worker.claim(3) is None
    assert len(search.trials()) == 3
    # Two that ask at one moment: the later one gives its trial back, for a larger total.
    late = worker.optuna.ask()
    worker.give_back(late.number)
    assert search.claim(3) is None
    assert worker.claim(4).number == 3


def test_a_trial_that_a_worker_ends_at_the_last_moment_is_logged(study, tmp_path):
    search, join = study
    worker = join()
    folder = StudyFolder(tmp_path / "flowers")
    taken_in = []

    class Late(Crew):
        def _others_are_running(self, total):
            """The last trial ends now, when the search checks whether to wait for a worker."""
            worker.end(last, "complete", 0.5, [{"event": "end", "state": "complete", "value": 0.5}])
            return super()._others_are_running(total)

    crew = Late(search, folder, SimpleNamespace(tell=taken_in.append, told=set(taken_in), passed_over=()), Alone(None))
    last = worker.claim(1)
    crew.run(1)
    assert [(record.number, record.value) for record in folder.log.records()] == [(0, 0.5)]
    assert taken_in == [0]


def test_a_trial_that_is_given_back_is_claimed_under_its_number_with_its_draws(study):
    search, join = study
    worker = join()
    trial = worker.claim(5)
    drawn = trial.suggest_float("cut", 0, 1)
    worker.give_back(trial.number)
    again = search.claim(5)
    assert (again.number, again.suggest_float("cut", 0, 1)) == (trial.number, drawn)
    assert not worker.is_mine(trial)
    assert search.is_mine(again)


def test_only_trials_of_dead_processes_are_left_behind(study, monkeypatch):
    search, join = study
    worker = join()
    own, others = search.claim(5), worker.claim(5)
    for who, trial in ((search, own), (worker, others)):
        who.arrived(trial, 1, 4)
        who.arrived(trial, 2, 3)
    with worker.alive(others):
        time.sleep(0.2)
        # A trial under the name of the search is one of an earlier search, because this one has the lock.
        assert search.left_behind() == [LeftBehind(own.number, "search", None)]
    monkeypatch.setattr(search._storage, "grace_period", 1)
    time.sleep(2.5)
    assert search.left_behind()[1:] == [LeftBehind(others.number, worker.who, (2, 3))]
    # Claimed again, it is not taken for dead because of the earlier worker's heartbeats.
    search.give_back(others.number)
    assert worker.claim(5).number == others.number
    assert search.left_behind() == [LeftBehind(own.number, "search", None)]
    assert worker.optuna.trials[others.number].user_attrs["place"] is None


def test_a_worker_notices_what_becomes_of_its_trial(study, until, monkeypatch):
    monkeypatch.setattr(storages, "BEAT", 0.05)
    search, join = study
    worker = join()
    search.open(5)
    trial = worker.claim(5)
    with worker.alive(trial) as hold:
        search.agree(search.terms, None)  # the search was killed, and starts again
        time.sleep(0.3)
        assert hold == Hold()
        search.open(5)
        search.give_back(trial.number)
        until(lambda: hold.taken, 5)
        assert not hold.closed
    with worker.alive(worker.claim(5)) as hold:
        search.open(0)
        until(lambda: hold.closed, 5)
        assert not hold.taken
    search.open(5)
    with worker.alive(worker.claim(5)) as hold:
        search.agree({**search.terms, "definition": "another"}, None)
        until(lambda: hold.closed, 5)


def test_errors_about_studies_that_cannot_be_joined(study, tmp_path):
    _, join = study
    url = f"sqlite:///{tmp_path / 'optuna.db'}"
    with pytest.raises(StudyError, match="Unknown study 'flower'. Did you mean 'flowers'"):
        SharedStudy.join(url, "flower")
    SharedStudy.create(url, "flowers-5678", seed=0, directions=["maximize"])
    with pytest.raises(StudyError, match="Use one of: flowers-1234, flowers-5678"):
        join()
    with pytest.raises(StudyError, match="is still starting"):
        SharedStudy.join(url, "flowers-5678")
    with pytest.raises(StudyError, match="is not a database URL"):
        SharedStudy.join("nonsense", "flowers")
    with pytest.raises(StudyError, match="cannot use the storage postgresql.*:[*][*][*]@"):
        SharedStudy.join("postgresql+psycopg://a:secret@127.0.0.1:1/x", "flowers")
