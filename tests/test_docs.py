"""The documentation is true: each listing runs as it is printed."""

import inspect
import re
import shlex
import subprocess
import sys
import time
import zipfile
from collections import Counter
from importlib import import_module
from pathlib import Path

import click
import pytest
from hatchling import build

from autotl import contracts, hookspecs
from autotl.cli import plugins
from autotl.cli.main import COMMANDS, main
from autotl.study.search import Search
from autotl.study.settings import Settings
from autotl.study.watch import Silent
from autotl.testing import (
    AdapterTests,
    AugmentationTests,
    BackboneTests,
    GradientMethodTests,
    MethodTests,
    MetricTests,
    ObjectiveTests,
    OptimizerTests,
    StrategyTests,
)
from autotl.testing.lab import Lab, names_of

ROOT = Path(__file__).parent.parent
TUTORIAL = (ROOT / "plugins/README.md").read_text()
README = (ROOT / "README.md").read_text()
KITS = {
    "backbones": BackboneTests,
    "augmentations": AugmentationTests,
    "strategies": StrategyTests,
    "objectives": ObjectiveTests,
    "optimizers": OptimizerTests,
    "adapters": AdapterTests,
    "methods": type("_Methods", (MethodTests,), {"options": {"nearest-mean": {"shrink": [0.0, 0.5]}}}),
    "metrics": MetricTests,
}


def listings(language):
    """The tutorial's listings in a language, by the file that the first line names."""
    found = re.findall(rf"```{language}\n# (\S+)\n(.*?)```", TUTORIAL, re.DOTALL)
    assert len(found) == len(re.findall(rf"```{language}\n", TUTORIAL)), "a listing does not say which file it is"
    return dict(found)


PYTHON = listings("python")
PLUGINS = [file.removesuffix(".py") for file in PYTHON if file.startswith("autotl_")]
OTHERS = {"save.py", "tests/test_late_probe.py", "try_it.py"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The listings as files, in a folder from which modules are imported."""
    for file, text in PYTHON.items():
        path = tmp_path / "listings" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(tmp_path / "listings")
    yield tmp_path / "listings"
    for name in PLUGINS:
        sys.modules.pop(name, None)


def test_every_listing_is_tested():
    assert set(PYTHON) == {f"{name}.py" for name in PLUGINS} | OTHERS
    assert len(PLUGINS) == 11


@pytest.mark.parametrize("name", PLUGINS)
def test_the_plugins_of_the_tutorial_pass_every_check(name, folder, tmp_path):
    plugin = import_module(name)
    if name == "autotl_dots":
        run(folder, "save.py")
    lab = Lab(plugin, tmp_path / "lab")
    assert not lab.host.problems
    tried = 0
    for kind, kit in KITS.items():
        tests = type("_Tests", (kit,), {"plugin": plugin})()
        for registered in names_of(plugin, kind):
            if registered == "noisy":
                tests = type("_Tests", (GradientMethodTests,), {"plugin": plugin})()
            for check in (each for each in dir(tests) if each.startswith("test_")):
                function = getattr(tests, check)
                given = {"lab": lab, "name": registered, "tmp_path": tmp_path}
                function(**{key: given[key] for key in inspect.signature(function).parameters})
                tried += 1
    assert tried > 5


def test_one_search_uses_the_plugins_of_the_tutorial(folder, host, stripes):
    run(folder, "save.py")
    for name in PLUGINS:
        host.add(import_module(name), name)
    assert not host.problems
    settings = Settings(
        data=stripes,
        trials=8,
        backbones=("dots:small", "plain-nets:w16.photos@random"),
        strategies=("late-probe", "two-steps", "nearest-mean"),
        augmentations=("none", "grey-square"),
        optimizers=("adamw", "rms-prop"),
        objectives=("cross-entropy", "logit-adjusted"),
        adapters=("all", "channel-scale"),
        methods=("gradient-descent", "noisy"),
        metric="brier-score",
        device="cpu",
        prune=False,
    )
    search = Search(settings, host, Silent(), time.monotonic())
    result = search.run()
    assert +Counter(result.trials) == {"complete": 8}
    plans = [record.plan for record in search.folder.log.records()]
    assert {record.params["strategy"] for record in search.folder.log.records()} == set(settings.strategies)
    assert {plan.backbone for plan in plans} == set(settings.backbones)
    assert {plan.augmentation.name for plan in plans} == {"none", "grey-square"}
    assert result.test.metric == "brier-score" and 0 <= result.test.value < 2


def test_the_other_listings_run(folder):
    assert "written: autotl_dots.safetensors" in run(folder, "save.py")
    assert "name='grey-square'" in run(folder, "try_it.py")


def run(folder, file):
    done = subprocess.run([sys.executable, file], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_first_plugin_is_the_template_of_new_ones():
    template = ROOT / "plugins/autotl-late-probe"
    for language, file in (("python", "autotl_late_probe.py"), ("python", "tests/test_late_probe.py")):
        assert listings(language)[file] == (template / file).read_text()
    assert listings("toml")["pyproject.toml"] == (template / "pyproject.toml").read_text()


def test_the_other_templates_are_plugins_of_the_tutorial():
    for kind, template in plugins.KINDS_OF_NEW.items():
        file = f"autotl_{template.name.replace('-', '_')}.py"
        assert PYTHON[file] == (plugins.TEMPLATES / kind / file).read_text()


def test_the_first_plugin_installs_as_it_is_typed(tmp_path, monkeypatch):
    """From the two listings alone."""
    (tmp_path / "pyproject.toml").write_text(listings("toml")["pyproject.toml"])
    (tmp_path / "autotl_late_probe.py").write_text(PYTHON["autotl_late_probe.py"])
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile(build.build_wheel(str(tmp_path))) as wheel:
        assert "autotl_late_probe.py" in wheel.namelist()


def methods_of(protocol):
    """`name(parameters)` of each method that a class defines."""
    for name, function in vars(protocol).items():
        if inspect.isfunction(function) and not name.startswith("_"):
            parameters = [each for each in inspect.signature(function).parameters if each != "self"]
            yield f"{name}({', '.join(parameters)})"


def test_every_hook_is_documented_with_its_signature():
    hooks = [function for function in vars(hookspecs).values() if hasattr(function, "autotl_spec")]
    assert len(hooks) == 8
    for hook in hooks:
        signature = f"{hook.__name__}({', '.join(inspect.signature(hook).parameters)})"
        assert f"| `{signature}` |" in TUTORIAL, f"plugins/README.md does not document {signature}"
        assert (hook.__doc__ or "").count("Called once"), f"{hook.__name__} does not say when it is called"
    (shown,) = re.findall(r"`register\((.*?)\)`: the name", TUTORIAL)
    call = inspect.signature(hookspecs.Register.__call__)
    parts = ["*, " * (each.kind == each.KEYWORD_ONLY) + each.name for each in call.parameters.values()]
    assert shown == ", ".join(parts[1:])


@pytest.mark.parametrize(
    "protocol",
    [
        "Family",
        "Augmentation",
        "Strategy",
        "HeadMethod",
        "GradientMethod",
        "Objective",
        "Optimizer",
        "Adapter",
        "Context",
    ],
)
def test_every_protocol_is_documented_with_its_signatures(protocol):
    for signature in methods_of(getattr(contracts, protocol)):
        assert f"`{signature}`" in TUTORIAL, f"plugins/README.md does not document {protocol}.{signature}"


def test_an_undocumented_hook_is_noticed():
    """The two tests above can fail."""
    assert "| `register_losses(register)` |" not in TUTORIAL
    assert list(methods_of(contracts.Family)) == ["names()", "card(name)", "build(name, weights)"]


def test_every_kit_is_in_the_tutorial():
    import autotl.testing

    for name in autotl.testing.__all__:
        assert f"| `{name}` |" in TUTORIAL


def test_every_command_is_in_the_readme():
    missing = [name for name in COMMANDS if f"autotl {name}" not in README]
    assert not missing


def lines():
    """Every command line of autotl in the documentation."""
    for text in (
        TUTORIAL,
        README,
        (ROOT / "plugins/autotl-head2toe/README.md").read_text(),
        (ROOT / "plugins/autotl-ssf/README.md").read_text(),
    ):
        for block in text.split("```")[1::2]:
            for line in block.splitlines():
                if found := re.match(r"(?:[A-Z_]+=\S+ )*autotl ([^|]+)", line):
                    yield found[1]


def test_every_command_line_in_the_documentation_is_valid():
    seen = list(lines())
    assert len(seen) > 12
    for line in seen:
        context: click.Context | None = None
        step, rest = main, shlex.split(line, comments=True)
        while True:
            name = rest.pop(0) if context else "autotl"
            context = step.make_context(name, list(rest), parent=context, resilient_parsing=True)
            if not isinstance(step, click.Group) or not rest or rest[0].startswith("-"):
                break
            following = step.get_command(context, rest[0])
            assert following is not None, f"there is no such command: autotl {line}"
            step = following
