"""Compares the arms of an experiment over target sets, backbones and seeds.

    python studies/compare.py /tmp/work --digits digits --arm all=full --arm some=fine-tune,lp-ft --out results.json

An arm is a separate search with some of the strategies. All arms have the same number of trials, images and splits.
From each target set of sets.py every seed draws images of each class to learn from and others to test on.

Every finished search is a line of WORK/runs.jsonl. The same command resumes where it stopped. Several may run in
parallel: each search is run by one of them. The summary, paired over seeds with Student's 95 % interval, is written
to `--out`, a plot of the accuracy of a linear classifier on each cut to `--picture`.
"""

import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations, product
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import click
import numpy as np
import sets
import torch
from filelock import FileLock, Timeout
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from pydantic import TypeAdapter
from scipy import stats

from autotl.files import append_line, read_lines, write
from autotl.host import Host
from autotl.study.search import Search
from autotl.study.select import by_cut
from autotl.study.settings import Settings
from autotl.study.watch import Silent
from autotl.tracking.probe import read_probe

LINE = TypeAdapter(dict[str, Any])
Folder = click.Path(exists=True, file_okay=False, path_type=Path)
File = click.Path(dir_okay=False, path_type=Path)


class Cell(NamedTuple):
    """Identifies a comparison."""

    target: str
    images: int
    backbone: str
    trials: int


class Key(NamedTuple):
    """Identifies a search; unique in the log."""

    target: str
    images: int
    backbone: str
    seed: int
    arm: str
    strategies: str
    """The strategies of the arm, as given on the command line."""
    trials: int

    @property
    def cell(self) -> Cell:
        """What the arms and seeds of one comparison share."""
        return Cell(self.target, self.images, self.backbone, self.trials)


Runs = Mapping[Key, Mapping[str, Any]]


@click.command(context_settings={"show_default": True})
@click.argument("work", type=click.Path(file_okay=False, path_type=Path))
@click.option("--digits", type=Folder)
@click.option("--cifar10", type=Folder)
@click.option("--exclude", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="From overlap.py.")
@click.option("--signs", type=Folder)
@click.option("--expressions", type=Folder)
@click.option("--arm", "arms", multiple=True, required=True, metavar="NAME=STRATEGY,…", help="The best one first.")
@click.option("--backbone", "backbones", multiple=True, default=["autotl:resnet10"])
@click.option("--images", multiple=True, default=[100], help="Training images per class.")
@click.option("--seeds", default=5)
@click.option("--trials", default=8, help="Trials of each search.")
@click.option("--out", type=File, help="Write the summary of all finished searches here.")
@click.option("--picture", type=File)
def main(
    work: Path,
    digits: Path | None,
    cifar10: Path | None,
    exclude: Path | None,
    signs: Path | None,
    expressions: Path | None,
    arms: tuple[str, ...],
    backbones: tuple[str, ...],
    images: tuple[int, ...],
    seeds: int,
    trials: int,
    out: Path | None,
    picture: Path | None,
) -> None:
    """Search each arm for each target set, backbone and seed, and compare them."""
    torch.set_num_threads(1)
    work.mkdir(parents=True, exist_ok=True)
    given = sets.given(digits, cifar10, exclude, signs, expressions)
    strategies = {name: named for name, _, named in (arm.partition("=") for arm in arms)}
    log = work / "runs.jsonl"
    for seed, target, count in product(range(seeds), given, images):
        table = sets.draw(given[target], work / f"{target}-{count}-{seed}.csv", count, seed)
        for backbone, arm in product(backbones, strategies):
            key = Key(target, count, backbone, seed, arm, strategies[arm], trials)
            name = f"{table.stem}-{backbone.replace(':', '-')}-{arm}-{strategies[arm]}-{trials}"
            try:
                with FileLock(work / f"{name}.lock", timeout=0):
                    if key not in read(log):
                        found = {**key._asdict(), **search(table, key, name, work)}
                        append_line(log, json.dumps(found))
                        click.echo(json.dumps(found))
            except Timeout:
                pass  # another process runs it
    runs = {key: run for key, run in read(log).items() if strategies.get(key.arm) == key.strategies}
    summary, depths = list(compared(runs, list(strategies))), list(cuts(runs))
    for row in (*summary, *depths):
        click.echo(json.dumps(row))
    if out:
        facts = {"threads": 1, "torch": torch.__version__, "summary": summary, "cuts": depths, "runs": [*runs.values()]}
        write(out, json.dumps(facts, indent=1) + "\n")
    if picture:
        drawn(depths).savefig(picture, dpi=110)


def search(table: Path, key: Key, name: str, work: Path) -> dict[str, Any]:
    """Run a search and return the winner and its accuracy."""
    settings = Settings(
        data=table,
        trials=key.trials,
        strategies=tuple(key.strategies.split(",")),
        backbones=(key.backbone,),
        seed=key.seed,
        device="cpu",
        study=name,
        reruns=0,
        compare=False,
        mlflow=False,
        home=work / "studies",
        cache_dir=work / "cache",
    )
    made = Search(settings, Host(), Silent(), began=time.monotonic())
    result = made.run()
    plan = result.best.plan
    return {
        "test": result.test.value,
        "tested": result.test.images,
        "val": result.best.validation,
        "strategy": result.best.strategy,
        "cut": plan.cut,
        "frozen": plan.phases[-1].frozen,
        "augmentation": plan.augmentation.name,
        "size": plan.input.size,
        "probe": by_cut(read_probe(made.folder)),
    }


def read(log: Path) -> Runs:
    """The runs in the log so far."""
    return {Key(*(run[field] for field in Key._fields)): run for run in read_lines(log, LINE.validate_python)}


def cells(keys: Iterable[Key]) -> list[Cell]:
    return list(dict.fromkeys(key.cell for key in keys))


def compared(runs: Runs, arms: Sequence[str]) -> Iterator[dict[str, Any]]:
    """For each cell the means over seeds, and the paired gain of each arm over those named after it."""
    for cell in cells(runs):
        tests: dict[str, dict[int, float]] = {arm: {} for arm in arms}
        for key, run in runs.items():
            if key.cell == cell:
                tests[key.arm][key.seed] = run["test"]
        seeds = sorted(set.intersection(*map(set, tests.values())))
        if len(seeds) < 2:
            continue
        values = {arm: np.array([tests[arm][seed] for seed in seeds]) for arm in arms}
        means = {arm: round(float(each.mean()), 6) for arm, each in values.items()}
        gains = {f"{one} - {other}": paired(values[one] - values[other]) for one, other in combinations(arms, 2)}
        yield cell._asdict() | {"n": len(seeds), **means, **gains}


def paired(gain: np.ndarray) -> list[float]:
    """The mean of differences over seeds, and the ends of its 95 % interval."""
    mean, half = gain.mean(), stats.t.ppf(0.975, len(gain) - 1) * gain.std(ddof=1) / np.sqrt(len(gain))
    return [round(float(value), 6) for value in (mean, mean - half, mean + half)]


def cuts(runs: Runs) -> Iterator[dict[str, Any]]:
    """For each cell the probe's accuracy at each cut, mean over seeds, and how many linear probes won with each cut."""
    for cell in cells(runs):
        mine = {key: run for key, run in runs.items() if key.cell == cell}
        probes = [*{key.seed: run["probe"] for key, run in mine.items()}.values()]  # the same for all arms
        seen = {cut: round(float(np.mean([probe[cut] for probe in probes])), 4) for cut in probes[0]}
        won = Counter(run["cut"] for run in mine.values() if run["strategy"] == "linear-probe")
        yield cell._asdict() | {"probe": seen, "won": dict(won)}


def drawn(depths: Sequence[Mapping[str, Any]]) -> Figure:
    """For each target set a panel: the accuracy of a linear classifier on each cut, by the cut's depth."""
    panels = list(dict.fromkeys((row["target"], row["images"]) for row in depths))
    figure = Figure(figsize=(4 * len(panels), 4), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for row in depths:
            if (row["target"], row["images"]) == panel:
                values = list(row["probe"].values())
                shares = [(at + 1) / len(values) for at in range(len(values))]
                axes.plot(shares, values, marker="o", markevery=[int(np.argmax(values))], label=row["backbone"])
        axes.set_title("{}, {} images a class".format(*panel))
        axes.set_xlabel("cut, as a share of the stages")
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("accuracy of a linear classifier on held-out images")
    figure.axes[0].legend()
    return figure


if __name__ == "__main__":
    main()
