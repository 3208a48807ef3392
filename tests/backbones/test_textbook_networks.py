"""Networks that every course on transfer learning names can be split, trained and exported, at random weights.

They get images as small as they take. Most are still slow, and run on request: `pytest -m slow`.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from autotl import hookimpl
from autotl.backbones.catalogue import Catalogue
from autotl.builtin.timm_family import Timm
from autotl.builtin.torchvision_family import Torchvision
from autotl.engine.bench import Bench
from autotl.engine.fit import fit
from autotl.export.formats import FORMATS
from autotl.export.graph import Graph, program
from autotl.plan import NO_AUGMENTATION, Component, DataRef, Head, TransferPlan
from autotl.testing.lab import sgd

SMALL = {
    "torchvision:alexnet": 96,
    "torchvision:vgg16": 64,
    "torchvision:vgg19": 64,
    "torchvision:googlenet": 64,
    "torchvision:inception_v3": 128,
    "timm:inception_v4": 96,
    "timm:inception_resnet_v2": 96,
    "torchvision:resnet18": 64,
    "torchvision:resnet34": 64,
    "torchvision:resnet50": 64,
    "torchvision:resnet101": 64,
    "torchvision:resnet152": 64,
    "torchvision:resnext50_32x4d": 64,
    "torchvision:mobilenet_v2": 64,
    "torchvision:mobilenet_v3_small": 64,
    "torchvision:mobilenet_v3_large": 64,
    "torchvision:densenet121": 64,
    "torchvision:squeezenet1_0": 64,
    "torchvision:squeezenet1_1": 64,
    "torchvision:efficientnet_b0": 64,
    "timm:vit_tiny_patch16_224": 224,
    "timm:vit_small_patch16_224": 224,
    "torchvision:vit_b_16": 64,
}
"""The sides of the images in px. timm's vision transformers have one size."""
QUICK = (
    "torchvision:googlenet",
    "torchvision:resnet18",
    "torchvision:mobilenet_v2",
    "torchvision:squeezenet1_0",
    "torchvision:efficientnet_b0",
)
"""The networks that are not slow."""
ONNX = ("torchvision:resnet18", "timm:vit_tiny_patch16_224")
"""The networks that are also written as ONNX, which takes longer than a graph."""


class Small:
    """A family at the sizes above."""

    def card(self, name):
        card = super().card(name)
        return replace(card, input=card.input.at(SMALL[f"{self.family}:{name}"]), sizes=())


class SmallTimm(Small, Timm):
    family = "timm"


class SmallTorchvision(Small, Torchvision):
    family = "torchvision"


class Plugin:
    @hookimpl
    def register_backbones(self, register):
        register("small-timm", SmallTimm, summary="For a test")
        register("small-torchvision", SmallTorchvision, summary="For a test")


@pytest.fixture
def images(tmp_path):
    """Two classes, with one image each in every split."""
    draw = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for name in ("one", "two"):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            Image.fromarray(draw.integers(256, size=(64, 64, 3), dtype=np.uint8)).save(folder / "0.png")
    return tmp_path / "images"


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in SMALL]
)
def test_a_network_is_split_trained_and_exported(host, images, tmp_path, name):
    host.add(Plugin(), "small")
    catalogue = Catalogue(host, tmp_path / "cache")
    backbone = f"small-{name}@random"
    info = catalogue.info(backbone)
    bench = Bench.open(images, [catalogue.card(backbone).input], catalogue, "cpu", seed=0)
    network = catalogue.network(backbone, seed=0)
    trained = tuple(stage.name for stage in info.stages if stage.parameters)
    # At random weights, gradients would be tiny without the statistics of the batch and Adam's scaling. In the first of
    # two steps only the head changes: at its start it is zero, so no gradient passes it.
    adam = {"optimizer": Component(name="adamw"), "head_lr": 1e-3, "batch_norm": "train"}
    steps = sgd(None, trained, lr=1e-3, epochs=2).trained_by(**adam)
    plan = TransferPlan(
        backbone=network.backbone,
        weights=network.weights,
        input=network.input,
        cut=info.names[-1],
        head=Head(pooling="avg"),
        augmentation=NO_AUGMENTATION,
        data=DataRef(fingerprint=bench.dataset.fingerprint, split_seed=0),
        seed=0,
        requires=catalogue.requires(backbone),
        phases=(steps,),
    )
    fitted = fit(plan, bench)
    assert len(info.stages) > 4 and len(trained) > 4

    before, model = catalogue.build(network).state_dict(), fitted.model
    after = model.stages.state_dict()
    for stage in trained:
        changed = [key for key in model.stages.stage_parameters(stage) if not torch.equal(before[key], after[key])]
        assert changed, f"'{stage}' did not change"
    assert all(value.isfinite().all() for value in after.values())

    graph = Graph(plan, model.stages, model.head)
    pixels = torch.from_numpy(bench.features.pixels.read(plan.input, bench.shas("val")))
    with torch.no_grad():
        expected = graph(pixels)
        torch.testing.assert_close(program(graph).module()(pixels), expected, atol=1e-5, rtol=0)
    if name in ONNX:
        file = tmp_path / "model.onnx"
        FORMATS["onnx"].write(graph, {}, file)
        np.testing.assert_allclose(FORMATS["onnx"].load(file)(pixels.numpy()), expected.numpy(), atol=1e-5)
