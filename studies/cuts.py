"""Compares rules that choose the cut of a linear probe by the probe's accuracies, on the same features.

    python studies/cuts.py /tmp/cuts --digits digits --images 10 --images 50 --seeds 5 --out studies/cuts.json

From each target set of sets.py every seed draws `--images` of each class to learn from and 60 others of each class to
test on. At every cut and pooling of a backbone the accuracy that a search's probe measures is compared with the test
accuracy of a logistic regression, whose penalty is chosen on `val`. The regret of a rule is the best test accuracy at
any cut minus that at the chosen one.

Every finished cell is a line of WORK/runs.jsonl. The same command resumes where it stopped.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import click
import numpy as np
import sets
import torch
from runs import File, Log, paired

from autotl.backbones.catalogue import Catalogue
from autotl.engine.bench import Bench
from autotl.engine.heads import logistic_path
from autotl.engine.sample import Sample
from autotl.files import write
from autotl.host import Host
from autotl.plan import PENALTIES
from autotl.study import probing

Cells = Sequence[Mapping[str, Any]]
"""The cuts and poolings of a backbone, from the first cut to the last."""


def best(cells: Cells, images: int) -> Mapping[str, Any]:
    """The most accurate one, the first of several."""
    return max(cells, key=lambda cell: cell["probe"])


def last(cells: Cells, images: int) -> Mapping[str, Any]:
    """The last cut, with its most accurate pooling."""
    return best([cell for cell in cells if cell["cut"] == cells[-1]["cut"]], images)


def latest(errors: float) -> Callable[[Cells, int], Mapping[str, Any]]:
    """The last cut that is within so many standard errors of the most accurate one."""

    def choose(cells: Cells, images: int) -> Mapping[str, Any]:
        top = best(cells, images)["probe"]
        least = top - errors * math.sqrt(top * (1 - top) / images)
        near = [cell for cell in cells if cell["probe"] >= least]
        return best([cell for cell in near if cell["cut"] == near[-1]["cut"]], images)

    return choose


RULES = {"best": best, "within 0.5": latest(0.5), "within 1": latest(1.0), "within 2": latest(2.0), "last": last}


@click.command(context_settings={"show_default": True})
@click.argument("work", type=click.Path(file_okay=False, path_type=Path))
@sets.options
@click.option("--backbone", "backbones", multiple=True, default=["autotl:resnet10", "autotl:convnext", "autotl:pvt_v2"])
@click.option("--images", "amounts", multiple=True, default=[10, 50])
@click.option("--seeds", default=5)
@click.option("--out", type=File, help="Write the summary of all finished cells here.")
def main(
    work: Path,
    targets: Mapping[str, sets.Classes],
    backbones: tuple[str, ...],
    amounts: tuple[int, ...],
    seeds: int,
    out: Path | None,
) -> None:
    """Measure each target set and backbone, and compare the rules."""
    torch.set_num_threads(1)
    log = Log(work / "runs.jsonl", work)
    for seed, images, target, backbone in product(range(seeds), amounts, targets, backbones):
        table = sets.draw(targets[target], work / f"{target}-{images}-{seed}.csv", images, seed)
        key = {"target": target, "images": images, "backbone": backbone, "seed": seed}
        log.fill(key, lambda _: measured(table, backbone, seed, work))  # noqa: B023
    runs = log.read()
    summary = list(compared(runs))
    for row in summary:
        click.echo(json.dumps(row))
    if out:
        write(out, json.dumps({"threads": 1, "torch": torch.__version__, "summary": summary, "runs": runs}) + "\n")


def measured(table: Path, backbone: str, seed: int, work: Path) -> dict[str, Any]:
    """At each cut and pooling, the accuracy of the probe and that of a logistic regression on the test images."""
    catalogue = Catalogue(Host(), work / "cache")
    bench = Bench.open(table, [catalogue.card(backbone).input], catalogue, "cpu", seed=seed)
    network, classes = catalogue.network(backbone, seed), len(bench.dataset.classes)
    sample = Sample.of(bench, seed)
    bench.features.fill(network, bench.shas("train", "early_stop", "val", "test"))
    cells = []
    for row in probing.rows(bench, network, sample, lambda done, total: None):

        def features(*splits: Any, row: Any = row) -> torch.Tensor:
            return bench.features.read(network, row.cut, row.pooling, bench.shas(*splits))

        seen = "train", "early_stop"
        heads = logistic_path(features(*seen), bench.labels(*seen), classes, PENALTIES)
        given, right = features("val"), bench.labels("val")
        losses = [torch.nn.functional.cross_entropy(head(given), right).item() for head in heads]
        chosen = heads[int(np.argmin(losses))](features("test")).argmax(1).numpy()
        cells.append({"cut": row.cut, "pooling": row.pooling, "probe": row.accuracy, "predicted": chosen})
    labels = bench.dataset.open_test(work / "openings.jsonl", plan="all", trials=0)
    for cell in cells:
        cell["test"] = float((cell.pop("predicted") == labels).mean())
    return {"sample": len(sample.shas), "cells": cells}


def compared(runs: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """For each size, over all sets and for each: the mean regret of each rule in points, and its gain over `best`."""
    sizes = sorted({run["images"] for run in runs})
    for images, target in product(sizes, [None, *sorted({run["target"] for run in runs})]):
        those = [run for run in runs if run["images"] == images and target in (None, run["target"])]
        regrets = {name: np.array([regret(run, rule) for run in those]) for name, rule in RULES.items()}
        row: dict[str, Any] = {"images": images, "target": target or "all", "n": len(those)}
        for name, values in regrets.items():
            row[name] = {"regret": round(float(values.mean()), 2)}
            if len(those) > 1:
                row[name]["gain"] = paired(regrets["best"] - values)
        yield row


def regret(run: Mapping[str, Any], rule: Callable[[Cells, int], Mapping[str, Any]]) -> float:
    cells = run["cells"]
    return 100 * (max(cell["test"] for cell in cells) - rule(cells, run["sample"])["test"])


if __name__ == "__main__":
    main()
