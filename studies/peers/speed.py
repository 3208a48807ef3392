"""Measures what a search costs, against the script that people write and against the least that it could cost.

    python studies/peers/speed.py /tmp/speed --data ants-bees --weights squeezenet1_0.safetensors

DATA has `train/` and `test/`, each with a folder for each class. The work is fixed: 10 or 50 trials of a head on the
frozen network, or 10 trials that search the cut, what is frozen and the learning rate, with 10 epochs each. Each run is
a process of its own on one thread, with empty caches and compiled bytecode, and runs of different arms alternate: A B C
A B C. Time is the processor time of a process and of those that it started, from start to end.

    floor             importing torch, and one pass over every image: arms/floor.py
    script            Optuna, ImageFolder and DataLoader: arms/script.py
    autotl            the same work: without baselines (`--no-compare`), reruns and MLflow, which the script has not
    autotl, default   with them
    NAME              the same work by the autotl in FOLDER: `--also NAME=FOLDER`, such as an earlier version

A finished run is a line of WORK/runs.jsonl, and the same command continues where it stopped. It ends with a table;
`--out` gets its figures as JSON. `--work` and `--arm` limit what is run, not what the table shows.
"""

# ruff: noqa: E402, because autotl is found beside this script

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

import click
from pydantic import TypeAdapter

from autotl.files import append_line, read_lines, write

LINE = TypeAdapter(dict[str, Any])
BACKBONE = "torchvision:squeezenet1_0"
EPOCHS = 10
"""Of the mixed trials of both; autotl's may stop before."""
SAME_WORK = ("--no-compare", "--no-mlflow", "--reruns", "0")


class Work(NamedTuple):
    """What is searched, with the options of both searches for it."""

    trials: int
    script: tuple[str, ...]
    autotl: tuple[str, ...]


HEADS = ("--strategies", "linear-probe")
MIXED = ("--strategies", "fine-tune", "--augmentations", "flip", "--set", "recipe.length=0")
WORKS = {
    "10 heads": Work(10, ("--kind", "head"), HEADS),
    "50 heads": Work(50, ("--kind", "head"), HEADS),
    "10 mixed": Work(10, ("--kind", "mixed", "--epochs", str(EPOCHS)), MIXED),
}
GOALS = {"10 heads": 15, "50 heads": 50, "10 mixed": 5}
"""How many times the script's processor time should be that of autotl."""
FLOOR, SCRIPT, OWN, DEFAULT = "floor", "script", "autotl", "autotl, default"


class Key(NamedTuple):
    """Identifies a run."""

    work: str
    arm: str
    repeat: int


Runs = Mapping[Key, Mapping[str, Any]]
Folder = click.Path(exists=True, file_okay=False, path_type=Path)
File = click.Path(exists=True, dir_okay=False, path_type=Path)


def checkouts(ctx: click.Context, option: click.Parameter, values: tuple[str, ...]) -> dict[str, Path]:
    pairs = [value.partition("=") for value in values]
    for name, _, folder in pairs:
        if not (Path(folder) / "autotl").is_dir():
            raise click.BadParameter(f"{name}={folder}: no folder autotl in it")
    return {name: Path(folder).resolve() for name, _, folder in pairs}


@click.command()
@click.argument("place", metavar="WORK", type=click.Path(file_okay=False, path_type=Path))
@click.option("--data", required=True, type=Folder)
@click.option("--weights", required=True, type=File, help="Of SqueezeNet 1.0, with torchvision's names.")
@click.option("--pairs", default=3, show_default=True, type=click.IntRange(1))
@click.option("--work", "works", multiple=True, type=click.Choice([*WORKS]), help="[default: all]")
@click.option("--arm", "arms", multiple=True, help="[default: all]")
@click.option("--also", multiple=True, callback=checkouts, metavar="NAME=FOLDER")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path))
def main(
    place: Path,
    data: Path,
    weights: Path,
    pairs: int,
    works: tuple[str, ...],
    arms: tuple[str, ...],
    also: dict[str, Path],
    out: Path | None,
) -> None:
    place.mkdir(parents=True, exist_ok=True)
    place, data, weights = place.resolve(), data.resolve(), weights.resolve()
    log = place / "runs.jsonl"
    known = [FLOOR, SCRIPT, OWN, DEFAULT, *also]
    if unknown := set(arms).difference(known):
        raise click.BadParameter(f"--arm {', '.join(sorted(unknown))}; known are {', '.join(known)}")
    keys = list(planned(works or tuple(WORKS), arms or tuple(known), pairs))
    lacking = [key for key in keys if key not in read(log)]
    if lacking:
        warm_up(place, data, weights, also)
    for number, key in enumerate(lacking, 1):
        click.echo(f"{number} of {len(lacking)}: {key.work}, {key.arm}, run {key.repeat + 1}")
        append_line(
            log, json.dumps({**key._asdict(), **measured(command(key, place, data, weights), place, key.arm, also)})
        )
    runs = read(log)
    for line in table(runs):
        click.echo(line)
    if out:
        write(out, json.dumps(summary(runs), indent=1, ensure_ascii=False) + "\n")


def planned(works: Sequence[str], arms: Sequence[str], pairs: int) -> Iterator[Key]:
    """The runs in their order. The floor is the same for all work, so each repeat has it once."""
    for repeat in range(pairs):
        for work in works:
            for arm in arms:
                if arm != FLOOR:
                    yield Key(work, arm, repeat)
                elif work == works[0]:
                    yield Key("", FLOOR, repeat)


def read(log: Path) -> dict[Key, dict[str, Any]]:
    lines = read_lines(log, LINE.validate_python) if log.exists() else ()
    return {Key(line["work"], line["arm"], line["repeat"]): line for line in lines}


def command(key: Key, place: Path, data: Path, weights: Path, trials: int | None = None) -> list[str]:
    """The words of a run; `trials` replaces the number of the work."""
    if key.arm == FLOOR:
        return [str(HERE / "arms" / "floor.py"), str(data), "--weights", str(weights)]
    work = WORKS[key.work]
    count = ["--trials", str(trials or work.trials)]
    if key.arm == SCRIPT:
        network = ["--backbone", "squeezenet1_0", "--weights", str(weights), "--seed", str(key.repeat)]
        return [str(HERE / "arms" / "script.py"), str(data), *network, *count, *work.script]
    return [
        *("-m", "autotl", "search", str(data), *count, "--seed", str(key.repeat), "--device", "cpu", "--json"),
        *("--backbones", BACKBONE, "--weights", f"{BACKBONE}={weights}", *work.autotl),
        *("--study", "speed", "--home", str(place / "home"), "--cache-dir", str(place / "cache")),
        *(() if key.arm == DEFAULT else SAME_WORK),
    ]


def measured(words: Sequence[str], place: Path, arm: str, also: Mapping[str, Path]) -> dict[str, Any]:
    """What a run cost, with the load of the machine before it and the accuracies that it found."""
    for name in ("home", "cache"):
        shutil.rmtree(place / name, ignore_errors=True)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"PYTHONPATH": str(also.get(arm, ROOT)), "PYTHONPYCACHEPREFIX": str(place / "bytecode")}
    environment |= {"OMP_NUM_THREADS": "1"}
    # `python -m` looks in the working folder first, which may be another checkout.
    load, began = os.getloadavg()[0], time.monotonic()
    with open(place / "out", "w+") as out, open(place / "errors", "w") as errors:
        process = subprocess.Popen([sys.executable, *words], stdout=out, stderr=errors, env=environment, cwd=place)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.monotonic() - began
        out.seek(0)
        printed = out.read()
    if process.returncode:
        raise click.ClickException(f"{arm} failed: {(place / 'errors').read_text()[-2000:]}")
    found = json.loads(printed if printed.startswith("{\n") else printed.splitlines()[-1])
    return {
        "cpu_s": used.ru_utime + used.ru_stime,
        "wall_s": wall,
        "load": load,
        **({"parts": found} if arm == FLOOR else accuracies(found)),
    }


def accuracies(found: Mapping[str, Any]) -> dict[str, float]:
    if "best" in found and "validation" in found["best"]:
        return {"val": found["best"]["validation"], "test": found["test"]["value"]}
    return {"val": found["val"], "test": found["test"]}


def warm_up(place: Path, data: Path, weights: Path, also: Mapping[str, Path]) -> None:
    """Compile bytecode and read libraries and images from the disk, in runs that do not count."""
    click.echo("warming up")
    for arm in (FLOOR, SCRIPT, DEFAULT, *also):
        work = "" if arm == FLOOR else "10 heads"
        measured(command(Key(work, arm, 0), place, data, weights, trials=1), place, arm, also)


def table(runs: Runs) -> Iterator[str]:
    """Processor and wall seconds of each arm, and its ratios to the script and to the floor, in Markdown."""
    yield "| work | arm | n | CPU s | wall s | × less than the script | × the floor | test accuracy |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in summary(runs)["rows"]:
        cells = [row["work"] or "every image once", row["arm"], row["n"], *map(spread, (row["cpu_s"], row["wall_s"]))]
        cells += [spread(row["script_over_it"]), spread(row["over_floor"]), spread(row["test"], 100)]
        yield f"| {' | '.join(map(str, cells))} |"
    parts = [run["parts"] for key, run in runs.items() if key.arm == FLOOR]
    if parts:
        each = ", ".join(f"{name} {spread([part[name] for part in parts])}" for name in parts[0])
        yield f"Processor seconds of the floor's parts: {each}."


def summary(runs: Runs) -> dict[str, Any]:
    """Every figure of the table, run by run. Ratios are of runs of one pair."""
    floors = {key.repeat: run["cpu_s"] for key, run in runs.items() if key.arm == FLOOR}
    rows = []
    for work, arm in dict.fromkeys((key.work, key.arm) for key in sorted(runs)):
        own = {key.repeat: run for key, run in runs.items() if (key.work, key.arm) == (work, arm)}
        scripts = {repeat: runs[key]["cpu_s"] for repeat in own if (key := Key(work, SCRIPT, repeat)) in runs}
        rows.append(
            {
                "work": work,
                "arm": arm,
                "n": len(own),
                "goal": GOALS.get(work) if arm == OWN else None,
                **{name: [run.get(name) for run in own.values()] for name in ("cpu_s", "wall_s", "load", "test")},
                "script_over_it": [scripts[at] / run["cpu_s"] for at, run in own.items() if at in scripts],
                "over_floor": [run["cpu_s"] / floors[at] for at, run in own.items() if at in floors],
            }
        )
    versions = {name: version(name) for name in ("torch", "torchvision", "optuna", "pillow")}
    return {"machine": f"{os.cpu_count()} cores, {platform.machine()}", "versions": versions, "rows": rows}


def spread(values: Sequence[float | None], times: float = 1) -> str:
    """Mean, least and most: `4.1 (3.9 to 4.4)`."""
    known = [times * value for value in values if value is not None]
    if not known:
        return ""
    mean = statistics.mean(known)
    return f"{mean:.3g}" if len(known) == 1 else f"{mean:.3g} ({min(known):.3g} to {max(known):.3g})"


if __name__ == "__main__":
    main()
