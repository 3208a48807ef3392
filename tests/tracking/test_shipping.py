"""The process that logs to MLflow, replaced by a small one."""

import sys
import time

import pytest

from autotl.tracking import shipping
from autotl.tracking.folder import StudyFolder

BEGIN = f"""#!{sys.executable}
import os, signal, sys
from pathlib import Path
from subprocess import run
starts = Path("starts")
starts.write_text(str(number := int(starts.read_text()) + 1 if starts.exists() else 1))
"""


@pytest.fixture
def ship(tmp_path, monkeypatch):
    """`ship(program)`: runs the program, which knows its `number` of starts; returns the process and its notes."""
    monkeypatch.chdir(tmp_path)

    def start(program):
        (file := tmp_path / "python").write_text(BEGIN + program)
        file.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(file))
        folder = StudyFolder(tmp_path / "studies" / "stripes")
        folder.path.mkdir(parents=True)
        said = []
        return shipping.Shipping(folder, "sqlite:///mlflow.db", tmp_path, said.append), said

    return start


def until(happens):
    end = time.monotonic() + 20
    while not happens():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_process_that_dies_is_restarted_with_a_note(ship):
    shipped, said = ship(
        "os.kill(os.getpid(), signal.SIGKILL) if number == 1 else print('here', flush=True)\n"
        "sys.exit(bool(sys.stdin.read()))"
    )
    until(lambda: "here" in said)
    assert said == ["The process that logs to MLflow was killed by signal 9. It is restarted.", "here"]
    assert not shipped.wait(0)
    shipped.leave()
    assert shipped.wait(20) and not shipped.failed


def test_the_search_comes_first(ship):
    shipped, said = ship("while os.nice(0) < 19: pass\nprint('here', flush=True)\nsys.stdin.read()")
    until(lambda: "here" in said)
    shipped.leave()
    assert shipped.wait(20) and not shipped.failed


def test_a_process_that_dies_after_the_end_of_the_search_is_restarted_too(ship):
    shipped, said = ship("sys.stdin.read()\nos.kill(os.getpid(), signal.SIGKILL) if number == 1 else print('all')")
    shipped.leave()
    assert shipped.wait(20) and not shipped.failed
    assert said[-1] == "all"


def test_a_process_that_dies_after_every_start_is_given_up(ship):
    shipped, said = ship("sys.exit('no such module')")
    assert shipped.wait(20) and shipped.failed
    assert len(said) == shipping.RESTARTS + 1
    assert said[0] == "The process that logs to MLflow ended with exit code 1 (no such module). It is restarted."
    assert said[-1].endswith(f"It is not restarted. {shipping.LATER}")
    shipped.leave()


def test_a_process_that_has_reported_missing_entries_is_not_restarted(ship):
    shipped, said = ship(f"print('lacks it')\nsys.exit({shipping.NOT_ALL})")
    assert shipped.wait(20) and shipped.failed
    assert said == ["lacks it"]


def test_a_module_in_the_working_folder_hides_none_of_pythons_own(ship, tmp_path):
    (tmp_path / "timeit.py").write_text("raise SystemExit(1)")
    shipped, said = ship("sys.exit(run([sys.orig_argv[0], '-c', 'import timeit']).returncode)")
    assert shipped.wait(20) and not shipped.failed, said
