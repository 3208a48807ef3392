"""The documentation is true: each listing runs as it is printed."""

import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from collections import Counter
from contextlib import chdir
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner
from hatchling import build
from safetensors.torch import save_file

from autotl import contracts, hookspecs
from autotl.backbones.catalogue import Catalogue
from autotl.cli import plugins, search
from autotl.cli.main import COMMANDS, main
from autotl.host import Host
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
    WeightsTests,
)
from autotl.testing.lab import Lab, names_of

ROOT = Path(__file__).parent.parent
TUTORIAL = (ROOT / "plugins/README.md").read_text()
STEPS = re.findall(r"^## Step by step\n.*?(?=^## )", TUTORIAL, re.DOTALL | re.MULTILINE)[0]
LATE_PROBE = "autotl_late_probe.py"
README = (ROOT / "README.md").read_text()
METHODS = (ROOT / "docs/methods.md").read_text()
KITS = {
    "backbones": BackboneTests,
    "augmentations": AugmentationTests,
    "strategies": StrategyTests,
    "objectives": ObjectiveTests,
    "optimizers": OptimizerTests,
    "adapters": AdapterTests,
    "methods": type("_Methods", (MethodTests,), {"options": {"nearest-mean": {"shrink": [0.0, 0.5]}}}),
    "metrics": MetricTests,
    "weights": type("_Weights", (WeightsTests,), {"backbones": ("timm:test_resnet.r160_in1k",)}),
}


def listings(language):
    """The tutorial's listings in a language, by the file that the first line names."""
    found = re.findall(rf"```{language}\n# (\S+)\n(.*?)```", TUTORIAL, re.DOTALL)
    assert len(found) == len(re.findall(rf"```{language}\n", TUTORIAL)), "a listing does not say which file it is"
    assert len(found) == len(dict(found)), "a file is listed twice"
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
    assert len(PLUGINS) == 12


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
                with pytest.MonkeyPatch.context() as patched:
                    given = {"lab": lab, "name": registered, "tmp_path": tmp_path, "monkeypatch": patched}
                    function(**{key: given[key] for key in inspect.signature(function).parameters})
                tried += 1
    assert tried > 4


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


def test_the_provider_of_the_tutorial_gives_what_its_server_has(folder, tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    mirror, name = import_module("autotl_our_mirror"), "timm:test_resnet.r160_in1k"
    host = Host()
    host.add(mirror, "our-mirror")
    torch.manual_seed(0)
    network = host.backbones["timm"].item.build("test_resnet.r160_in1k", None)
    save_file(network.state_dict(), tmp_path / "test_resnet.r160_in1k.safetensors")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(mirror, "SERVER", f"http://127.0.0.1:{server.server_port}")
    catalogue = Catalogue(host, tmp_path / "cache")
    built = catalogue.build(catalogue.network(name, seed=0)).state_dict()
    server.shutdown()
    server.server_close()
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in built.items())
    assert catalogue.file(name).provenance.provider == "our-mirror"


def run(folder, file):
    done = subprocess.run([sys.executable, file], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_step_2_is_the_template_of_new_plugins():
    template = ROOT / "plugins/autotl-late-probe"
    two = next(change for language, change in blocks(STEPS) if language == "diff")
    assert changed(PYTHON[LATE_PROBE], two) == (template / LATE_PROBE).read_text()
    assert PYTHON["tests/test_late_probe.py"] == (template / "tests/test_late_probe.py").read_text()
    assert listings("toml")["pyproject.toml"] in (template / "pyproject.toml").read_text()


def test_the_other_templates_are_plugins_of_the_tutorial():
    for kind, template in plugins.KINDS_OF_NEW.items():
        if kind == "strategy":
            continue  # step 2
        file = f"autotl_{template.name.replace('-', '_')}.py"
        assert PYTHON[file] == (plugins.TEMPLATES / kind / file).read_text()


def blocks(text):
    """The language and the text of each block of code, in order."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def changed(text, change):
    """A file after a change: its parts are separated by `@@`, and each occurs once in the file."""
    title, _, change = change.partition("\n")
    assert title == f" # {LATE_PROBE}"
    for part in change.split("@@\n"):
        old, new = ("".join(f"{line[1:]}\n" for line in part.splitlines() if line[0] in kept) for kept in (" -", " +"))
        assert text.count(old) == 1, f"not one place in {LATE_PROBE}:\n{old}"
        text = text.replace(old, new)
    return text


class Reader:
    """Does what the steps of the tutorial say, in the current folder, and compares what it sees."""

    def __init__(self):
        self.module, self.site = Path(LATE_PROBE), Path("site").absolute()
        self.seen, self.compared = "", 0

    def follow(self, step):
        """Each change of a step about mistakes is one to the file of the step before."""
        mistakes = "mistake" in step.partition("\n")[0]
        before = self.module.read_text() if mistakes else ""
        for language, text in blocks(step):
            match language:
                case "python":
                    file, _, rest = text.removeprefix("# ").partition("\n")
                    Path(file).parent.mkdir(exist_ok=True)
                    Path(file).write_text(rest)
                case "diff":
                    self.module.write_text(changed(before or self.module.read_text(), text))
                case "console":
                    self.seen = "".join(map(self.run, text.replace("\\\n", "").splitlines()))
                case "":
                    self.compare(text)
        if mistakes:
            self.module.write_text(before)

    def run(self, line):
        """What a command prints."""
        match shlex.split(line):
            case ["autotl", "search", *rest]:
                # The comparison with baselines and the reruns, which no step shows, would only take time.
                more = ("--device", "cpu", "--no-mlflow", "--no-compare", "--reruns", "0")
                return CliRunner().invoke(main, ["search", *rest, *more]).output
            case ["autotl", *rest]:
                return self.python("-m", "autotl", *rest)
            case ["python", *rest]:
                return self.python(*rest)
            case ["pytest", *rest]:
                return self.python("-P", "-m", "pytest", *rest)
            case ["cp", source, target]:
                shutil.copy(source, target)
            case ["pip", "install", "-e", project]:  # without internet access: what the wheel contains
                with chdir(project.removesuffix("[dev]")):
                    wheel = build.build_wheel(str(self.site.parent))
                with zipfile.ZipFile(wheel) as packed:
                    packed.extractall(self.site)
            case _:
                raise AssertionError(f"unknown command: {line}")
        return ""

    def python(self, *arguments):
        """What another process prints, which finds what is installed."""
        places = os.pathsep.join((str(ROOT), str(self.site)))
        done = subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": places}
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def compare(self, shown):
        """Every shown line is printed, but for its numbers. A message may be broken into lines where it has spaces."""
        seen = masked(self.seen)
        for part in shown.split("…\n"):
            for line in re.split(r"\n(?![a-z'(])", part):
                words = map(re.escape, masked(line).split())
                pattern = r"\s+".join(words).replace("…", ".*")
                assert re.search(pattern, seen), f"not printed: {line}\nprinted: {self.seen}"
                self.compared += 1


def masked(text):
    """Without numbers and hashes, which depend on the machine; names such as `layer4.0` keep theirs."""
    return re.sub(r"sha256:\w+|(?<![\w.:])\d[\d.,]*", "#", text)


def test_step_by_step(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    reader, steps = Reader(), STEPS.split("\n### ")
    assert len(steps) == 7
    for step in steps:
        reader.follow(step)
    assert reader.compared > 25


def test_another_output_than_the_shown_one_is_noticed():
    """The test above can fail."""
    reader = Reader()
    reader.seen = "[1/6] trial 0  96.9%  late-probe → layer4.0\nError: x (/a.py)\n"
    reader.compare("[2/6] trial 1  3.1%  late-probe → layer4.0\n…\nError: x\n(…)\n")
    with pytest.raises(AssertionError, match="not printed: .*layer3"):
        reader.compare("[1/6] trial 0  96.9%  late-probe → layer3.0\n")
    with pytest.raises(AssertionError, match="not one place"):
        changed("a = 1\n", f" # {LATE_PROBE}\n-a = 2\n+a = 3\n")


def methods_of(protocol):
    """`name(parameters)` of each method that a class defines."""
    for name, function in vars(protocol).items():
        if inspect.isfunction(function) and not name.startswith("_"):
            parameters = [each for each in inspect.signature(function).parameters if each != "self"]
            yield f"{name}({', '.join(parameters)})"


def test_every_hook_is_documented_with_its_signature():
    hooks = [function for function in vars(hookspecs).values() if hasattr(function, "autotl_spec")]
    assert len(hooks) == 9
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
        "WeightsProvider",
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


def test_every_option_in_the_table_of_methods_is_one_that_a_search_takes(host):
    """By name; parameters of --set by the strategies of their examples."""
    shown = re.findall(r"`(--[^`]+)`", METHODS)
    assert len(shown) > 20
    kinds = {"strategies": "strategies", "adapters": "adapters", "methods": "methods", "classifiers": "methods"}
    for options in shown:
        if "NAME" in options or " " not in options:
            continue
        found = search.command.make_context("search", ["data", *shlex.split(options)], resilient_parsing=True).params
        named = {name: value for name, value in found.items() if value and name in Settings.model_fields}
        Settings.of({"data": "data", **named})
        for option, kind in kinds.items():
            for name in set(found[option]) - {"head2toe"}:  # of a plugin in this repository
                assert host.registries[kind].match(name), options


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
        (ROOT / "plugins/autotl-efficientnet-lite/README.md").read_text(),
    ):
        for block in text.split("```")[1::2]:
            for line in block.replace("\\\n", "").splitlines():
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
