"""A search survives kills at any moment, a full disk, and a workspace or store that fails."""

import json
import os
import random
import resource
import signal
import sqlite3
import time
from functools import partial
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch

from autotl.engine import loop
from autotl.engine.objective import Objective
from autotl.errors import AutotlError
from autotl.study import storage
from autotl.study.crew import Crew
from autotl.study.search import Search
from autotl.study.settings import Settings
from autotl.study.storage import SharedStudy
from autotl.study.trials import Trials
from autotl.study.watch import Silent
from autotl.tracking.log import TrialLog

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


TRIALS_ALONE = {"reruns": 0, "compare": False, "refit": False}
"""For tests of the trials alone: a search that trains nothing after them."""


def search(host, data, **settings):
    values = {
        "data": data,
        "trials": 12,
        "backbones": ("tiny:net",),
        "strategies": ("linear-probe", "fine-tune"),
        "augmentations": ("none", "flip"),
        "reruns": 1,
        "device": "cpu",
        "set": {"recipe.length": 0},  # as few epochs as a search considers
        **settings,
    }
    return Search(Settings(**values), host, Silent(), began=time.monotonic())


def drawn(made):
    """Everything about the trials of a study that must not depend on interruptions."""
    return [
        (r.number, r.state, r.params, r.plan and r.plan.hash, r.value, [epoch.get("train.loss") for epoch in r.epochs])
        for r in made.folder.log.records()
    ]


def _die_at(write):
    """Kills this process at its `write`-th write, before or after it: of a log, of a bundle, of Optuna's database."""
    left = [write]

    def deadly(write):
        def writing(*args, **kwargs):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            done = write(*args, **kwargs)
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return done

        return writing

    TrialLog._append = deadly(TrialLog._append)
    optuna.Study.tell = deadly(optuna.Study.tell)
    optuna.Study.ask = deadly(optuna.Study.ask)
    optuna.Trial.report = deadly(optuna.Trial.report)
    optuna.Trial._suggest = deadly(optuna.Trial._suggest)
    optuna.Trial.set_user_attr = deadly(optuna.Trial.set_user_attr)
    SharedStudy.give_back = deadly(SharedStudy.give_back)
    Path.rename = deadly(Path.rename)
    Path.replace = deadly(Path.replace)


def test_kills_at_random_writes_change_nothing(host, stripes):
    # Without gradient descent: torch cannot continue it in a forked process. One trial may be hit three times.
    again = partial(search, host, stripes, strategies=("linear-probe",), trials=25, max_kills=99)
    whole = again(study="whole")
    expected = whole.run()
    draw, kills = random.Random(0), 0
    while kills < 10:
        write = draw.randint(1, 60)
        child = os.fork()
        if child == 0:
            try:
                _die_at(write)
                again().run()
            finally:
                os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
            break
        kills += 1
    assert kills >= 5
    made = again()
    result = made.run()
    assert sum(result.trials.values()) == 25
    assert drawn(made) == drawn(whole)
    assert result.test == expected.test
    stored = optuna.load_study(study_name=None, storage=f"sqlite:///{made.folder.path / 'optuna.db'}")
    assert [trial.number for trial in stored.trials] == list(range(25))
    assert all(trial.state.is_finished() for trial in stored.trials)


def test_a_trial_is_run_again_with_its_number_of_epochs(host, stripes, monkeypatch):
    """A trial that is interrupted in the middle of its training ends as it would have."""
    whole = search(host, stripes, study="whole", trials=4, **TRIALS_ALONE)
    whole.run()

    def interrupt(observer, phase, epoch, facts):
        really(observer, phase, epoch, facts)
        if epoch == 4:
            raise KeyboardInterrupt

    observer = "autotl.study.trials._TrialObserver"
    from autotl.study.trials import _TrialObserver

    really = _TrialObserver.epoch
    with monkeypatch.context() as patch:
        patch.setattr(f"{observer}.epoch", interrupt)
        with pytest.raises(KeyboardInterrupt):
            search(host, stripes, trials=4, **TRIALS_ALONE).run()
    made = search(host, stripes, trials=4, **TRIALS_ALONE)
    made.run()
    assert drawn(made) == drawn(whole)


def test_a_usable_model_is_there_after_the_first_trial(host, stripes, monkeypatch):
    """Before the second backbone's features are computed, the study has the bundle of a linear probe."""
    seen = []
    filled = []
    run = Crew.run

    def running(crew, total):
        run(crew, total)
        bundle = crew.folder.bundle
        seen.append((total, json.loads((bundle / "plan.json").read_text())["phases"][0]["method"]))
        filled.append(crew.trials.bench.features.computed)

    monkeypatch.setattr(Crew, "run", running)
    search(host, stripes, backbones=("tiny:net", "reference:edges"), trials=3).run()
    assert seen[0] == (1, "logistic")
    assert filled == [72, 144]


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only to root")
def test_a_read_only_workspace_is_an_error_at_the_start(host, stripes, tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    with pytest.raises(AutotlError, match="cannot be written to .*locked.*--home"):
        search(host, stripes, home=folder).run()


def test_a_full_disk_is_one_line_and_nothing_is_lost(host, stripes):
    """No file may grow beyond a limit from trial 3 on, as on a full disk."""
    whole = search(host, stripes, study="whole", trials=6, **TRIALS_ALONE)
    whole.run()
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    made = search(host, stripes, trials=6, **TRIALS_ALONE)
    full = _from_trial(made, 3, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1])))
    try:
        with full, pytest.raises(AutotlError) as error:
            made.run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert "\n" not in str(error.value)
    assert "Finished trials are saved" in str(error.value)
    made = search(host, stripes, trials=6, **TRIALS_ALONE)
    made.run()
    assert drawn(made) == drawn(whole)


def _from_trial(made, number, happens):
    """A context in which `happens` is called before a trial is run."""
    patch = pytest.MonkeyPatch()
    really = Trials._run_claimed

    def run_claimed(trials, trial, hold):
        if trial.number == number:
            happens()
        really(trials, trial, hold)

    patch.setattr(Trials, "_run_claimed", run_claimed)

    class _Undo:
        def __enter__(self):
            return made

        def __exit__(self, *_):
            patch.undo()

    return _Undo()


def test_a_locked_database_fails_in_one_line_and_the_search_resumes_later(host, stripes, monkeypatch):
    monkeypatch.setattr(storage, "BUSY", 1)
    search(host, stripes, trials=2, **TRIALS_ALONE).run()
    made = search(host, stripes, trials=4, **TRIALS_ALONE)
    other = sqlite3.connect(made.folder.path / "optuna.db")
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(AutotlError, match="database is locked"):
        made.run()
    other.rollback()
    other.close()
    ended = search(host, stripes, trials=4, **TRIALS_ALONE).run().trials
    assert ended["complete"] + ended["pruned"] == 4


@pytest.mark.parametrize("when", ["in a trial", "after the trials"])
def test_a_computer_without_memory_ends_the_search_and_costs_no_trial(host, stripes, monkeypatch, when):
    loss = loop._Run.gradients

    def greedy(run, *batch):
        if when == "in a trial" or "val" in run._model.plan.train_on:
            torch.empty(10**15)
        return loss(run, *batch)

    few = {"strategies": ("full",), "trials": 2, "prune": False, "reruns": 0, "compare": False}
    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "gradients", greedy)
        made = search(host, stripes, **few)
        with pytest.raises(AutotlError, match="Out of memory"):
            made.run()
    if when == "in a trial":
        (record,) = made.folder.log.records()
        assert (record.state, record.by_plugin) == ("interrupted", False)
        assert record.reason == "out of memory after 0 % of its epochs"
    assert search(host, stripes, **few).run().trials["complete"] == 2


def test_an_error_in_training_fails_only_its_trial(host, stripes, monkeypatch):
    loss = Objective.__call__
    calls = []

    def broken(objective, *batch):
        calls.append(1)
        return loss(objective, *batch) * (np.nan if len(calls) < 5 else 1.0)

    monkeypatch.setattr(Objective, "__call__", broken)
    made = search(host, stripes, strategies=("fine-tune",), trials=3)
    result = made.run()
    assert result.trials["failed"] == 1
    failed = next(record for record in made.folder.log.records() if record.state == "failed")
    assert "The loss became nan in epoch 1" in failed.reason


def test_trials_that_fall_behind_are_pruned_and_linear_probes_never(host, stripes):
    made = search(host, stripes, trials=14, **TRIALS_ALONE)
    made.run()
    records = list(made.folder.log.records())
    pruned = [record for record in records if record.state == "pruned"]
    assert pruned
    assert all(record.params["strategy"] == "fine-tune" for record in pruned)
    assert all("pruned at" in record.reason and record.value is None for record in pruned)
    assert all(record.epochs == () for record in records if record.params["strategy"] == "linear-probe")
    unpruned = search(host, stripes, trials=14, prune=False, study="unpruned", **TRIALS_ALONE).run()
    assert unpruned.trials["pruned"] == 0


@pytest.mark.parametrize(
    "breaks", ["with seed 1", "whose refit failed", "the same frozen backbone with random weights"]
)
def test_an_error_in_a_training_after_the_trials_skips_it_with_a_note(host, stripes, monkeypatch, breaks):
    from autotl.errors import TrainingError
    from autotl.study import worker

    def fit(plan, bench, observer=None):
        what = "whose refit failed" if "val" in plan.train_on else "with seed 1" if plan.seed == 1 else "as it was"
        broken = plan.backbone.endswith("@random") if breaks.endswith("random weights") else what == breaks
        if broken and not plan.backbone.startswith("reference:"):
            raise TrainingError("The loss became nan.")
        return really(plan, bench, observer)

    really = worker.fit
    monkeypatch.setattr(worker, "fit", fit)
    pretrained = {"backbones": ("autotl:resnet10",), "strategies": ("linear-probe",)}
    values = pretrained if breaks.endswith("random weights") else {"strategies": ("linear-probe", "full")}
    result = search(host, stripes, trials=2, prune=False, **values).run()
    assert any(breaks in what and "The loss became nan" in what for what in result.skipped)
    assert 0 < result.test.value <= 1
