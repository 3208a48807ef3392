"""The distributions of plugins/, built, installed and used like those of a third party."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PLUGINS = Path(__file__).parent.parent / "plugins"
DISTRIBUTIONS = sorted(file.parent.name for file in PLUGINS.glob("*/pyproject.toml"))


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

    def call(*words):
        path = os.pathsep.join([str(installed), *filter(None, [os.environ.get("PYTHONPATH")])])
        done = subprocess.run(
            [sys.executable, *map(str, words)],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": path, "COLUMNS": "200"},
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return call


def test_these_are_the_distributions():
    assert DISTRIBUTIONS == ["autotl-head2toe", "autotl-late-probe", "autotl-ssf"]


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_it_passes_its_own_tests(name, run):
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
