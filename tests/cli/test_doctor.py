"""`autotl doctor`: it names each problem, with what to do."""

import json
import shutil
from importlib import metadata
from types import ModuleType

from click.testing import CliRunner
from PIL import Image

from autotl import hookimpl
from autotl.cli.main import main
from autotl.host import Host
from autotl.report import checks


def doctor(*words, code=0):
    done = CliRunner().invoke(main, ["doctor", *map(str, words)])
    assert done.exit_code == code, done.output
    return done.output


def test_a_healthy_machine():
    printed = doctor()
    assert printed.endswith("No problem found.\n")
    for word in (
        "Python",
        "torch ",
        metadata.version("torch"),
        "threads of torch",
        "autotl:resnet10",
        "on this machine (shipped)",
    ):
        assert word in printed
    assert "plugin linear_probe" in printed and "autotl weights fetch timm:resnet18.a1_in1k" in printed


def test_a_library_that_is_missing_or_too_old(monkeypatch):
    really = metadata.version

    def version(name):
        if name == "timm":
            raise metadata.PackageNotFoundError(name)
        return {"optuna": "3.1", "onnxscript": "0.1"}.get(name) or really(name)

    monkeypatch.setattr(checks.metadata, "version", version)
    printed = doctor(code=1)
    assert "✗ timm" in printed and "not installed" in printed and "pip install 'timm>=" in printed
    assert "✗ optuna" in printed and "optuna 3.1 is installed, >=" in printed
    assert "onnxscript 0.1 is installed" in printed and "pip install 'onnxscript>=0.3'" in printed
    assert printed.endswith("2 problems to fix.\n")  # what is only missed by an extra is not wrong


def test_a_full_disk_and_a_folder_that_cannot_be_written(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10, 9, 1_000_000_000))
    printed = doctor("--home", tmp_path / "studies", code=1)
    assert (
        "✗ workspace" in printed
        and "1 GB free" in printed
        and "free some space, or choose another folder: --home DIR" in printed
    )
    monkeypatch.setattr(checks.os, "access", lambda place, how: False)
    assert "cannot be written" in doctor(code=1)


def test_plugins_that_are_broken_or_skipped(monkeypatch):
    class Broken:
        @hookimpl
        def register_strategies(self, register):
            raise ZeroDivisionError("no strategies today")

    class Short:
        @hookimpl
        def register_strategies(self, register):
            register("short", lambda: self, summary="For a test")

        def suggest(self, trial): ...

    class Unmarked:
        def register_strategies(self, register): ...

    really = Host.from_environment

    def host(plugins=()):
        made = really()
        made.add(Broken(), "broken")
        made.add(Short(), "short")
        made.add(Unmarked(), "unmarked")
        made.add(ModuleType("empty"), "empty")
        return made

    monkeypatch.setattr(Host, "from_environment", host)
    monkeypatch.setenv("AUTOTL_DISABLE_PLUGINS", "timm_family, fine_tuning, reference_")
    printed = doctor(code=1)
    assert "✗ plugin short" in printed and "its suggest(trial) cannot be called as suggest(trial, context)" in printed
    assert "✗ plugin unmarked" in printed and "register_strategies is not marked with @autotl.hookimpl" in printed
    assert "✗ plugin empty" in printed and "plugin 'empty' (not installed) registers nothing" in printed
    assert (
        "✗ plugin broken" in printed
        and "ZeroDivisionError: no strategies today" in printed
        and "pip uninstall" in printed
    )
    assert "plugin timm_family" in printed and "disabled by AUTOTL_DISABLE_PLUGINS" in printed
    assert "timm:resnet18" not in printed
    assert (
        "Unknown plugin 'reference_'. Did you mean 'reference'" in printed
        and "correct AUTOTL_DISABLE_PLUGINS" in printed
    )


def test_a_data_set(tmp_path):
    for label, shade in (("a", 40), ("b", 200)):
        (tmp_path / "data" / label).mkdir(parents=True)
        for n in range(8):
            Image.new("RGB", (12, 9), (shade, n, 7)).save(tmp_path / "data" / label / f"{n}.png")
    printed = doctor(tmp_path / "data", "--cache-dir", tmp_path / "cache")
    assert (
        "layout" in printed and "2; images of each: 'a' 8, 'b' 8" in printed and printed.endswith("No problem found.\n")
    )
    found = json.loads(doctor(tmp_path / "data", "--cache-dir", tmp_path / "cache", "--json"))
    assert found["contents"]["images"] == 16 and found["error"] is None
    (tmp_path / "data" / "b").rename(tmp_path / "b")
    printed = doctor(tmp_path / "data", "--cache-dir", tmp_path / "cache", code=1)
    assert "only one class" in " ".join(printed.split()) and printed.endswith("1 problem to fix.\n")


def test_checks_as_json(tmp_path):
    """A plugin's check lists what it registers, by kind."""
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "from autotl import hookimpl\n"
        "@hookimpl\ndef register_metrics(register):\n    register('all-right', Metric, summary='')\n"
        "@hookimpl\ndef register_objectives(register):\n"
        "    register('hinge', Loss, summary='')\n    register('squared', Loss, summary='')\n"
        "class Metric:\n    greater_is_better = True\n    def __call__(self, labels, probabilities): ...\n"
        "class Loss:\n    def suggest(self, trial, context): ...\n    def build(self, params): ...\n"
    )
    found = json.loads(doctor("--json", "--plugin", plugin))
    assert {"what", "found", "advice", "wrong"} == set(found[0])
    by_plugin = {check["what"]: check["found"] for check in found}
    names = "fine-tune, lp-ft, gradual-unfreeze, work-backwards, full, scratch"
    assert by_plugin["plugin fine_tuning"].endswith(f": strategies {names}")
    assert by_plugin["plugin mine.py"].endswith(": objectives hinge, squared; metrics all-right")
