"""Compares what a search measures about operations on images with what they do to fine-tuning.

    python studies/operations.py /tmp/operations --digits digits --seeds 3 --out results.json

Of each target set of sets.py every seed draws `--images` of each class to learn from and 60 others of each class to
test on. A search measures on frozen features which operations the images allow (autotl/engine/operations.py). For each
operation of `--train` the network is then fine-tuned with and without it: half of the images are changed.

Every finished measurement and every finished training is a line of WORK/runs.jsonl. The same command resumes where it
stopped.
"""

import json
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import click
import numpy as np
import sets
import torch
from runs import File, Log, paired, search
from torch import Tensor

from autotl import hookimpl
from autotl.backbones.catalogue import Catalogue
from autotl.contracts import BatchTransform, Draw
from autotl.engine import probe
from autotl.engine.bench import Bench
from autotl.engine.operations import measured, operations_of
from autotl.files import write
from autotl.host import Host

LENGTH = 0.0
"""Of the training, as a share of the range that a search draws from: 10 epochs."""
MEASURED_ON, TRAINED = "autotl:convnext", "autotl:resnet10"


class Half:
    """An operation on half of the images."""

    def __init__(self, operation: BatchTransform) -> None:
        self._operation = operation

    def suggest(self, trial: Any, context: Any) -> dict[str, Any]:
        return {}

    def build(self, params: dict[str, Any]) -> BatchTransform:
        def transform(images: Tensor, draw: Draw) -> Tensor:
            (chance,) = draw(1).unbind(1)
            changed = self._operation(images, draw)
            assert isinstance(changed, Tensor)
            return torch.where((chance < 0.5).view(-1, 1, 1, 1), changed, images)

        return transform


class Halves:
    """A plugin with an augmentation for each operation."""

    def __init__(self, operations: Mapping[str, BatchTransform]) -> None:
        self._operations = operations

    @hookimpl
    def register_augmentations(self, register: Any) -> None:
        for name, operation in self._operations.items():
            register(_registered(name), partial(Half, operation), summary=f"{name} of half of the images")


@click.command(context_settings={"show_default": True})
@click.argument("work", type=click.Path(file_okay=False, path_type=Path))
@sets.options
@click.option("--images", default=60, help="Images of each class to learn from.")
@click.option("--train", multiple=True, default=["mirroring", "turning upside down"], help="Operations to train with.")
@click.option("--seeds", default=3)
@click.option("--out", type=File, help="Write the summary of all finished runs here.")
def main(
    work: Path,
    targets: Mapping[str, sets.Classes],
    images: int,
    train: tuple[str, ...],
    seeds: int,
    out: Path | None,
) -> None:
    """Measure each target set, train with each operation, and compare."""
    torch.set_num_threads(1)
    log = Log(work / "runs.jsonl", work)
    for seed, arm, target in product(range(seeds), ("measured", "nothing", *train), targets):
        table = sets.draw(targets[target], work / f"{target}-{images}-{seed}.csv", images, seed)
        key = {"target": target, "images": images, "seed": seed, "arm": arm}
        if arm == "measured":
            log.fill(key, lambda _: {"operations": measure(table, seed, work)})  # noqa: B023
        else:
            log.fill(key, lambda name: {"test": trained(table, seed, arm, name, work)})  # noqa: B023
    runs = [run for run in log.read() if run["images"] == images]
    summary = list(summarised(runs))
    for row in summary:
        click.echo(json.dumps(row))
    if out:
        facts = {"threads": 1, "torch": torch.__version__, "summary": summary, "runs": runs}
        write(out, json.dumps(facts, indent=1) + "\n")


def measure(table: Path, seed: int, work: Path) -> list[dict[str, Any]]:
    """What a search measures, at the cut that its probe finds best."""
    host = Host()
    catalogue = Catalogue(host, work / "cache")
    bench = Bench.open(table, [catalogue.card(MEASURED_ON).input], catalogue, "cpu", seed=seed)
    network = catalogue.network(MEASURED_ON, seed)
    labels = bench.labels("train", "early_stop")
    units = bench.units("train", "early_stop")

    def accuracy(cut: str, pooling: Any) -> float:
        features = bench.features.read(network, cut, pooling, bench.shas("train", "early_stop"))
        return probe.ridge_accuracy(features, labels, len(bench.dataset.classes), units)

    stages = catalogue.info(MEASURED_ON).stages
    cells = [(stage.name, pooling) for stage in stages for pooling in stage.poolings]
    cut, pooling = max(cells, key=lambda cell: accuracy(*cell))
    began = time.process_time()
    found = measured(bench, network, cut, pooling, operations_of(host.augmentations), seed)
    seconds = time.process_time() - began
    return [{**asdict(each), "harmful": each.harmful, "cpu_seconds": seconds} for each in found]


def trained(table: Path, seed: int, arm: str, name: str, work: Path) -> float:
    """The test accuracy of the whole network, fine-tuned with an operation on half of the images, or `nothing`."""
    host = Host()
    host.add(Halves(operations_of(host.augmentations)), "halves")
    result, _ = search(
        table,
        work,
        name,
        host,
        trials=1,
        strategies=("full",),
        backbones=(TRAINED,),
        augmentations=("none" if arm == "nothing" else _registered(arm),),
        seed=seed,
        set={"recipe.length": LENGTH},
    )
    return result.test.value


def summarised(runs: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """For each target set and operation what was measured, and the gain in test accuracy, both over the seeds."""
    tests: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
    effects: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for run in runs:
        for each in run.get("operations", ()):
            effects[run["target"], each["operation"]].append(each)
        if "test" in run:
            tests[run["target"], run["arm"]][run["seed"]] = run["test"]
    for (target, operation), found in effects.items():
        row = {
            "target": target,
            "operation": operation,
            "n": len(found),
            "together - apart": round(float(np.mean([each["together"] - each["apart"] for each in found])), 4),
            "harmful": sum(each["harmful"] for each in found),
        }
        with_it, without = tests[target, operation], tests[target, "nothing"]
        both = sorted(with_it.keys() & without.keys())
        if len(both) > 1:
            row["trained"] = len(both)
            row["gain"] = paired(np.array([with_it[seed] - without[seed] for seed in both]))
        yield row


def _registered(operation: str) -> str:
    return f"half-{operation.replace(' ', '-')}"


if __name__ == "__main__":
    main()
