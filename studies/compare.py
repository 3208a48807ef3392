"""Compares the arms of an experiment over target sets, backbones and seeds.

    python studies/compare.py /tmp/work --digits digits --arm all=full --arm some=fine-tune,lp-ft --out results.json

An arm is a separate search with some of the strategies. All arms have the same number of trials, images and splits.
From each target set of sets.py every seed draws images of each class to learn from and others to test on.

Every finished search is a line of WORK/runs.jsonl. The same command resumes where it stopped. Several may run in
parallel: each search is run by one of them. The summary, paired over seeds with Student's 95 % interval, is written
to `--out`, a plot of the accuracy of a linear classifier on each cut to `--picture`.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations, product
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import sets
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from runs import File, Log, paired, search

from autotl.files import write
from autotl.study.select import by_cut
from autotl.tracking.probe import read_probe


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
@sets.options
@click.option("--arm", "arms", multiple=True, required=True, metavar="NAME=STRATEGY,…", help="The best one first.")
@click.option("--backbone", "backbones", multiple=True, default=["autotl:resnet10"])
@click.option("--images", multiple=True, default=[100], help="Training images per class.")
@click.option("--seeds", default=5)
@click.option("--trials", default=8, help="Trials of each search.")
@click.option("--out", type=File, help="Write the summary of all finished searches here.")
@click.option("--picture", type=File)
def main(
    work: Path,
    targets: Mapping[str, sets.Classes],
    arms: tuple[str, ...],
    backbones: tuple[str, ...],
    images: tuple[int, ...],
    seeds: int,
    trials: int,
    out: Path | None,
    picture: Path | None,
) -> None:
    """Search each arm for each target set, backbone and seed, and compare them."""
    strategies = {name: named for name, _, named in (arm.partition("=") for arm in arms)}
    log = Log(work / "runs.jsonl", work)
    for seed, target, count in product(range(seeds), targets, images):
        table = sets.draw(targets[target], work / f"{target}-{count}-{seed}.csv", count, seed)
        for backbone, arm in product(backbones, strategies):
            key = Key(target, count, backbone, seed, arm, strategies[arm], trials)
            log.fill(key._asdict(), lambda name: searched(table, key, name, work))  # noqa: B023
    runs = {key: run for key, run in read(log).items() if strategies.get(key.arm) == key.strategies}
    summary, depths = list(compared(runs, list(strategies))), list(cuts(runs))
    for row in (*summary, *depths):
        click.echo(json.dumps(row))
    if out:
        facts = {"threads": 1, "torch": torch.__version__, "summary": summary, "cuts": depths, "runs": [*runs.values()]}
        write(out, json.dumps(facts, indent=1) + "\n")
    if picture:
        drawn(depths).savefig(picture, dpi=110)


def searched(table: Path, key: Key, name: str, work: Path) -> dict[str, Any]:
    """Run a search and return the winner and its accuracy."""
    strategies = tuple(key.strategies.split(","))
    result, folder = search(
        table, work, name, trials=key.trials, strategies=strategies, backbones=(key.backbone,), seed=key.seed
    )
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
        "probe": by_cut(read_probe(folder)),
    }


def read(log: Log) -> Runs:
    """The runs in the log so far."""
    return {Key(*(run[field] for field in Key._fields)): run for run in log.read()}


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
