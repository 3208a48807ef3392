"""Fixtures for searches in processes of their own."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest


@pytest.fixture
def start(tmp_path, tiny_installed, gate):
    """Starts `autotl …` in a process of its own with its output in a file, and ends it after the test."""
    running = []

    def run(*words, **environment):
        output = open(tmp_path / f"{len(running)}-{words[0]}.txt", "w+")  # noqa: SIM115
        words = [sys.executable, "-m", "autotl", *map(str, words)]
        env = {**os.environ, **environment}
        process = subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT, cwd=tmp_path, text=True, env=env)
        process.printed = lambda: Path(output.name).read_text()
        running.append(process)
        return process

    yield run
    for process in running:
        process.kill()
        process.wait()


@pytest.fixture
def until():
    """`until(condition)` waits until the condition holds, and returns its value."""

    def wait(condition, seconds=120):
        began = time.monotonic()
        while not (found := condition()):
            assert time.monotonic() - began < seconds, "it did not come to pass"
            time.sleep(0.05)
        return found

    return wait
