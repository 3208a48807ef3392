"""Damages every file of a small study in many ways and runs each command on it.

    python tests/campaigns/damaged_studies.py [--only study.json] [--keep FOLDER]

A command may continue, or report the problem in one line. Tracebacks and hangs are faults, and so is a search that
runs other trials than requested. Prints counts and every fault; the exit code is 1 if there is one.
"""

import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}

import click
import torch
from click.testing import CliRunner

from autotl.cli.main import main
from autotl.testing.lab import write_stripes

LIMIT = 60
"""Seconds for one command."""
TRIALS = 2
FINE, ONE_LINE, TRACEBACK, HANG, WRONG = "fine", "one-line error", "traceback", "hang", "wrong"
Damage = Callable[[Path], None]


def damages(file: Path) -> Iterator[tuple[str, Damage]]:
    """Ways to damage a file, by name; the same in every run."""
    yield "missing", Path.unlink
    yield "empty", lambda file: file.write_bytes(b"")
    yield "half", lambda file: os.truncate(file, file.stat().st_size // 2)
    yield "last bytes lost", lambda file: os.truncate(file, max(0, file.stat().st_size - 7))
    yield "zeros", lambda file: file.write_bytes(bytes(file.stat().st_size))
    yield "noise", lambda file: file.write_bytes(random.Random(0).randbytes(file.stat().st_size))
    yield "not UTF-8 at its end", lambda file: file.write_bytes(file.read_bytes() + b"\xff\n")
    yield "a folder", _a_folder
    yield "a pipe", _a_pipe
    for seed in range(4):
        yield f"bit flip {seed}", lambda file, seed=seed: _flip(file, seed)
    if file.suffix in (".json", ".jsonl"):
        for seed in range(4):
            yield f"wrong type {seed}", lambda file, seed=seed: _mistype(file, seed)
        for text in ("{}", "7", "null", "[]", '"text"'):
            yield f"holds {text}", lambda file, text=text: file.write_text(text + "\n")


def _a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def _a_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def _flip(file: Path, seed: int) -> None:
    content, draw = bytearray(file.read_bytes()), random.Random(seed)
    for _ in range(1 + 3 * seed):
        if content:
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    file.write_bytes(content)


def _mistype(file: Path, seed: int) -> None:
    """Change the type of one value of a JSON or JSONL file, or remove the value."""
    draw = random.Random(seed)
    lines = file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]
    at = draw.randrange(len(lines))
    value = json.loads(lines[at])
    places = list(_places(value))
    if places:
        holder, key = draw.choice(places)
        if isinstance(holder, dict) and seed % 2:
            del holder[key]
        else:
            holder[key] = draw.choice([None, "text", -1, [], {}, True])
    lines[at] = json.dumps(value)
    file.write_text("\n".join(lines) + "\n")


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    for key, each in list(value.items()) if isinstance(value, dict) else enumerate(value):
        yield value, key
        if isinstance(each, dict | list):
            yield from _places(each)


def run(words: list[str], output: Path) -> str:
    """Run a command in a process of its own, and return the outcome."""
    child = os.fork()
    if child == 0:
        with output.open("w") as stream, redirect_stdout(stream), redirect_stderr(stream):
            code = 9
            try:
                main(words, standalone_mode=True)
            except SystemExit as ended:
                code = ended.code if isinstance(ended.code, int) else 1
            except BaseException:
                traceback.print_exc()
            stream.flush()
            os._exit(code)
    began = time.monotonic()
    while time.monotonic() - began < LIMIT:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            printed = output.read_text(errors="replace")
            if code not in (0, 1, 2) or "Traceback (most recent call last)" in printed:
                return TRACEBACK
            errors = [line for line in printed.splitlines() if line.startswith("Error: ")]
            return ONE_LINE if code == 2 and len(errors) == 1 else FINE if code in (0, 1) else TRACEBACK
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return HANG


@click.command()
@click.option("--only", default="", help="Only files whose path contains this.")
@click.option("--keep", type=click.Path(path_type=Path), help="Where to work; the files are kept.")
def campaign(only: str, keep: Path | None) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        counts, faults = damage_all(Path(keep or scratch), only)
    width = max(map(len, counts), default=0) + 2
    for command, found in counts.items():
        click.echo(f"{command:<{width}}" + "  ".join(f"{found[kind]:>4} {kind}" for kind in (*found,)))
    for fault in faults:
        click.echo(fault)
    sys.exit(1 if faults else 0)


def damage_all(place: Path, only: str) -> tuple[dict[str, Counter[str]], list[str]]:
    """How often each command had which outcome, and a line about every fault."""
    images = write_stripes(place / "stripes")
    common = ["--cache-dir", str(place / "cache")]
    options = ["--backbones", "reference:edges", "--strategies", "linear-probe", "--reruns", "0", "--no-mlflow"]
    search = ["search", str(images), "--study", "s", *options, *common]
    made = CliRunner().invoke(main, [*search, "--trials", str(TRIALS), "--home", str(place / "whole")])
    assert made.exit_code == 0, made.output
    whole = place / "whole" / "s"
    image = str(next(images.glob("*/*.png")))
    commands = {
        "show": ["show", "s"],
        "studies": ["studies"],
        "predict": ["predict", "s", image, *common],
        "export": ["export", "s", "--format", "bundle", "--out", str(place / "out"), *common],
        "search": [*search, "--trials", str(TRIALS + 1)],
    }
    counts = {command: Counter(dict.fromkeys((FINE, ONE_LINE, TRACEBACK, HANG, WRONG), 0)) for command in commands}
    faults = []
    for file in sorted(path for path in whole.rglob("*") if path.is_file() and only in str(path.relative_to(whole))):
        name = file.relative_to(whole)
        for what, damage in damages(file):
            home = place / "damaged"
            shutil.rmtree(home, ignore_errors=True)
            shutil.copytree(place / "whole", home)
            damage(home / "s" / name)
            for command, words in commands.items():
                shutil.rmtree(place / "out", ignore_errors=True)
                output = place / "output.txt"
                found = run([*words, "--home", str(home)], output)
                if found == FINE and command == "search":
                    numbers = [log.stem for log in sorted((home / "s" / "trials").glob("0*.jsonl"))]
                    found = FINE if numbers == [f"{number:05}" for number in range(TRIALS + 1)] else WRONG
                counts[command][found] += 1
                if found in (TRACEBACK, HANG, WRONG):
                    printed = output.read_text(errors="replace").strip().splitlines()
                    faults.append(f"{command}: {name}, {what}: {found}: {printed[-1] if printed else ''}")
    return counts, faults


if __name__ == "__main__":
    campaign()
