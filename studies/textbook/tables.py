"""Prints what measure.py measured as tables: which setups win where, what is worth searching, and the advice.

python studies/textbook/tables.py [runs.jsonl]
"""

# ruff: noqa: E402, because the modules of the parent folder are found first

import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import click
import numpy as np
from runs import LINE, paired
from setups import SETUPS

from autotl.files import read_lines

FIRST = "fine-tune 1e-3"
"""The first guess of `fine-tune`, with which wider choices are compared."""
SEARCHED = ("fine-tune", "frozen", "cut", "one learning rate")
CHOICES: Mapping[str, Callable[[str], bool]] = {
    "the learning rate": lambda name: name.startswith("fine-tune"),
    "what is frozen": lambda name: name == FIRST or (name.startswith("frozen") and name.endswith("1e-3")),
    "the cut": lambda name: name in (FIRST, "cut at three quarters 1e-3"),
    "one learning rate or falling ones": lambda name: name in (FIRST, "one learning rate 1e-3"),
    "all of these": lambda name: name.startswith(SEARCHED),
    "these and the linear probe": lambda name: name.startswith((*SEARCHED, "linear")),
    "every setup": lambda name: True,
}
"""What a search may choose among, by `val`."""


class Cell(NamedTuple):
    backbone: str
    images: int
    target: str


Runs = Mapping[Cell, Mapping[int, Mapping[str, Mapping[str, Any]]]]
"""By cell, seed and setup."""


@click.command(context_settings={"show_default": True})
@click.argument("log", type=click.Path(exists=True, dir_okay=False, path_type=Path), default=HERE / "runs.jsonl")
def main(log: Path) -> None:
    """Print the tables of the runs in LOG."""
    found: dict[Cell, dict[int, dict[str, Any]]] = defaultdict(lambda: defaultdict(dict))
    for run in read_lines(log, LINE.validate_python):
        found[Cell(run["backbone"], run["images"], run["target"])][run["seed"]][run["setup"]] = run
    for backbone, images in dict.fromkeys((cell.backbone, cell.images) for cell in found):
        cells = {cell.target: found[cell] for cell in found if cell[:2] == (backbone, images)}
        click.echo(f"\n{backbone}, {images} images a class\n")
        for table in (accuracies, worth, advice):
            for line in table(cells):
                click.echo(line)
            click.echo()


def row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def header(*cells: str) -> Iterator[str]:
    yield row(*cells)
    yield f"|{'---|' * len(cells)}"


def complete(seeds: Mapping[int, Mapping[str, Any]], names: Sequence[str]) -> list[int]:
    """The seeds with which all of these setups ran."""
    return [seed for seed, runs in seeds.items() if all(name in runs for name in names)]


def accuracies(cells: Mapping[str, Any]) -> Iterator[str]:
    """The test accuracy of each setup, the mean over the seeds that all setups of a set have."""
    ran = [name for name in SETUPS if all(any(name in runs for runs in seeds.values()) for seeds in cells.values())]
    columns = {target: complete(seeds, ran) for target, seeds in cells.items()}
    yield from header("setup", *(f"{target}, n = {len(seeds)}" for target, seeds in columns.items()))
    tests = {
        target: {name: np.array([cells[target][seed][name]["test"] for seed in seeds]) for name in ran}
        for target, seeds in columns.items()
        if seeds
    }
    best = {target: max(each.values(), key=np.mean) for target, each in tests.items()}
    for name in ran:
        shown = []
        for target, each in tests.items():
            value = f"{100 * each[name].mean():.1f}"
            shown.append(f"**{value}**" if each[name] is best[target] else value)
        yield row(name, *shown)


def worth(cells: Mapping[str, Any]) -> Iterator[str]:
    """What the choice by `val` among some setups gains over the first guess, on the test images, in points."""
    yield from header("chosen by val", "setups", "gain, points", "the best by test would gain", "n")
    for what, belongs in CHOICES.items():
        gains, most, count = [], [], 0
        for seeds in cells.values():
            for runs in seeds.values():
                names = [name for name in SETUPS if name in runs and belongs(name)]
                if FIRST not in runs or len(names) < 2:
                    continue
                count = max(count, len(names))
                first = runs[FIRST]["test"]
                top = max(runs[name]["val"] for name in names)
                # Of setups that are equal on val a search has no reason to take one or the other.
                gains.append(np.mean([runs[name]["test"] for name in names if runs[name]["val"] == top]) - first)
                most.append(max(runs[name]["test"] for name in names) - first)
        if len(gains) > 1:
            yield row(what, count, interval(np.array(gains)), f"{100 * np.mean(most):+.1f}", len(gains))


def interval(gains: np.ndarray) -> str:
    mean, low, high = (100 * value for value in paired(gains))
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"


def advice(cells: Mapping[str, Any]) -> Iterator[str]:
    """What the advice measured for each set, and what the network's training gained over a linear probe."""
    yield from header("set", "gain of pretraining", "fall at the last cut", "situations", "trained − linear probe", "n")
    for target, seeds in cells.items():
        both = complete(seeds, ["advice", "linear probe", FIRST])
        if len(both) < 2:
            continue
        told = [seeds[seed]["advice"] for seed in both]
        situations = ", ".join(dict.fromkeys(" or ".join(each["situations"]) for each in told))
        gains = [seeds[seed][FIRST]["test"] - seeds[seed]["linear probe"]["test"] for seed in both]
        spread = [f"{np.mean([each[name] for each in told]):.3f}" for name in ("gain", "fall")]
        yield row(target, *spread, situations, interval(np.array(gains)), len(both))


if __name__ == "__main__":
    main()
