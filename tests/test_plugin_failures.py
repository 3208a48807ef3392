"""Third-party plugins that fail in many ways, installed as pip does and used from the command line."""

import errno
import json
import os
import re
import subprocess
import sys
from asyncio import CancelledError
from pathlib import Path

import optuna
import pytest
import torch

from autotl.errors import DataError, PluginError
from autotl.registry import Owner, TooLong
from autotl.study.budget import OutOfTime

OWNER = Owner("p", "autotl-p", "1", "autotl_p")
ROOT = Path(__file__).parent.parent
NETS = "reference:pixels,reference:edges"

STRATEGY = """
from autotl import hookimpl

class Strategy:
    first_guess = {first_guess}

    def suggest(self, trial, context):
        {body}

@hookimpl
def register_strategies(register):
    register("{name}", Strategy, summary="For a test")
"""
PLAN = """from autotl import Head, Phase
        cut = context.cut()
        phase = Phase(method="{method}", frozen=cut, options={{"penalty": 1.0}})
        return context.plan(cut=cut, head=Head(pooling="avg", taps={taps}), phases=[phase])"""
TAPS = PLAN.format(method="logistic", taps=("nowhere",))
REFUSAL = "from autotl import PlanError; raise PlanError('not today')"
METHOD = PLAN.format(method="logistik", taps=())
HOOK = "from autotl import hookimpl\n@hookimpl\ndef {}: {}\n"
AUGMENTATIONS = {
    "moody": ("{}['flip']", "images", "fails: KeyError: 'flip'"),
    "unbuilt": ("{}", "absent", "cannot be built: NameError: name 'absent' is not defined"),
    "untold": (
        "{}",
        "None",
        "cannot be built: TypeError: its build returned NoneType, not a function of images and draw",
    ),
    "crashes": ("{}", "lambda images, draw: images.view(7)", "fails: RuntimeError: shape '[7]' is invalid"),
    "shrinks": ("{}", "lambda images, draw: images[..., :16]", "returned (48, 3, 64, 16) torch.uint8 on cpu"),
    "floats": ("{}", "lambda images, draw: images.float()", "returned (48, 3, 64, 64) torch.float32 on cpu"),
    "listless": ("{}", "lambda images, draw: images.tolist()", "returned list for (48, 3, 64, 64) torch.uint8"),
}
"""What each returns in `suggest` and in `build`, and its error."""
TRAINER = f"""
from autotl import Head, Phase, Training, hookimpl

class Train:
    def __init__(self, augmentation):
        self.first_guess = {{"augmentation": augmentation}}

    def suggest(self, trial, context):
        cut = context.cut()
        phase = Phase(
            method="gradient-descent", frozen=cut, training=Training(epochs=1, batch_size=16, head_lr=0.1)
        )
        return context.plan(cut=cut, head=Head(pooling="avg"), phases=[phase], augmentation=context.augmentation())

@hookimpl
def register_strategies(register):
    for name in {list(AUGMENTATIONS)}:
        register("train-" + name, lambda name=name: Train(name), summary="For a test")
"""
AUGMENTATION = """
from autotl import hookimpl

class Augmentation:
    def suggest(self, trial, context):
        return {}

    def build(self, params):
        return {}

@hookimpl
def register_augmentations(register):
    register("{}", Augmentation, summary="For a test")
"""
FAMILY = """
from autotl import Input, ModelCard, hookimpl

class Family:
    def names(self):
        return ["resnet18.a1_in1k", "mobilenetv3_small_100.lamb_in1k"]

    def card(self, name):
        if name.startswith("mobilenet"):
            raise OverflowError("no card today")
        preparation = Input(size=32, resize=32, interpolation="bilinear", mean=(0.5,) * 3, std=(0.25,) * 3)
        return ModelCard(input=preparation, weights=None, source="nothing", license="none")

    def build(self, name, weights):
        raise ImportError("libnet.so: cannot open shared object file")

class Unlisted(Family):
    def names(self):
        return self.all_names

@hookimpl
def register_backbones(register):
    register("timm", Family, summary="For a test")
    register("unlisted", Unlisted, summary="For a test")
    register("absent", lambda: 1 / 0, summary="For a test")
"""


class Machine:
    """A command line with distributions of its own beside those of the environment."""

    def __init__(self, folder, data):
        self.folder, self.site, self.data = folder, folder / "site", data
        self.site.mkdir()

    def install(self, name, code, requires="autotl"):
        """Write what pip installs of `autotl-<name>` 1.2, with one module; returns its name in messages."""
        module = f"autotl_{name.replace('-', '_')}"
        (self.site / f"{module}.py").write_text(code)
        info = self.site / f"{module}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: autotl-{name}\nVersion: 1.2\nRequires-Dist: {requires}\n"
        )
        (info / "entry_points.txt").write_text(f"[autotl]\n{name} = {module}\n")
        return f"plugin '{name}' (autotl-{name} 1.2, entry point {module})"

    def autotl(self, *words, code=0, **environment):
        """Runs `autotl …`; its standard output and standard error together."""
        path = os.pathsep.join([str(self.site), str(ROOT), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            [sys.executable, "-m", "autotl", *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONPATH": path, **environment},
        )
        assert done.returncode == code, done.stdout
        assert "Traceback" not in done.stdout
        return done.stdout

    def search(self, *words, code=0, **environment):
        quick = ("--no-mlflow", "--reruns", 0, "--no-refit", "--no-compare")
        return self.autotl("search", self.data, *quick, *words, code=code, **environment)

    def ends(self, study):
        """How each trial of a study ended, from its log: its state and the reason."""
        logs = sorted((self.folder / "studies" / study / "trials").glob("*.jsonl"))
        ends = [json.loads(file.read_text().splitlines()[-1]) for file in logs]
        return [(end["state"], end["reason"]) for end in ends]


@pytest.fixture
def machine(tmp_path, stripes):
    return Machine(tmp_path, stripes)


def broken_at_loading(machine):
    """A plugin for each error that is possible before a search: its name in messages, with the reason."""
    unused = STRATEGY.format(name="unused", first_guess=None, body="pass")
    return {
        machine.install("again", unused.replace('"unused"', '"linear-probe"')): (
            "strategy 'linear-probe' is registered twice: by plugin 'linear_probe' (autotl "
        ),
        machine.install("away", "import a_library_that_is_not_here"): "No module named 'a_library_that_is_not_here'",
        machine.install("quits", "raise SystemExit('no licence')"): "SystemExit: no licence",
        machine.install("shouts", HOOK.format("register_strategies(register)", "raise ValueError('not\\ntoday')")): (
            "ValueError: not today"
        ),
        machine.install("odd-hook", HOOK.format("register_pets(register)", "pass")): "unknown hook 'register_pets'",
        machine.install("odd-words", HOOK.format("register_strategies(register, mood)", "pass")): "{'mood'}",
        machine.install("old", unused, "autotl<0.1; extra == 'x'\nRequires-Dist: autotl (>=99)"): (
            "it needs autotl>=99, but autotl 0."
        ),
    }


def test_what_is_broken_at_loading_is_skipped_with_owner_and_reason(machine):
    """The search continues; the listings report it, too; a strict search does not start."""
    broken = broken_at_loading(machine)
    printed = [
        machine.search("--trials", 1, "--backbones", NETS, "--strategies", "linear-probe"),
        machine.autotl("plugins"),
        machine.autotl("doctor", code=1),
    ]
    for text in printed:
        for owner, reason in broken.items():
            (line,) = [line for line in text.splitlines() if f"{owner} was skipped: " in line]
            assert reason in line.partition("was skipped: ")[2]
    assert "Winner: reference:" in printed[0]
    assert printed[2].count("pip uninstall autotl-") == len(broken)

    refused = machine.search("--strict-plugins", "--study", "strict", code=2)
    assert refused.startswith(f"Error: {next(iter(broken))} was skipped: ")  # the first in the order of names
    assert refused.endswith("Fix it, or search without --strict-plugins.\n")
    assert refused.count("\n") == 1
    assert not (machine.folder / "studies" / "strict").exists()

    names = ",".join(owner.split("'")[1] for owner in broken)
    assert "was skipped" not in machine.autotl("plugins", AUTOTL_DISABLE_PLUGINS=names)


def broken_in_trials(machine):
    """A plugin for each error that is possible in a trial, its first guess, and its reason."""
    owners = {}
    for name, first_guess, body, reason in (
        ("raises", {}, "raise ZeroDivisionError('no plan\\n today')", "fails: ZeroDivisionError: no plan today"),
        ("looks", {}, "open('/nowhere/at/all')", "fails: FileNotFoundError: [Errno 2]"),
        ("refuses", {}, REFUSAL, "suggested a plan that cannot be trained: not today"),
        ("leaves", {}, "raise SystemExit(3)", "fails: SystemExit: 3"),
        ("forgets", {}, "return None", "suggested NoneType, not a plan."),
        ("solves", {}, "import torch; torch.linalg.cholesky(-torch.eye(2))", "fails: _LinAlgError: linalg.cholesky"),
        ("taps", {}, TAPS, "suggested a plan that cannot be trained: 'taps' must name stages before the cut"),
        ("methods", {}, METHOD, "suggested a plan that cannot be trained: Unknown training method 'logistik'."),
    ):
        code = STRATEGY.format(name=name, first_guess=first_guess, body=body)
        owners[f"Strategy '{name}' of {machine.install(name, code)}"] = reason
    for name, (suggested, built, reason) in AUGMENTATIONS.items():
        owner = machine.install(name, AUGMENTATION.format(suggested, built, name))
        owners[f"Augmentation '{name}' of {owner}"] = reason
    machine.install("trainer", TRAINER)
    return owners


def test_what_fails_in_a_trial_is_a_failed_trial_with_owner_and_reason(machine):
    """The search continues and has a winner; a strict one ends with an error, as does one without a success."""
    broken = broken_in_trials(machine)
    unsure = machine.install("unsure", STRATEGY.format(name="unsure", first_guess=5, body="pass"))
    machine.install(
        "heavy", HOOK.format("register_strategies(register)", "register('heavy', lambda: 1 / 0, summary='')")
    )
    strategies = "linear-probe,raises,looks,refuses,leaves,forgets,solves,taps,methods,train-*,unsure,h*"
    options = ("--backbones", "reference:pixels", "--strategies", strategies, "--trials", 1 + len(broken))
    printed = machine.search(*options)
    ends = machine.ends("stripes")
    assert ends[0] == ("complete", "")
    assert [state for state, _ in ends[1:]] == ["failed"] * len(broken)
    for (_, why), (owner, reason) in zip(ends[1:], broken.items(), strict=True):
        assert why.startswith(f"{owner} {reason}")
        assert re.search(rf"trial \d+  failed.*: {re.escape(why)}\n", printed)
    assert ends[1][1].endswith("fails: ZeroDivisionError: no plan today (autotl_raises.py:8)")
    last = (machine.folder / "studies/stripes/trials/00001.jsonl").read_text().splitlines()[-1]
    assert "in suggest" in json.loads(last)["traceback"]
    assert re.search(r"^ raises +1 +0 +1 ", printed, re.MULTILINE)  # in the table of strategies
    assert "Winner: reference:pixels" in printed
    assert f"Warning: Strategy 'unsure' of {unsure} has a first guess that cannot be tried: TypeError: " in printed
    assert (
        "Warning: 'heavy' of plugin 'heavy' (autotl-heavy 1.2, entry point autotl_heavy) cannot be loaded: " in printed
    )

    strict = ("--strict-plugins", "--backbones", "reference:pixels", "--trials", 5)
    printed = machine.search(*strict, "--study", "strict", "--strategies", "linear-probe,raises,looks", code=2)
    assert machine.ends("strict") == ends[:2]  # logged before the search ends
    assert printed.splitlines()[-1] == (
        f"Error: Trial 1 failed: {ends[1][1]}. Fix it, or search without --strict-plugins."
    )

    lost = machine.search("--study", "lost", "--trials", 2, "--strategies", "raises", "--backbones", NETS, code=2)
    assert lost.splitlines()[-1] == f"Error: No trial of study 'lost' succeeded on these images: {ends[1][1]}"
    refused = machine.search("--strategies", "heavy", "--study", "named", code=2)
    assert refused.startswith("Error: 'heavy' of plugin 'heavy' (") and refused.endswith(
        ": division by zero (autotl_heavy.py:3)\n"
    )


def test_a_family_that_fails_does_not_stop_a_search_that_did_not_ask_for_it(machine):
    """Its networks are skipped in the default pool, and an error if they are named in full."""
    owner = machine.install("nets", FAMILY)
    without = {"AUTOTL_DISABLE_PLUGINS": "timm_family"}
    why = "OverflowError: no card today (autotl_nets.py:10)"
    card = f"Backbone 'timm:mobilenetv3_small_100.lamb_in1k' of {owner} has no card: {why}"
    build = f"Backbone 'timm:resnet18.a1_in1k' of {owner} cannot be built: ImportError: libnet.so: cannot open"
    names = f"Backbone family 'unlisted' of {owner} cannot be listed: AttributeError: "
    printed = machine.search("--pool", "small", "--trials", 1, "--strategies", "linear-probe", **without)
    assert f"Warning: {card}\n" in printed
    assert f"Warning: {build}" in printed
    assert "Winner: autotl:" in printed
    doctor = machine.autotl("doctor", code=1, **without)
    assert card in doctor and names in doctor
    assert f"'absent' of {owner} cannot be loaded: ZeroDivisionError: division by zero" in doctor
    listed = machine.autotl("plugins", "backbones", "timm:*", **without)
    assert f"Warning: {card}\n" in listed and "timm:resnet18.a1_in1k  " in listed
    for words, says in (
        (("--backbones", "timm:resnet18.a1_in1k"), build),
        (("--backbones", "unlisted:*"), names),
        (("--pool", "small", "--strict-plugins"), card),
    ):
        refused = machine.search(*words, "--study", "named", code=2, **without)
        assert f"Error: {says}" in refused.splitlines()[-1]
        assert not list((machine.folder / "studies" / "named").glob("trials/*"))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("std::bad_alloc"),
        OSError(errno.ENOSPC, "No space left on device"),
        torch.OutOfMemoryError("CUDA out of memory"),
        torch.AcceleratorError("device-side assert"),
        optuna.exceptions.StorageInternalError("the database is away"),
        OutOfTime(),
        DataError("no such image"),
        KeyboardInterrupt(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_that_are_no_plugins_fault_are_not_changed(error):
    with pytest.raises(type(error)) as caught, OWNER.answers_for("Strategy 'x'"):
        raise error
    assert caught.value is error


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError("x"),
        ConnectionError("x"),
        RuntimeError("x"),
        SystemExit("x"),
        MemoryError("x"),
        optuna.TrialPruned("x"),
        CancelledError("x"),
        TooLong("x"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_that_a_plugins_code_raises_names_it(error):
    named = rf"^Strategy 's' of plugin 'p' .* fails: {type(error).__name__}: x$"
    with pytest.raises(PluginError, match=named), OWNER.answers_for("Strategy 's'"):
        raise error
