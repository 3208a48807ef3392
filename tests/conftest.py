"""Settings of all tests: one torch thread per process, no network, none of the user's own folders."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

from autotl.engine import device, features
from autotl.engine.exact import exact
from autotl.host import Host
from autotl.study.search import Search
from autotl.testing.lab import TinyPlugin, write_stripes

torch.set_num_threads(1)
TINY = """
from autotl import hookimpl

@hookimpl
def register_backbones(register):
    register("tiny", family, summary="Networks for tests")

def family():
    from autotl.testing.lab import TinyFamily
    return TinyFamily()
"""
"""A module that registers the networks of the lab."""

GATE = """
import os, time
from pathlib import Path
from autotl import hookimpl

PLACE = Path("{place}")

@hookimpl
def register_augmentations(register):
    register("gate", Gate, summary="Trials wait while it is shut")

class Gate:
    def suggest(self, trial, context):
        (PLACE / str(os.getpid())).touch()
        while (PLACE / "shut").exists():
            time.sleep(0.05)
        return {{}}

    def build(self, params):
        def transform(images, draw):
            time.sleep(float(os.environ.get("PAUSE", 0)))
            return images

        return transform
"""


class Gate:
    """The augmentation `gate` of other processes: trials that use it wait while it is shut."""

    def __init__(self, place):
        self._place, self._bar = place, place / "shut"
        place.mkdir()

    def shut(self):
        self._bar.touch()

    def open(self):
        self._bar.unlink(missing_ok=True)

    @property
    def came(self):
        """How many processes have reached it."""
        return sum(name.isdecimal() for name in os.listdir(self._place))


def pytest_configure(config):
    """Without `-m gpu` tests see no GPU: `auto` is the CPU, as on most machines."""
    if "gpu" not in config.option.markexpr:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no CUDA device, or not asked for one: pytest -m gpu")


@pytest.fixture
def cuda():
    """The GPU, set up as a search does it."""
    name = device.resolve("cuda")
    with exact(name):
        yield name


@pytest.fixture(autouse=True)
def _own_folders(tmp_path, monkeypatch):
    """Studies and caches of a test are in its temporary folder."""
    monkeypatch.setenv("AUTOTL_HOME", str(tmp_path / "studies"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def _no_mlflow(request, monkeypatch):
    """Searches in a test's own process log nothing to MLflow, unless the test is marked `tracked`."""
    if not request.node.get_closest_marker("tracked"):
        monkeypatch.setattr(Search, "_begin_logging", lambda self: None)


@pytest.fixture
def stripes(tmp_path):
    """Three classes of 30 noisy images each."""
    return write_stripes(tmp_path / "stripes")


@pytest.fixture
def host():
    """What ships, and `tiny:net` with `tiny:deep`."""
    made = Host()
    made.add(TinyPlugin(), "tiny-plugin")
    assert not made.problems
    return made


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """`installed(name, text)`: from then on other processes find this plugin's module as if it were installed."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")])))

    def install(name, text):
        facts = site / f"{name}-1.0.dist-info"
        facts.mkdir()
        (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (facts / "entry_points.txt").write_text(f"[autotl]\n{name} = {name}\n")
        (site / f"{name}.py").write_text(text)

    return install


@pytest.fixture
def tiny_installed(installed):
    """Other processes have `tiny:net` too, which is faster than a real network, timm or torchvision."""
    installed("tiny", TINY)


@pytest.fixture
def gate(installed, tmp_path):
    """Other processes have the augmentation `gate`, which is open at first."""
    made = Gate(tmp_path / "gate")
    installed("gate", GATE.format(place=tmp_path / "gate"))
    return made


@pytest.fixture
def little_memory(monkeypatch):
    """`little_memory()`: from then on memory suffices for the features of five images at a time."""
    really = features.every_feature

    def limited(stages, info, images, owner):
        if len(images) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return really(stages, info, images, owner)

    def limit():
        monkeypatch.setattr(features, "every_feature", limited)

    return limit
