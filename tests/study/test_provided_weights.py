"""A study whose weights a plugin provided: it resumes without the plugin while the cache has them."""

import shutil
import time

import pytest
import torch
from click.testing import CliRunner

from autotl import Input, ModelCard, ProvidedWeights, WeightsSource, hookimpl, load_weights
from autotl.cli.main import main
from autotl.errors import PluginError, StudyError
from autotl.host import Host
from autotl.registry import Owner
from autotl.study import pool
from autotl.study.joining import Joining
from autotl.study.search import Search
from autotl.study.settings import Settings
from autotl.study.storage import SharedStudy
from autotl.study.watch import Silent
from autotl.testing.lab import TinyFamily, TinyNetwork, write_stripes

NAME = "far:net"


class Far(TinyFamily):
    """Tiny networks whose weights are on a server that is out of reach."""

    def card(self, name):
        if name not in self.more:
            raise KeyError(name)
        preparation = Input(size=32, resize=32, interpolation="bilinear", mean=(0.5,) * 3, std=(0.25,) * 3)
        source = WeightsSource(url=f"https://unreachable.invalid/{name}.pth")
        return ModelCard(input=preparation, weights=source, source="stripes", license="CC0")

    def build(self, name, weights):
        network = TinyNetwork(self.more[name])
        if weights is not None:
            load_weights(network, weights)
        return network


class Families:
    @hookimpl
    def register_backbones(self, register):
        register("far", Far, summary="For a test")


class Gives:
    """Provides the weights of `far:net` from a file."""

    def __init__(self, file, **more):
        self.file, self.more = file, more

    @hookimpl
    def register_weights(self, register):
        register("gives", lambda: self, summary="For a test")

    def names(self):
        return [NAME]

    def source(self, name):
        return ProvidedWeights(file=self.file, license="MIT, by A. Friend", convert=dict, **self.more)


class Listening(Silent):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def host(place, version=None, **more):
    made = Host()
    made._add(Families(), Owner("far", "autotl-far", "1.0", "far"))
    if version:
        made._add(Gives(place / "published.pth", **more), Owner("gives", "autotl-gives", version, "gives"))
    assert not made.problems
    return made


def search(place, host, **settings):
    values = {
        "data": place / "stripes",
        "home": place / "home",
        "cache_dir": place / "cache",
        "backbones": (NAME,),
        "strategies": ("linear-probe",),
        "augmentations": ("none",),
        "device": "cpu",
        "reruns": 0,
        "compare": False,
        "refit": False,
        "mlflow": False,
        **settings,
    }
    return Search(Settings(**values), host, Listening(), began=time.monotonic())


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """A study of one trial."""
    place = tmp_path_factory.mktemp("provided")
    write_stripes(place / "stripes")
    torch.manual_seed(1)
    torch.save(TinyNetwork().state_dict(), place / "published.pth")
    search(place, host(place, "1.0"), trials=1).run()
    return place


@pytest.fixture
def place(started, tmp_path):
    shutil.copytree(started, tmp_path / "copy")
    return tmp_path / "copy"


def lose(place):
    shutil.rmtree(place / "cache" / "weights")


def test_the_study_and_the_bundle_record_the_provider(place):
    made = search(place, host(place, "1.0"), trials=1)
    definition = made.folder.definition
    assert definition.providers == {NAME: {"autotl-gives": "1.0"}}
    terms = (made.folder.bundle / "LICENSE").read_text()
    assert "Pretrained on: stripes\nTerms: CC0\n\nProvided by: autotl-gives 1.0, from a file with SHA-256 " in terms
    assert "\nIts terms: MIT, by A. Friend\n" in terms
    (plan,) = (record.plan for record in made.folder.log.records())
    assert plan.weights == definition.backbones[NAME]
    assert "autotl-gives" not in plan.requires  # the hash of the weights says all that numbers depend on


def test_it_resumes_without_the_plugin_while_the_cache_has_the_file(place):
    made = search(place, host(place), trials=3)
    assert made.run().trials["complete"] == 3
    assert not made.watcher.notes
    assert made.folder.definition.providers == {NAME: {"autotl-gives": "1.0"}}
    assert len({record.plan.weights for record in made.folder.log.records()}) == 1


def test_it_resumes_with_another_version_of_the_plugin_that_gives_the_same_weights(place):
    made = search(place, host(place, "2.0"), trials=2)
    assert made.run().trials["complete"] == 2
    assert made.folder.definition.providers == {NAME: {"autotl-gives": "2.0"}}


def test_other_weights_of_the_plugin_are_not_those_of_the_study(place):
    torch.save({name: value + 1 for name, value in TinyNetwork().state_dict().items()}, place / "published.pth")
    with pytest.raises(StudyError, match=rf"started with other settings: backbones {NAME} sha256:\w+ → sha256:\w+"):
        search(place, host(place, "2.0"), trials=2).run()


def test_without_both_one_line_says_what_to_install(place):
    joined = search(place, host(place, "1.0"), trials=2)
    joined.run()
    lose(place)
    says = (
        f"The study uses weights of '{NAME}' that autotl-gives 1.0 provided, which is not installed or is broken, and "
        "the cache no longer has them. Install the study's version (pip install autotl-gives==1.0), run autotl doctor, "
        f"use --weights {NAME}=FILE, or start another study: --study NAME"
    )
    with pytest.raises(StudyError) as error:
        search(place, host(place), trials=2)
    assert str(error.value) == says
    shared = SharedStudy.join(joined.folder.storage, "stripes")
    more = {"data": None, "device": "cpu", "cache_dir": place / "cache"}
    with pytest.raises(StudyError, match="that autotl-gives 1.0 provided, which is not installed"):
        Joining(shared, host(place), Silent(), weights={}, **more)
    assert search(place, host(place, "1.0"), trials=2).run()

    kept = joined.catalogue.file(NAME).path.rename(place / "kept.safetensors")
    lose(place)
    assert Joining(shared, host(place), Silent(), weights={NAME: kept}, **more)
    assert search(place, host(place), trials=3, weights={NAME: kept}).run().trials["complete"] == 3


def test_a_damaged_file_of_a_plugin_does_not_end_a_search_that_has_other_backbones(place, monkeypatch):
    monkeypatch.setitem(pool.POOLS, "small", ("reference:edges", NAME))
    broken = host(place, "1.0", sha256="0" * 64)
    named = {"study": "other", "trials": 1, "cache_dir": place / "empty", "pool": "small"}
    made = search(place, broken, backbones=(), **named)
    assert made.run().trials["complete"] == 1
    assert made.folder.definition.backbones.keys() == {"reference:edges"}
    (own,) = (note for note in made.watcher.notes if "Provider of weights" in note)
    assert own.startswith(
        "Warning: Provider of weights 'gives' of plugin 'gives' (autotl-gives 1.0, entry point gives) "
    )
    assert "published.pth is damaged or not the right file" in own
    assert f"Warning: The weights of '{NAME}' are not on this machine" in "\n".join(made.watcher.notes)
    with pytest.raises(PluginError, match="damaged or not the right file: .* Fix it, or search without --strict-plug"):
        search(place, broken, backbones=(), strict_plugins=True, **{**named, "study": "strict"}).run()


@pytest.fixture
def command(place, monkeypatch):
    """Runs a command where the plugin is installed."""

    def run(*words, code=0, **more):
        made = host(place, "1.0", **more)
        monkeypatch.setattr(Host, "from_environment", lambda plugins=(): made)
        done = CliRunner().invoke(main, [*map(str, words)])
        assert done.exit_code == code, done.output
        return done.output

    return run


def test_the_commands_say_who_provides_what(command):
    (line,) = (line for line in command("weights", "list").splitlines() if line.startswith(NAME))
    assert line.split(maxsplit=1)[1] == "provided by autotl-gives 1.0"
    assert "(autotl-gives 1.0)" in command("plugins", "weights")
    assert "provided by autotl-gives 1.0" in command("plugins", "backbones", NAME)
    doctor = command("doctor")
    assert f"{NAME}" in doctor and "provided by autotl-gives 1.0" in doctor
    path = command("weights", "fetch", NAME).split()[-1]
    (line,) = (line for line in command("weights", "list").splitlines() if line.startswith(NAME))
    assert path in line and line.endswith("(cache, from autotl-gives 1.0)")


def test_the_commands_name_a_plugin_that_fails(command, place):
    told = command("weights", "fetch", NAME, code=2, sha256="0" * 64).splitlines()
    assert told[0].startswith("Warning: Provider of weights 'gives' of plugin 'gives' (autotl-gives 1.0, ")
    assert told[1].startswith("Error: The weights of 'far:net' are not on this machine")
    doctor = command("doctor", code=1, sha256="0" * 64)
    assert "✗ plugin gives" in doctor and "published.pth is damaged or not the right file" in doctor
    (place / "published.pth").unlink()
    assert "published.pth does not exist" in command("doctor", code=1)


def test_weights_are_listed_although_a_provider_knows_a_family_that_is_missing(command, monkeypatch):
    monkeypatch.setattr(Gives, "names", lambda self: ["gone:net", NAME])
    listed = command("weights", "list")
    assert "gone:net" not in listed and NAME in listed
