"""`autotl plugins new`: it writes the distribution of the tutorial under another name."""

import importlib.util
import os
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from autotl.cli import plugins
from autotl.cli.main import main
from autotl.host import Host

FILES = (*plugins.SHARED, *(file.format("late_probe") for file in plugins.OWN))
LATE_PROBE = Path(__file__).parents[2] / "plugins" / "autotl-late-probe"


@pytest.fixture
def new(tmp_path, monkeypatch):
    """Runs `autotl plugins new …` in the test's folder, and returns what it prints."""
    monkeypatch.chdir(tmp_path)

    def run(*words, code=0):
        done = CliRunner().invoke(main, ["plugins", "new", *map(str, words)])
        assert done.exit_code == code, done.output
        return done.output

    return run


def contents(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_new_late_probe_is_the_distribution_of_the_tutorial(new, tmp_path):
    printed = new("late-probe")
    assert contents(tmp_path / "autotl-late-probe") == {file: (LATE_PROBE / file).read_bytes() for file in FILES}
    for line in (
        "pip install -e './autotl-late-probe[dev]'",
        "pytest autotl-late-probe",
        "autotl search DATA --strategies late-probe --study late-probe",
    ):
        assert f"\n  {line}\n" in printed


def test_the_template_is_all_of_the_tutorials_distribution():
    done = subprocess.run(["git", "ls-files", LATE_PROBE], cwd=LATE_PROBE, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not in a git repository")
    assert set(done.stdout.split()) == set(FILES)


def test_a_new_plugin_registers_its_name(new, tmp_path):
    new("My_Idea", "--folder", "here/mine")
    folder = tmp_path / "here" / "mine"
    assert set(contents(folder)) == {*plugins.SHARED, "README.md", "autotl_my_idea.py", "tests/test_my_idea.py"}
    project = tomllib.loads((folder / "pyproject.toml").read_text())
    assert project["project"]["name"] == "autotl-my-idea"
    assert project["project"]["entry-points"]["autotl"] == {"my-idea": "autotl_my_idea"}
    spec = importlib.util.spec_from_file_location("autotl_my_idea", folder / "autotl_my_idea.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    host = Host()
    host.add(module, "my-idea")
    assert not [problem for problem in host.problems if problem.owner.plugin == "my-idea"]
    assert isinstance(host.strategies["my-idea"].item, module.MyIdea)
    assert (
        "class TestMyIdea(StrategyTests):\n    plugin = autotl_my_idea\n"
        in (folder / "tests" / "test_my_idea.py").read_text()
    )


@pytest.mark.parametrize("kind", plugins.KINDS_OF_NEW)
def test_a_new_plugin_of_each_kind_passes_its_own_tests(new, tmp_path, kind):
    told = new("my-idea", "--kind", kind)
    folder = tmp_path / "autotl-my-idea"
    old = plugins.KINDS_OF_NEW[kind].name
    for file, text in contents(folder).items():
        for form in (old, old.replace("-", "_"), "".join(word.capitalize() for word in old.split("-"))):
            assert form not in file and form.encode() not in text, f"{file} has the template's name"
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["description"] == f"The {kind} my-idea for autotl." and project["license"] == "Apache-2.0"
    root = Path(plugins.__file__).parents[2]
    path = os.pathsep.join([str(folder), str(root), os.environ.get("PYTHONPATH", "")])
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", folder, folder]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout and "skipped" not in done.stdout
    (line,) = (line for line in told.splitlines() if line.startswith("  autotl search DATA "))
    own = shlex.split((folder / "README.md").read_text().split("autotl search ")[1].splitlines()[0])
    assert {"my-idea", "--study"} <= set(own) and own[1] in line


@pytest.mark.parametrize("kind", plugins.KINDS_OF_NEW)
def test_each_template_is_all_of_its_folder(kind):
    done = subprocess.run(["git", "ls-files", "."], cwd=plugins.TEMPLATES / kind, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not in a git repository")
    own = {file.format(plugins.KINDS_OF_NEW[kind].name.replace("-", "_")) for file in plugins.OWN}
    if kind != "strategy":  # a link, which the test above covers
        assert set(done.stdout.split()) == own
    assert {folder.name for folder in plugins.TEMPLATES.iterdir()} == set(plugins.KINDS_OF_NEW)


@pytest.mark.parametrize("name", ["my idea", "", "-x", "3d", "none", "ünlikely", "autotl-", "a/b", "head"])
def test_a_name_that_names_no_distribution_is_refused(new, tmp_path, name):
    printed = new("--", name, code=2)
    assert printed.startswith(f"Error: '{name}' cannot name a plugin: ") and printed.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_existing_files_are_not_overwritten(new, tmp_path):
    new("autotl-my-idea")
    (tmp_path / "before.txt").touch()
    before = contents(tmp_path)
    printed = new("my-idea", code=2)
    assert printed == "Error: autotl-my-idea already exists; choose a new folder: --folder DIR\n"
    assert "'before.txt' is a file" in new("my-idea", "--folder", "before.txt", code=2)
    assert "/nowhere cannot be written: " in new("my-idea", "--folder", "before.txt/nowhere", code=2)
    assert contents(tmp_path) == before


def test_a_name_that_is_taken_is_refused(new, tmp_path):
    for name, kind in (("reference", "strategy"), ("full", "strategy"), ("flip", "augmentation"), ("full", "method")):
        assert "(autotl 0." in new(name, "--kind", kind, code=2)
    assert "already registers the augmentation 'flip'" in new("flip", "--kind", "augmentation", code=2)
    assert not list(tmp_path.iterdir())


def test_the_listings(monkeypatch):
    run = lambda *words: CliRunner().invoke(main, ["plugins", *words])  # noqa: E731
    everything = run().output
    for kind in plugins.KINDS:
        assert f"\n{kind}:\n" in f"\n{everything}"
        assert run(kind).stdout.startswith(f"{kind}:\n")
    assert "randaugment" in run("augmentations", "rand*").stdout and "flip" not in run("augmentations", "rand*").stdout
    assert "Unknown strategy 'zzz'" in run("strategies", "zzz").output
    assert "log-loss" in run("metrics", "*-loss").stdout and "top-5" not in run("metrics", "*-loss").stdout
    monkeypatch.setenv("AUTOTL_DISABLE_PLUGINS", "metrics")
    assert run().output.count("metrics:\n\n") == 1
    assert run("pets").exit_code == 2


def test_nothing_heavy_is_imported_for_it(tmp_path):
    program = (
        "import sys\nfrom autotl.cli.main import main\n"
        "try: main(['plugins', 'new', 'my-idea'])\nexcept SystemExit as end: assert not end.code\n"
        "sys.exit(', '.join({'torch', 'timm', 'optuna', 'mlflow', 'pandas'} & set(sys.modules)) or 0)"
    )
    root = Path(plugins.__file__).parents[2]
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    words, environment = [sys.executable, "-c", program], {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
