"""No command imports what it does not use: torch alone takes seconds."""

import subprocess
import sys

import pytest
from click.testing import CliRunner

from autotl.cli.main import main
from autotl.testing.lab import write_stripes

COMPUTING = {"numpy", "PIL", "scipy", "torch", "torchvision", "timm", "optuna", "sqlalchemy", "sklearn", "pandas"}
SHOWING = {"mlflow", "matplotlib", "rich"}
COMPILING = {"sympy", "torch._dynamo", "torch._inductor"}

PROGRAM = """
import sys
from autotl.cli.main import main
try:
    main({words!r})
except SystemExit as end:
    assert not end.code, end.code
found = {modules!r} & set(sys.modules)
sys.exit("imported: " + ", ".join(sorted(found)) if found else 0)
"""


def imports_none(modules, *words):
    """Run a command in a process of its own, and check that it has imported none of these modules."""
    program = PROGRAM.format(words=list(map(str, words)), modules=modules)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The options that find a finished study `stripes`: workspace and cache; and an image."""
    place = tmp_path_factory.mktemp("imports")
    data = write_stripes(place / "stripes")
    home, cache = ("--home", place / "home"), ("--cache-dir", place / "cache")
    words = ("search", data, "--trials", 1, "--backbones", "reference:pixels", "--strategies", "linear-probe")
    done = CliRunner().invoke(main, [*map(str, (*words, *home, *cache)), "--no-mlflow", "--no-compare"])
    assert done.exit_code == 0, done.output
    return home, cache, next(data.rglob("*.png"))


@pytest.mark.parametrize("words", [["--help"], ["plugins"], ["search", "--help"], ["--version"]])
def test_commands_that_read_nothing(words):
    imports_none(COMPUTING | SHOWING | COMPILING, *words)


@pytest.mark.parametrize(
    ("words", "shows"),
    [
        (["studies"], " stripe"),
        (["show", "stripes"], "Winner: reference:pixels"),
        (["show", "stripes", "--json"], "{"),
    ],
)
def test_commands_that_compute_nothing(study, words, shows):
    home, _, _ = study
    assert shows in imports_none((COMPUTING | SHOWING | COMPILING) - {"rich"}, *words, *home)


def test_a_search_of_heads_on_frozen_networks(stripes, tmp_path):
    words = ("search", stripes, "--trials", 1, "--strategies", "linear-probe", "--backbones", "reference:pixels")
    unused = {"torchvision", "timm", "sklearn", "pandas", *(SHOWING - {"rich"}), *(COMPILING - {"sympy"})}
    assert "Winner: reference:pixels" in imports_none(unused, *words, "--home", tmp_path / "home", "--no-mlflow")


def test_the_report(study):
    home, _, _ = study
    unused = (COMPUTING - {"numpy", "PIL", "scipy"}) | (SHOWING - {"rich"}) | COMPILING
    assert "report.html" in imports_none(unused, "report", "stripes", *home)


def test_predictions(study):
    home, cache, image = study
    unused = (COMPUTING - {"numpy", "PIL", "torch"}) | (SHOWING - {"rich"}) | (COMPILING - {"sympy"})
    assert str(image) in imports_none(unused, "predict", "stripes", image, *home, *cache)


def test_the_process_that_logs_a_search_before_there_is_a_result(study, tmp_path):
    home, cache, _ = study
    result = home[1] / "stripes" / "result.json"
    kept = result.read_bytes()
    result.unlink()
    try:
        uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
        heavy = {"torch", "torchvision", "timm", "optuna", "sklearn", "matplotlib", *COMPILING}
        assert "has all of study 'stripes'" in imports_none(
            heavy, "log", "stripes", "--tracking-uri", uri, *home, *cache
        )
    finally:
        result.write_bytes(kept)


@pytest.mark.parametrize("words", [["weights", "list"], ["doctor"]])
def test_commands_that_need_the_families_of_backbones(words):
    imports_none(COMPILING, *words)
