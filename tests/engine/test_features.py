import importlib
import os
import sys

import numpy as np
import pytest
import tiny
import torch

from autotl.backbones import sources
from autotl.backbones.catalogue import Catalogue
from autotl.backbones.stages import Stages
from autotl.contracts import StageInfo
from autotl.engine import features
from autotl.engine.features import FeatureStore, normalise, pool
from autotl.engine.fit import fit, on_all_images
from autotl.engine.heads import logistic_path
from autotl.errors import AutotlError, PluginError
from autotl.host import Host
from autotl.plan import Component, Head, Input, Network, Phase, Training

WEIGHTS = "none"
TRAINING = Training(epochs=1, batch_size=8, head_lr=0.1)


@pytest.fixture
def bench(host, stripes, tmp_path):
    """The striped images with stores, and the backbone `tiny:net`."""
    return tiny.make_bench(host, stripes, tmp_path / "cache", backbones=("tiny:net", "reference:pixels"))


def network(bench, weights=WEIGHTS):
    """The tiny network; `random:<seed>` is the one with other weights."""
    name = "tiny:net@random" if weights.startswith("random") else "tiny:net"
    return Network(name, weights, bench.catalogue.card(name).input)


def plan(bench, *, backbone="tiny:net", cut="1.2", phases=(), **changes):
    """A linear probe, unless it has other phases."""
    phases = phases or (Phase(method="logistic", frozen=cut, options={"penalty": [1.0, 0.01, 1e-4]}),)
    return tiny.plan(bench, *phases, backbone=backbone, cut=cut, **changes)


def test_one_pass_serves_every_cut_every_pooling_and_every_later_store(bench, tmp_path):
    store, shas = bench.features, bench.shas("train", "early_stop", "val", "test")
    for stage in store.catalogue.info("tiny:net").stages:
        for pooling in stage.poolings:
            store.read(network(bench), stage.name, pooling, shas)
    assert store.computed == len(shas) == 90

    later = FeatureStore(tmp_path / "cache", store.catalogue, store.pixels, "cpu")
    again = later.read(network(bench), "1.2", "max", shas)
    assert later.computed == 0
    assert torch.equal(again, store.read(network(bench), "1.2", "max", shas))


def test_other_weights_are_other_features(bench):
    shas = bench.shas("val")
    first = bench.features.read(network(bench, "random:1"), "1.2", "avg", shas)
    second = bench.features.read(network(bench, "random:2"), "1.2", "avg", shas)
    again = bench.features.read(network(bench, "random:1"), "1.2", "avg", shas)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert bench.features.computed == 2 * len(shas)


def test_stored_features_are_those_of_the_network(bench):
    store, shas = bench.features, bench.shas("val")
    info = store.catalogue.info("tiny:net")
    stages = store.catalogue.build(network(bench)).eval()
    images = torch.from_numpy(store.pixels.rows(info.input).read(shas))
    with torch.no_grad():
        value = stages(normalise(images, info.input), to="1.2")
    expected = value.mean((2, 3))
    torch.testing.assert_close(store.read(network(bench), "1.2", "avg", shas), expected, atol=1e-5, rtol=1e-5)


def test_the_features_of_an_image_do_not_depend_on_its_batch(bench, host, tmp_path):
    shas = bench.shas("train")
    whole = bench.features.read(network(bench), "2.1", "avg", shas)
    other = FeatureStore(tmp_path / "elsewhere", Catalogue(host, tmp_path / "cache"), bench.features.pixels, "cpu")
    for sha in reversed(shas[:7]):  # one at a time, in another order
        other.fill(network(bench), [sha])
    assert torch.equal(other.read(network(bench), "2.1", "avg", shas[:7]), whole[:7])


def test_damaged_features_are_computed_again_with_one_note(bench):
    store, shas = bench.features, bench.shas("train")
    notes = []
    store.pixels.note = notes.append
    whole = store.read(network(bench), "1.2", "avg", shas)
    file = store._rows(network(bench)).folder / "rows.bin"
    data = np.fromfile(file, np.uint8)
    data[[3, len(data) // 2, -1]] ^= 0x40
    data.tofile(file)
    later = FeatureStore(store.cache_dir, store.catalogue, store.pixels, "cpu")
    assert torch.equal(later.read(network(bench), "1.2", "avg", shas), whole)
    assert later.computed == 3
    assert len(set(notes)) == 1 and str(file.parent) in notes[0]
    again = FeatureStore(store.cache_dir, store.catalogue, store.pixels, "cpu")
    assert torch.equal(again.read(network(bench), "2.1", "max", shas), store.read(network(bench), "2.1", "max", shas))
    assert again.computed == 0


PLUGIN = """
from torch import nn

from autotl import hookimpl
from autotl.testing.lab import TinyFamily, TinyNetwork


class Block(nn.Module):
    def __init__(self, inside):
        super().__init__()
        self.inside = inside

    def forward(self, value):
        return self.inside(value)


class Network(TinyNetwork):
    def forward(self, images):
        return super().forward(1 * images)


class Edited(TinyFamily):
    def build(self, name, weights):
        network = Network()
        network[1] = Block(network[1])
        return network


@hookimpl
def register_backbones(register):
    register("edited", Edited, summary="A plugin that is being worked on")
"""
EDITS = {
    "a leaf module's forward": ("self.inside(value)", "-self.inside(value)"),
    "what is traced": ("1 * images", "2 * images"),
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("hidden", [False, True], ids=["seen in the source", "not seen in the source"])
def test_an_edited_plugin_gives_new_features(bench, tmp_path, monkeypatch, edit, hidden):
    monkeypatch.syspath_prepend(tmp_path)
    if hidden:  # as if the change were in a library that the card does not name
        monkeypatch.setattr(sources, "hash_of", lambda packages: "")

    def features():
        monkeypatch.delitem(sys.modules, "edited_plugin", raising=False)
        importlib.invalidate_caches()
        host = Host()
        host.add(importlib.import_module("edited_plugin"), "edited")
        made = FeatureStore(tmp_path / "cache", Catalogue(host, tmp_path / "cache"), bench.features.pixels, "cpu")
        return made.read(made.catalogue.network("edited:net", 0), "2.1", "avg", shas), made

    notes, shas = [], bench.shas("train")
    bench.features.pixels.note = notes.append
    file = tmp_path / "edited_plugin.py"
    file.write_text(PLUGIN)
    before, _ = features()
    same, store = features()
    assert torch.equal(same, before) and store.computed == 0
    file.write_text(PLUGIN.replace(*EDITS[edit]))
    os.utime(file, (1, 1))  # so that no compiled file of the same second is used
    after, store = features()
    assert store.computed == len(shas)
    assert not torch.allclose(after, before)
    assert bool(notes) == (hidden and edit == "a leaf module's forward")  # noticed by comparing values only


@pytest.mark.parametrize("fault", ["fails on images", "not finite"])
def test_a_backbone_that_fails_is_named(bench, monkeypatch, fault):
    def broken(stages, images):
        if fault == "fails on images":
            raise ZeroDivisionError
        for boundary in stages.boundaries:
            yield boundary, torch.full((len(images), *boundary.shape), torch.nan)

    bench.features.catalogue.info("tiny:net")  # traced while it still works
    monkeypatch.setattr(Stages, "walk", broken)
    with pytest.raises(PluginError, match=f"'tiny:net'.*{fault}"):
        bench.features.fill(network(bench), bench.shas("val"))


def test_normalise_prepares_as_the_backbone_was_trained():
    preparation = Input(size=8, resize=8, interpolation="bilinear", mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0))
    images = torch.full((2, 3, 8, 8), 51, dtype=torch.uint8)
    expected = torch.tensor([(0.2 - 0.1) / 0.5, 0.0, (0.2 - 0.3) / 2.0])
    torch.testing.assert_close(normalise(images, preparation), expected.view(1, 3, 1, 1).expand(2, 3, 8, 8))


@pytest.mark.parametrize(
    ("layout", "shape", "prefix"), [("NCHW", (5, 4, 4), 0), ("NHWC", (4, 4, 5), 0), ("tokens", (18, 5), 2)]
)
def test_poolings_use_image_tokens_and_not_prefix_tokens(layout, shape, prefix):
    stage = StageInfo(name="s", parameters=0, flops=0, shape=shape, layout=layout, prefix_tokens=prefix)
    value = torch.randn(3, *shape)
    places = {"NCHW": value.flatten(2), "NHWC": value.flatten(1, 2).mT, "tokens": value[:, prefix:].mT}[layout]
    torch.testing.assert_close(pool(value, stage, "avg"), places.mean(2))
    torch.testing.assert_close(pool(value, stage, "max"), places.amax(2))
    assert stage.channels == 5
    assert ("token" in stage.poolings) == bool(prefix)
    if prefix:
        assert torch.equal(pool(value, stage, "token"), value[:, 0])


def test_a_plan_gives_the_same_numbers_twice_and_beats_chance(bench):
    first, second = fit(plan(bench), bench), fit(plan(bench), bench)
    assert torch.equal(first.model.head.weight, second.model.head.weight)
    first.metrics.update(tiny.TIMES), second.metrics.update(tiny.TIMES)
    assert first.metrics == second.metrics
    assert first.metrics["val.accuracy"] > 0.6  # three classes
    assert np.allclose(first.logits("test"), second.logits("test"))


def test_the_refit_trains_on_all_images_except_the_test_images(bench):
    first = fit(plan(bench), bench)
    everything = on_all_images(first.plan, first.metrics, bench)
    assert everything.train_on == ("train", "early_stop", "val")
    assert everything.phases[0].options["penalty"] == [first.metrics["phase1.penalty"]]
    last = fit(everything, bench)
    shas, labels = bench.shas("train", "early_stop", "val"), bench.labels("train", "early_stop", "val")
    features = bench.features.read(network(bench), "1.2", "avg", shas)
    (expected,) = logistic_path(features, labels, 3, [first.metrics["phase1.penalty"]])
    assert torch.equal(last.model.head.weight, expected.weight)
    assert not torch.equal(last.model.head.weight, first.model.head.weight)
    assert "val.accuracy" not in last.metrics  # it would be an accuracy on training images


def test_costs_are_those_of_the_cut_network(bench):
    early, late = (fit(plan(bench, cut=cut), bench).metrics for cut in ("0.2", "2.1"))
    convolution, norm, head = 8 * 3 * 9 + 8, 16, 3 * 8 + 3
    assert early["parameters"] == convolution + norm + head
    assert early["flops"] == 2 * 8 * 3 * 9 * 32 * 32 + 2 * 3 * 8
    assert late["parameters"] > early["parameters"]


@pytest.mark.parametrize("mode", ["squash", "pad"])
def test_a_plan_may_state_another_mode_and_the_bits_of_its_images(bench, mode, monkeypatch):
    own = bench.catalogue.card("tiny:net").input
    as_usual = fit(plan(bench), bench).metrics["val.accuracy"]
    monkeypatch.setattr(bench.catalogue, "_measured", lambda *_: pytest.fail("traced again"))
    made = fit(plan(bench, input=own.by(mode).model_copy(update={"bits": 12})), bench)
    assert made.metrics["val.accuracy"] == as_usual  # all images are square
    wrong = own.by(mode).model_copy(update={"resize": 40})
    with pytest.raises(AutotlError, match="Only 'mode' and 'bits' may differ"):
        fit(plan(bench, input=wrong), bench)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"requires": {"torch": "1.13.0"}}, "torch 1.13.0"),
        ({"requires": {"stages": "0" * 64}}, "stages 000"),
        ({"cut": "1.7"}, "Unknown stage of tiny:net '1.7'"),
        ({"weights": "sha256:" + "0" * 64}, "must be 'none'"),
        ({"weights": "random:3"}, "must be 'none'"),
        ({"backbone": "tiny:net@random", "weights": "random:x"}, "must be 'random:<seed>'"),
        ({"head": Head(pooling="token")}, "Unknown pooling after 1.2 'token'. Known: avg, max"),
        ({"augmentation": Component(name="mixup")}, "augmentation 'mixup'"),
        ({"phases": (Phase(method="logistic", frozen="1.2", options={"penalty": [-1]}),)}, "above zero"),
        ({"phases": (Phase(method="logistic", frozen="1.2", options={"penalty": ["a"]}),)}, "above zero"),
        (
            {
                "phases": (
                    Phase(
                        method="logistic",
                        frozen="1.2",
                        training=Training(epochs=1, batch_size=8, head_lr=0.1),
                        options={"penalty": [1]},
                    ),
                )
            },
            "fits the head without gradient descent",
        ),
        (
            {"phases": (Phase(method="gradient-descent", frozen="1.2"),)},
            "gradient-descent trains by gradient descent: the phase needs 'training'",
        ),
        ({"weights": "whatever"}, "must be 'none', not 'whatever'"),
        (
            {"input": Input(size=40, resize=40, interpolation="bilinear", mean=(0.5,) * 3, std=(0.25,) * 3)},
            "The input of 'tiny:net' must be",
        ),
        ({"phases": (Phase(method="magic", frozen="1.2"),)}, "Unknown training method 'magic'"),
        ({"phases": (Phase(method="logistic", frozen=None),)}, "'frozen' must be the cut"),
        ({"phases": (Phase(method="logistic", frozen="1.2"),)}, "options.penalty"),
        ({"train_on": ("train", "early_stop", "val")}, "cannot choose among several values"),
    ],
)
def test_the_error_about_a_plan_that_cannot_be_trained_says_why(bench, changes, says):
    with pytest.raises(AutotlError, match=says):
        fit(plan(bench, **changes), bench)


def test_a_batch_that_does_not_fit_into_memory_is_split(bench, tmp_path, little_memory):
    shas = bench.shas("train")
    whole = bench.features.read(network(bench), "2.1", "avg", shas)
    little_memory()
    other = FeatureStore(tmp_path / "other", bench.catalogue, bench.features.pixels, "cpu")
    torch.testing.assert_close(other.read(network(bench), "2.1", "avg", shas), whole)
    assert other.computed == len(shas)


def test_a_network_is_built_once_for_all_that_is_computed(bench, monkeypatch):
    built, build = [], bench.catalogue.build
    monkeypatch.setattr(bench.catalogue, "build", lambda network: built.append(network) or build(network))
    shas = bench.shas("train")
    bench.features.fill(network(bench), shas[:20])
    bench.features.read(network(bench), "2.1", "avg", shas[:20])
    assert len(built) == 1
    bench.features.fill(network(bench), shas)
    assert len(built) == 2
    later = FeatureStore(bench.features.cache_dir, bench.catalogue, bench.features.pixels, "cpu")
    later.fill(network(bench), shas)  # compares one image
    later.fill(network(bench), shas)
    assert len(built) == 3 and later.computed == 0


def test_features_that_are_not_finite_are_not_stored(bench, monkeypatch):
    """Here of the second batch, when the first has been stored."""
    shas = bench.shas("train")
    bench.features.fill(network(bench), shas[:1])
    really = features.every_feature

    def broken(stages, info, images, owner):
        found = really(stages, info, images, owner)
        bad.append(len(images))
        return found if len(bad) < 2 else found.index_fill(0, torch.tensor([0]), torch.nan)

    bad = []
    monkeypatch.setattr(features, "every_feature", broken)
    monkeypatch.setattr(features, "batch_size", lambda input, device: 16)
    with pytest.raises(PluginError, match="'tiny:net'.*not finite"):
        bench.features.fill(network(bench), shas)
    monkeypatch.setattr(features, "every_feature", really)
    assert len(bench.features.missing(network(bench), shas)) == len(shas) - 16
    assert torch.isfinite(bench.features.read(network(bench), "2.1", "avg", shas)).all()


@pytest.mark.gpu
def test_features_on_a_gpu_are_those_of_the_cpu(bench, tmp_path, cuda):
    gpu = FeatureStore(tmp_path / "cache", bench.features.catalogue, bench.features.pixels, cuda)
    shas = bench.shas("val")
    there = gpu.read(network(bench), "2.1", "avg", shas)
    assert there.device.type == "cuda"
    assert gpu.computed == len(shas)
    here = bench.features.read(network(bench), "2.1", "avg", shas)
    torch.testing.assert_close(there.cpu(), here, atol=1e-3, rtol=1e-3)


@pytest.mark.gpu
def test_between_two_batches_nothing_waits_for_the_gpu(bench, tmp_path, cuda, monkeypatch):
    """From the second batch on: the first one loads kernels and copies constants."""
    monkeypatch.setattr(features, "batch_size", lambda input, device: 8)
    gpu = FeatureStore(tmp_path / "cache", bench.features.catalogue, bench.features.pixels, cuda)
    shas, done = bench.shas("train"), []

    def progress(count, total):
        done.append(count)
        torch.cuda.set_sync_debug_mode("error" if count < total - 8 else "default")

    try:
        gpu.fill(network(bench), shas, progress)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(done) > 4 and gpu.computed == len(shas)
    there = gpu.read(network(bench), "2.1", "avg", shas)
    here = bench.features.read(network(bench), "2.1", "avg", shas)
    torch.testing.assert_close(there.cpu(), here, atol=1e-3, rtol=1e-3)
