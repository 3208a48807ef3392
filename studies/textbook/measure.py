"""Trains the setups of the textbook, one by one, on target sets of different size and similarity.

    python studies/textbook/measure.py /tmp/textbook --digits digits --signs Sign-Language-Digits-Dataset \
        --cifar10 CIFAR-10-images --exclude same.txt --expressions facial_expressions --images 10 --images 100

From each target set of sets.py every seed draws `--images` of each class to learn from and 60 others of each to test
on. Each setup of setups.py is a search with one trial, so all of them have the same images and splits; the trial's own
model is tested, without a refit. The situation of the set is measured as `autotl advise` does.

Every finished run is a line of `--log`. The same command resumes where it stopped, first with one seed for all
sets, then with the next. Several may run in parallel.
"""

# ruff: noqa: E402, because the modules of the parent folder are found first

import fnmatch
import sys
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import click
import sets
from runs import Log, search
from setups import SETUPS, Setup

from autotl.host import Host
from autotl.study.advising import Advising
from autotl.study.settings import Settings
from autotl.study.watch import Silent


@click.command(context_settings={"show_default": True})
@click.argument("work", type=click.Path(file_okay=False, path_type=Path))
@sets.options
@click.option("--backbone", "backbones", multiple=True, default=["autotl:resnet10"])
@click.option("--weights", multiple=True, metavar="BACKBONE=FILE")
@click.option("--images", "amounts", multiple=True, default=[10, 100], help="Images of each class to learn from.")
@click.option("--setup", "globs", multiple=True, default=["*"], metavar="GLOB")
@click.option("--seeds", default=5)
@click.option("--log", "file", type=click.Path(dir_okay=False, path_type=Path), default=HERE / "runs.jsonl")
def main(
    work: Path,
    targets: Mapping[str, sets.Classes],
    backbones: tuple[str, ...],
    weights: tuple[str, ...],
    amounts: tuple[int, ...],
    globs: tuple[str, ...],
    seeds: int,
    file: Path,
) -> None:
    """Train each setup on each target set, backbone and seed."""
    log = Log(file, work)
    files = dict(each.split("=", 1) for each in weights)
    setups = [name for name in SETUPS if any(fnmatch.fnmatch(name, glob) for glob in globs)]
    for seed, images, target, backbone in product(range(seeds), amounts, targets, backbones):
        table = sets.draw(targets[target], work / f"{target}-{images}-{seed}.csv", images, seed)
        cell = {"target": target, "images": images, "backbone": backbone, "seed": seed}
        options = {"backbones": (backbone,), "weights": {backbone: files[backbone]} if backbone in files else {}}
        log.fill({**cell, "setup": "advice"}, lambda _: advice(table, work, seed=seed, **options))  # noqa: B023
        for name in setups:
            log.fill(
                {**cell, "setup": name},
                lambda study: trained(table, work, study, SETUPS[name], seed=seed, **options),  # noqa: B023
            )


def advice(table: Path, work: Path, **options: Any) -> dict[str, Any]:
    """What `autotl advise` measures."""
    settings = Settings.of({"data": table, "device": "cpu", "cache_dir": work / "cache", **options})
    found = Advising(settings, Host(), Silent()).run()
    similarity = found.similarity
    return {
        "per_class": found.per_class,
        "gain": round(similarity.gain, 4),
        "fall": round(similarity.fall, 4),
        "best": similarity.best.cut,
        "late": similarity.late.cut,
        "situations": found.situations,
        "suggested": found.suggested,
    }


def trained(table: Path, work: Path, study: str, setup: Setup, **options: Any) -> dict[str, Any]:
    """The accuracy of the only trial, on `val` and on the test images, and its time."""
    result, _ = search(
        table,
        work,
        study,
        trials=1,
        strategies=(setup.strategy,),
        set=setup.changed,
        refit=False,
        **setup.options,
        **options,
    )
    return {
        "test": result.test.value,
        "tested": result.test.images,
        "val": result.best.validation,
        "seconds": round(result.best.metrics["seconds"], 1),
        "cut": result.best.plan.cut,
        "frozen": result.best.plan.phases[-1].frozen,
        "plan": result.best.plan.hash,
    }


if __name__ == "__main__":
    main()
