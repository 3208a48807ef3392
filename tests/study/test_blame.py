"""Strategies, backbones and augmentations that always fail are removed from a search after a few trials."""

import time
from collections import Counter

import optuna
import pytest
import torch
from optuna.trial import TrialState
from torch import nn

from autotl import hookimpl
from autotl.builtin.linear_probe import LinearProbe
from autotl.errors import PluginError, StudyError
from autotl.study import patience
from autotl.study.blame import BLAMED, blamed, out_of
from autotl.study.sampler import NumberedSampler
from autotl.study.search import Search
from autotl.study.settings import Settings
from autotl.study.watch import Silent
from autotl.testing.lab import TinyFamily

STRATEGIES = ["a", "b", "c", "d", "bad"]


def fails(trial):
    """Which part of a trial fails: always the strategy `bad` and the backbone `broken`; else None."""
    if trial.suggest_categorical("strategy", STRATEGIES) == "bad":
        return "strategy", "bad"
    if trial.suggest_categorical("backbone", ["one", "two", "broken"]) == "broken":
        return "backbone", "broken"
    trial.suggest_float("x", 0, 1)
    return None


def run(*parts):
    storage = optuna.storages.InMemoryStorage()
    for trials in parts:  # each part creates everything again, as a new process would
        study = optuna.create_study(
            study_name="s", storage=storage, sampler=NumberedSampler(3), direction="maximize", load_if_exists=True
        )
        for _ in range(trials):
            trial = study.ask()
            fault = fails(trial)
            if fault:
                trial.set_user_attr(BLAMED, fault)
                study.tell(trial, state=TrialState.FAIL)
            else:
                study.tell(trial, trial.params["x"])
    return study.trials


def test_a_part_that_always_fails_is_drawn_three_times():
    trials = run(60)
    drawn = Counter(trial.params["strategy"] for trial in trials)
    assert drawn["bad"] == 3
    assert sum(drawn.values()) == 60 and len(drawn) == 5
    assert Counter(trial.params.get("backbone") for trial in trials)["broken"] == 3
    assert {kind: values for kind, values in out_of(trials).items() if values} == {
        "strategy": {"bad"},
        "backbone": {"broken"},
    }


def test_a_resumed_search_draws_what_an_uninterrupted_one_would():
    assert [trial.params for trial in run(40)] == [trial.params for trial in run(4, 9, 27)]


def trial_of(number, state, blame=None, **params):
    made = optuna.create_study().ask()
    for name, value in params.items():
        made.suggest_categorical(name, [value])
    if blame:
        made.set_user_attr(BLAMED, blame)
    made.study.tell(made, 0.0 if state == TrialState.COMPLETE else None, state=state)
    return made.study.trials[0]


def test_one_success_is_enough_to_stay():
    failed = [trial_of(0, TrialState.FAIL, ("strategy", "s"), strategy="s") for _ in range(5)]
    assert out_of(failed)["strategy"] == {"s"}
    assert not out_of(failed[:2])["strategy"]
    for state in (TrialState.COMPLETE, TrialState.PRUNED):
        assert not out_of([*failed, trial_of(0, state, strategy="s")])["strategy"]


@pytest.mark.parametrize(
    ("error", "whom"),
    [
        (PluginError("", blamed="Strategy 's'"), ("strategy", "s")),
        (PluginError("", blamed="Augmentation 'g'"), ("augmentation", "g")),
        (PluginError("", blamed="Backbone 'f:b'"), ("backbone", "f:b")),
        (PluginError("", blamed="Backbone 'f:b@random'"), ("backbone", "f:b")),
        (PluginError("", blamed="Backbone 'f:other'"), ("strategy", "s")),
        (PluginError("Unknown augmentation 'g'."), ("strategy", "s")),
        (PluginError("", blamed="Method 'm'"), ("strategy", "s")),
        (PluginError(""), ("strategy", "s")),
        (RuntimeError(), ("strategy", "s")),
    ],
)
def test_the_part_that_an_error_names_is_blamed_or_else_the_strategy(error, whom):
    study = optuna.create_study()

    def ask():
        trial = study.ask()
        for name, value in (("strategy", "s"), ("backbone", "f:b"), ("augmentation", "g")):
            trial.suggest_categorical(name, [value])
        return trial

    assert blamed(ask(), error) == whom
    for _ in range(3):
        trial = ask()
        trial.set_user_attr(BLAMED, whom)
        study.tell(trial, state=TrialState.FAIL)
    assert blamed(ask(), error) == ("strategy", "s")  # the removed part was drawn nevertheless


class Raises:
    first_guess = {}

    def suggest(self, trial, context):
        self.fail(trial)

    def fail(self, trial):
        raise ZeroDivisionError("never today")


class Prunes(Raises):
    def fail(self, trial):
        raise optuna.TrialPruned


class Hangs(Raises):
    def fail(self, trial):
        time.sleep(30)


class Eats(Raises):
    def fail(self, trial):
        raise MemoryError


class Borrows(Raises):
    def fail(self, trial):
        trial.suggest_categorical("cut", ["first", "last"])


class Forges(LinearProbe):
    """Suggests a plan that was never validated."""

    first_guess = {}

    def suggest(self, trial, context):
        return super().suggest(trial, context).model_copy(update={"phases": "none"})


class Strays(LinearProbe):
    """Suggests a plan for a backbone that is not in the study."""

    first_guess = {}

    def suggest(self, trial, context):
        return super().suggest(trial, context).model_copy(update={"backbone": "nowhere:net"})


BROKEN = {
    "raises": Raises,
    "prunes": Prunes,
    "hangs": Hangs,
    "eats": Eats,
    "borrows": Borrows,
    "forges": Forges,
    "strays": Strays,
}


class Tired(nn.ReLU):
    """Fails on images other than the ones of the first check."""

    seen = 0

    def forward(self, value):
        if type(value) is torch.Tensor:
            self.seen += len(value)
            if self.seen > 40:
                raise RuntimeError("tired")
        return super().forward(value)


class Tires(TinyFamily):
    more = {"net": 0}

    def build(self, name, weights):
        network = super().build(name, weights)
        network[2][1] = Tired()
        return network


class Plugin:
    @hookimpl
    def register_backbones(self, register):
        register("tires", Tires, summary="For a test")

    @hookimpl
    def register_strategies(self, register):
        for name, strategy in BROKEN.items():
            register(name, strategy, summary="For a test")


class Recorder(Silent):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def search(host, data, watcher=None, backbones=("tiny:net",), **settings):
    host.add(Plugin(), "broken-plugin")
    quick = {"backbones": backbones, "reruns": 0, "refit": False, "compare": False, "device": "cpu"}
    return Search(Settings(data=data, **quick, **settings), host, watcher or Recorder(), time.monotonic())


def test_a_search_continues_without_parts_that_always_fail_with_a_note(host, stripes, monkeypatch):
    monkeypatch.setattr(patience, "ANSWER", 0.2)
    watcher = Recorder()
    made = search(host, stripes, watcher, strategies=("linear-probe", *BROKEN), trials=18)
    result = made.run()
    records = list(made.folder.log.records())
    for name, reason in {
        "raises": "ZeroDivisionError: never today",
        "prunes": "fails: TrialPruned",
        "hangs": "TooLong: it did not return within 0 s",
        "eats": "fails: MemoryError",
        "borrows": "asks for 'cut', which all strategies share (ask the context for it): call it",
        "strays": "suggested a plan that cannot be trained: Unknown backbone of the study 'nowhere:net'.",
        "forges": "suggested a plan that cannot be written as JSON: PydanticSerializationError: ",
    }.items():
        own = [record for record in records if record.params["strategy"] == name]
        assert 1 <= len(own) <= 3
        assert {record.state for record in own} == {"failed"} and all(record.by_plugin for record in own)
        assert all(record.reason.startswith(f"Strategy '{name}' of plugin 'broken-plugin'") for record in own)
        assert not [record.reason for record in own if reason not in record.reason]
        said = f"Strategy '{name}' is not tried any more: it failed in 3 trials and succeeded in none."
        assert watcher.notes.count(said) == (len(own) == 3)
    assert any("is not tried any more" in note for note in watcher.notes)
    assert result.best.strategy == "linear-probe"


def test_a_backbone_that_fails_on_some_images_does_not_end_the_search_nor_the_next_one(host, stripes):
    for trials in (2, 10):
        watcher = Recorder()
        made = search(host, stripes, watcher, ("tiny:net", "tires:*"), strategies=("linear-probe",), trials=trials)
        made.run()
        assert any(note.startswith("Warning: Backbone 'tires:net' of plugin 'broken-plugin'") for note in watcher.notes)
    failed = [record for record in made.folder.log.records() if record.state == "failed"]
    assert {record.params["backbone"] for record in failed} == {"tires:net"}
    assert len(failed) == 3
    assert "Backbone 'tires:net' is not tried any more: it failed in 3 trials and succeeded in none." in watcher.notes


def test_a_search_in_which_every_part_fails_ends_with_the_reason(host, stripes):
    made = search(host, stripes, strategies=("raises", "eats"), trials=40)
    with pytest.raises(StudyError, match=r"No strategy of study 'stripes' is left: .*ZeroDivisionError: never today"):
        made.run()
    assert len(list(made.folder.log.records())) == 6
