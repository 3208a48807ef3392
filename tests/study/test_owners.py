"""A study depends on the plugins that its trials used, and on no others."""

import shutil
import time

import pytest

from autotl import hookimpl
from autotl.builtin.linear_probe import LinearProbe
from autotl.errors import StudyError
from autotl.host import Host
from autotl.registry import Owner
from autotl.study.joining import Joining
from autotl.study.search import Search
from autotl.study.settings import Settings
from autotl.study.storage import SharedStudy
from autotl.study.watch import Silent
from autotl.testing.lab import TinyFamily, TinyPlugin, write_stripes


class Listening(Silent):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


class Extra:
    """A strategy, a family and an augmentation that a search does not use first."""

    @hookimpl
    def register_strategies(self, register):
        register("extra", LinearProbe, summary="a strategy")

    @hookimpl
    def register_backbones(self, register):
        class Family(TinyFamily):
            more = {"large": 9}

        register("other", Family, summary="a family")


def host(extra=None, tiny="1.0"):
    made = Host()
    made._add(TinyPlugin(), Owner("tiny", "autotl-tiny", tiny, "tiny"))
    if extra:
        made._add(Extra(), Owner("extra", "autotl-extra", extra, "extra"))
    assert not made.problems
    return made


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """A study of one trial, a linear probe on the cheapest backbone, which has one plugin more."""
    place = tmp_path_factory.mktemp("owners")
    write_stripes(place / "stripes")
    return search(place, host("1.0"), trials=1).run() and place


def search(place, host, **settings):
    values = {
        "data": place / "stripes",
        "home": place / "home",
        "cache_dir": place / "cache",
        "strategies": (),
        "augmentations": ("none",),
        "device": "cpu",
        "reruns": 0,
        "compare": False,
        "refit": False,
        "mlflow": False,
        **settings,
    }
    if not (place / "home").exists():
        values |= {"strategies": ("linear-probe", "extra"), "backbones": ("tiny:net", "other:large")}
    return Search(Settings(**values), host, Listening(), began=time.monotonic())


@pytest.fixture
def place(started, tmp_path):
    shutil.copytree(started, tmp_path / "copy")
    return tmp_path / "copy"


def test_a_study_resumes_without_a_plugin_that_no_trial_has_used_and_with_it_later(place):
    made = search(place, host(), trials=8)
    without, state = (
        "Warning: the search continues without",
        "of autotl-extra 1.0, which is not installed or is broken.",
    )
    assert made.watcher.notes == [
        f"{without} {what} {state}" for what in ("backbone family 'other'", "strategy 'extra'")
    ]
    result = made.run()
    assert result.trials["complete"] == 8  # missing parts are not drawn
    records = list(made.folder.log.records())
    assert {record.params["strategy"] for record in records} == {"linear-probe"}
    assert {record.plan.backbone for record in records} == {"tiny:net"}
    assert list(made.folder.definition.strategies) == ["linear-probe", "extra"]

    shared = SharedStudy.join(made.folder.storage, "stripes")
    shared.open(9)
    joined = {"data": None, "device": "cpu", "cache_dir": place / "cache", "weights": {}}
    assert Joining(shared, host(), Silent(), **joined).run() == 1

    again = search(place, host("1.0"), trials=20)
    again.run()
    assert again.watcher.notes == []
    records = list(again.folder.log.records())
    assert {record.params["strategy"] for record in records} == {"linear-probe", "extra"}


def test_a_plugin_that_no_trial_has_used_may_be_updated(place):
    made = search(place, host("2.0"), trials=2)
    assert (
        "The study was started with strategy 'extra' of autotl-extra 1.0, but autotl-extra 2.0 is installed. "
        "No trial has used it yet."
    ) in made.watcher.notes
    made.run()
    assert made.folder.definition.owners["strategies extra"] == {"autotl-extra": "2.0"}


def test_a_plugin_that_a_trial_has_used_must_have_its_version(place):
    with pytest.raises(StudyError) as error:
        search(place, host("1.0", tiny="2.0"), trials=2)
    assert str(error.value) == (
        "The study uses backbone family 'tiny' of autotl-tiny 1.0, but autotl-tiny 2.0 is installed. Install the "
        "study's version (pip install autotl-tiny==1.0), run autotl doctor, or start another study: --study NAME"
    )


def test_what_the_user_names_must_be_installed(place):
    with pytest.raises(StudyError, match="uses strategy 'extra' of autotl-extra 1.0, which is not installed"):
        search(place, host(), trials=2, strategies=("linear-probe", "extra"))
    with pytest.raises(StudyError, match="uses backbone family 'other' of autotl-extra 1.0, which is not installed"):
        search(place, host(), trials=2, backbones=("tiny:net", "other:large"))
    assert search(place, host(), trials=2, backbones=("tiny:net",), strategies=("linear-probe",)).run()


def test_a_library_that_no_plan_needs_may_be_updated_and_another_one_is_named(place):
    made = search(place, host("1.0"), trials=2)
    definition = made.folder.definition
    made.folder.define(definition.model_copy(update={"versions": {**definition.versions, "timm": "0.1"}}))
    made.run()
    definition = made.folder.definition
    made.folder.define(definition.model_copy(update={"versions": {**definition.versions, "torch": "0.1"}}))
    with pytest.raises(
        StudyError, match=r"was started with other settings: versions torch 0\.1 → [\d.+a-z]+\. Use the same"
    ):
        search(place, host("1.0"), trials=3).run()
