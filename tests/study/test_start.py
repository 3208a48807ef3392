"""A search that starts from the weights of an earlier one."""

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from autotl import ModelCard, WeightsSource, hookimpl, load_weights
from autotl.backbones.catalogue import Catalogue
from autotl.errors import StudyError, WeightsError
from autotl.export import bundle, contents
from autotl.host import Host
from autotl.study.search import Search
from autotl.study.settings import Settings
from autotl.study.watch import Silent
from autotl.testing.lab import TinyFamily, TinyNetwork, write_stripes
from autotl.tracking.folder import StudyFolder

NAME = "stored:net"


class Stored(TinyFamily):
    """A tiny network with a file of weights, which the test names."""

    def names(self):
        return ["net"]

    def card(self, name):
        url = WeightsSource(url="https://unreachable.invalid/net.pth")
        return ModelCard(super().card(name).input, url, "drawings of dots", "CC0")

    def build(self, name, weights):
        network = super().build(name, None)
        if weights is not None:
            load_weights(network, weights)
        return network


class StoredPlugin:
    @hookimpl
    def register_backbones(self, register):
        register("stored", Stored, summary="Networks with weights")


def stored_host():
    made = Host()
    made.add(StoredPlugin(), "stored-plugin")
    return made


class Notes(Silent):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def search(place, watcher=None, **options):
    values = {
        "data": place / "stripes",
        "home": place / "studies",
        "cache_dir": place / "cache",
        "trials": 2,
        "strategies": ("linear-probe",),
        "device": "cpu",
        "reruns": 0,
        "compare": False,
        "mlflow": False,
        **options,
    }
    return Search(Settings.of(values), stored_host(), watcher or Silent(), time.monotonic())


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A study `first`, whose network started from a file of weights and was cut before its last stage."""
    folder = tmp_path_factory.mktemp("place")
    write_stripes(folder / "stripes")
    torch.manual_seed(7)
    torch.save({"model": TinyNetwork().state_dict()}, folder / "own.pth")
    first = search(folder, study="first", backbones=(NAME,), weights={NAME: folder / "own.pth"}, trials=1)
    first.run()
    shorten(first.folder.bundle)
    return folder


def shorten(folder: Path) -> None:
    """Change a bundle to one that was cut after the second stage, with weights as after training."""
    files = {name: (folder / name).read_bytes() for name in contents.CARRIED}
    plan = json.loads(files["plan.json"])
    plan["cut"] = "1.2"
    files["plan.json"] = json.dumps(plan).encode()
    torch.manual_seed(1)
    kept = {key: value + 0.01 for key, value in load_file(folder / bundle.WEIGHTS).items() if key[:11] != "backbone.2."}
    save_file(kept | {"head.weight": torch.rand(3, 12)}, folder / bundle.WEIGHTS)
    files[bundle.WEIGHTS] = (folder / bundle.WEIGHTS).read_bytes()
    contents.write_files(folder, files)


def test_the_winner_of_a_study_is_the_backbone_of_the_next_up_to_its_cut(place, tmp_path):
    watcher = Notes()
    made = search(place, watcher, study="second", from_study="first")
    assert made.choices.pool.backbones == (NAME,)
    result = made.run()
    first = StudyFolder(place / "studies" / "first")
    trained = load_file(first.bundle / bundle.WEIGHTS)

    assert made.catalogue.info(NAME).names == ("0.2", "1.2")
    assert result.final.cut in ("0.2", "1.2")
    (before,) = first.definition.backbones.values()
    assert result.final.weights == made.folder.definition.backbones[NAME] != before
    assert any("they end with 1.2, and so does the backbone" in note for note in watcher.notes)
    stages = made.catalogue.build(made.catalogue.network(NAME, 0))
    assert torch.equal(stages.state_dict()["1.0.weight"], trained["backbone.1.0.weight"])

    again = search(place, study="second", from_study="first", trials=3)
    assert sum(again.run().trials.values()) == 3
    command = json.loads(again.folder.searches.read_text().splitlines()[0])["command"]
    assert f"--weights {NAME}={first.bundle}" in command

    # Its own bundle is complete, with the terms of the weights that it started from.
    moved = tmp_path / "moved"
    shutil.copytree(again.folder.bundle, moved)
    loaded = bundle.load(moved, Catalogue(stored_host(), tmp_path / "elsewhere"))
    assert "another model that autotl trained" in loaded.license
    for once in (
        "CC0",
        "drawings of dots",
        "a weights file that the user gave",
        "Terms of the weights in this folder",
    ):
        assert loaded.license.count(once) == 1


def test_a_bundle_is_given_as_weights_alone_or_with_other_backbones(place):
    first = place / "studies" / "first" / "bundle"
    made = search(place, study="third", backbones=("reference:edges",), from_study="first")
    assert made.choices.pool.backbones == ("reference:edges", NAME)
    given = search(place, study="fourth", backbones=(NAME,), weights={NAME: first})
    assert given.catalogue.weights(NAME, 0) == made.catalogue.weights(NAME, 0)


def test_a_network_is_not_tested_on_images_that_another_study_has_trained_it_on(place):
    first = place / "studies" / "first" / "bundle"
    other = {"backbones": (NAME,), "weights": {NAME: first}, "trials": 1, "seed": 5}
    assert search(place, study="frozen", **other).run().test  # its linear probe trained no stage

    plan = json.loads((first / "plan.json").read_text())
    files = {name: (first / name).read_bytes() for name in contents.CARRIED}
    training = {"epochs": 1, "batch_size": 8, "head_lr": 0.1, "stage_lr": {"0.2": 0.1}}
    trained = {**plan, "phases": [{**plan["phases"][0], "training": training}]}
    contents.write_files(first, {**files, "plan.json": json.dumps(trained).encode()})
    member = place / "studies" / "first" / "members" / "one"
    shutil.copytree(first, member)
    for trained_there in (first, member):
        with pytest.raises(
            StudyError, match=r"\d of the \d+ test images .* train the network of study 'first' .* too high"
        ):
            search(place, study="tested", **(other | {"weights": {NAME: trained_there}})).run()
    shutil.rmtree(member.parent)
    assert search(place, study="the same split", **(other | {"seed": 0})).run().test
    contents.write_files(first, files)


def test_what_a_search_cannot_start_from_is_an_error_at_the_start(place, tmp_path):
    first = place / "studies" / "first" / "bundle"
    with pytest.raises(StudyError, match="Unknown study 'frist'. Did you mean 'first'"):
        search(place, study="new", from_study="frist")
    with pytest.raises(StudyError, match="cannot start from itself"):
        search(place, study="first", from_study="first")
    with pytest.raises(StudyError, match=f"both give weights for '{NAME}'"):
        search(place, study="new", from_study="first", weights={NAME: place / "own.pth"})
    search(place, study="edges", backbones=("reference:edges",), trials=1).run()
    with pytest.raises(StudyError, match="was won by 'reference:edges', which has no weights to start from"):
        search(place, study="new", from_study="edges")
    with StudyFolder(first.parent).lock(), pytest.raises(StudyError, match="is being searched"):
        search(place, study="new", from_study="first")
    with pytest.raises(WeightsError, match=f"has weights of '{NAME}', not of 'stored:other'"):
        search(place, study="new", backbones=(NAME,), weights={"stored:other": first})
    with pytest.raises(StudyError, match="is not a bundle"):
        search(place, study="new", backbones=(NAME,), weights={NAME: place / "stripes"})
    torch.save({"0.0.weight": torch.zeros(8, 3, 3, 3)}, tmp_path / "part.pth")
    with pytest.raises(WeightsError, match="missing: "):
        search(place, study="new", backbones=(NAME,), weights={NAME: tmp_path / "part.pth"})
    assert not (place / "studies" / "new").exists()
    (first.parent / "result.json").rename(first.parent / "kept.json")
    with pytest.raises(StudyError, match="has no winner yet"):
        search(place, study="new", from_study="first")
    (first.parent / "kept.json").rename(first.parent / "result.json")
