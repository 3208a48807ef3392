"""What all tests share: one torch thread a process, no network, no use of the user's own folders."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from autotl import Input, ModelCard, hookimpl
from autotl.host import Host
from autotl.study.search import Search

torch.set_num_threads(1)


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no CUDA device")


@pytest.fixture(autouse=True)
def _own_folders(tmp_path, monkeypatch):
    """Studies and caches of a test lie in its temporary folder."""
    monkeypatch.setenv("AUTOTL_HOME", str(tmp_path / "studies"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def _no_mlflow(request, monkeypatch):
    """Searches within a test's own process tell MLflow nothing, unless the test is marked `tracked`."""
    if not request.node.get_closest_marker("tracked"):
        monkeypatch.setattr(Search, "_begin_logging", lambda self: None)


@pytest.fixture
def stripes(tmp_path):
    """An image folder of three classes, 30 noisy images of 32 px each: stripes across, stripes down, checks."""
    draw = np.random.default_rng(0)
    y, x = np.mgrid[:32, :32]
    patterns = {"across": y // 4 % 2, "down": x // 4 % 2, "checks": (x // 4 + y // 4) % 2}
    for name, pattern in patterns.items():
        folder = tmp_path / "stripes" / name
        folder.mkdir(parents=True)
        for number in range(30):
            shifted = np.roll(pattern, draw.integers(8, size=2), (0, 1))[..., None]
            noisy = 90 + 60 * shifted + draw.normal(0, 60, (32, 32, 3))
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")
    return tmp_path / "stripes"


class TinyNetwork(nn.Sequential):
    """Three small stages and a classifier."""

    def __init__(self):
        super().__init__(
            nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
            nn.Sequential(nn.Conv2d(8, 12, 3, stride=2), nn.BatchNorm2d(12), nn.ReLU()),
            nn.Sequential(nn.Conv2d(12, 16, 3, stride=2), nn.ReLU()),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(16, 5),
        )


class TinyFamily:
    """A plugin's family with one network that needs no weights file: `tiny:net`."""

    def names(self):
        return ["net"]

    def card(self, name):
        if name != "net":
            raise KeyError(name)
        preparation = Input(size=32, resize=32, interpolation="bilinear", mean=(0.5,) * 3, std=(0.25,) * 3)
        return ModelCard(input=preparation, weights=None, source="nothing", licence="none")

    def build(self, name, weights):
        return TinyNetwork()


class TinyPlugin:
    @hookimpl
    def register_backbones(self, register):
        register("tiny", TinyFamily, summary="A network for tests")


@pytest.fixture
def host():
    """What ships, and `tiny:net`."""
    made = Host()
    made.add(TinyPlugin(), "tiny-plugin")
    assert not made.problems
    return made
