"""Completions that the shell gets when the user presses Tab, requested as a shell does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import atexit, sys
from autotl.cli.main import main
heavy = {"torch", "torchvision", "timm", "optuna", "mlflow", "pandas", "sklearn"}
atexit.register(lambda: sys.stderr.writelines(heavy & set(sys.modules)))
main(prog_name="autotl")
"""


@pytest.fixture
def complete(tmp_path):
    """The completions of the last of these words, as bash gets them; nothing else may be printed or imported."""
    (tmp_path / "site").mkdir()

    def ask(*words, **environment):
        path = os.pathsep.join([str(tmp_path / "site"), str(ROOT), os.environ.get("PYTHONPATH", "")])
        asked = {
            "_AUTOTL_COMPLETE": "bash_complete",
            "COMP_WORDS": " ".join(["autotl", *map(str, words)]),
            "COMP_CWORD": str(len(words)),
        }
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": path, **asked, **environment},
        )
        assert done.returncode == 0
        assert done.stderr == ""
        return [tuple(line.split(",", 1)) for line in done.stdout.splitlines() if line]

    return ask


def plain(*names):
    return [("plain", name) for name in names]


@pytest.fixture
def studies(tmp_path):
    """Three studies in the workspace of the tests, one in another."""
    for place in ("studies/digits", "studies/dogs", "studies/flowers", "elsewhere/digits-2"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "study.json").write_text("{}")
    (tmp_path / "studies" / "no-study").mkdir()


@pytest.mark.usefixtures("studies")
def test_studies_of_the_workspace(complete):
    everything = plain("digits", "dogs", "flowers")
    for command in ("show", "log", "worker", "ui"):
        assert complete(command, "") == everything
    assert complete("show", "d") == plain("digits", "dogs")
    assert complete("show", "x") == []
    assert complete("search", "data", "--study", "f") == plain("flowers")
    assert complete("show", "--home", "elsewhere", "") == plain("digits-2")
    assert complete("show", "", AUTOTL_HOME="nowhere") == []
    for command in ("predict", "export"):
        assert complete(command, "d") == [("dir", "d"), *plain("digits", "dogs")]


def test_names_that_plugins_registered(complete):
    assert complete("search", "data", "--strategies", "l") == plain("linear-probe", "lp-ft")
    assert complete("search", "data", "--strategies", "full,lin") == plain("full,linear-probe")
    assert complete("search", "data", "--augmentations", "t") == plain("trivialaugment")
    assert complete("search", "data", "--backbones", "t") == plain("torchvision:", "timm:")
    assert complete("search", "--strategies", "full", "--backbones", "ti") == plain("timm:")
    assert complete("plugins", "strategies", "fu") == plain("full")
    assert complete("search", "data", "--metric", "b") == plain("balanced-accuracy")
    assert complete("train", "plan.json", "data", "--metric", "t") == plain("top-5")
    assert complete("search", "data", "--backbones", "ti", AUTOTL_DISABLE_PLUGINS="timm_family") == []
    assert ("plain", "new") in complete("plugins", "")


def test_values_that_plans_allow(complete):
    assert complete("search", "data", "--heads", "") == plain("linear", "mlp", "conv", "cosine")
    assert complete("search", "data", "--heads", "linear,co") == plain("linear,conv", "linear,cosine")
    assert complete("search", "data", "--techniques", "mixup,") == plain(
        *(f"mixup,{name}" for name in ("mixup", "cutmix", "l2-sp", "ema", "distillation", "balanced-sampling"))
    )


def test_output_and_errors_of_plugins_are_hidden(complete, tmp_path):
    site = tmp_path / "site"
    for name, code in {
        "noisy": (
            "import sys\nfrom autotl import hookimpl\nprint('hello'); print('hello', file=sys.stderr)\n"
            "@hookimpl\ndef register_strategies(register):\n    register('noisy', dict, summary='')\n"
        ),
        "broken": "raise SystemExit('no')",
    }.items():
        (site / f"autotl_{name}.py").write_text(code)
        info = site / f"autotl_{name}-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: autotl-{name}\nVersion: 1\n")
        (info / "entry_points.txt").write_text(f"[autotl]\n{name} = autotl_{name}\n")
    assert complete("search", "data", "--strategies", "n") == plain("noisy")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_lines_in_the_readme_define_the_shells_function(complete, shell):
    line = f"_AUTOTL_COMPLETE={shell}_source autotl"
    assert line in (ROOT / "README.md").read_text()
    words = [sys.executable, "-c", PROGRAM]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "_AUTOTL_COMPLETE": f"{shell}_source"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert done.returncode == 0
    assert f"_AUTOTL_COMPLETE={shell}_complete" in done.stdout
