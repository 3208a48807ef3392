"""Compares an ensemble with its winner alone, on the same test images.

    python studies/ensembles.py /tmp/ensembles --digits digits --models 3 --seeds 5 --out results.json

Of each target set of sets.py every seed draws `--images` images of each class to learn from, and 60 others of each
class to test on. Each is one search with `--ensemble`, which tests the winner alone, too.

Every finished search is a line of WORK/runs.jsonl. The same command resumes where it stopped.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import click
import numpy as np
import sets
import torch
from runs import File, Log, paired, search

from autotl.files import write


@click.command(context_settings={"show_default": True})
@click.argument("work", type=click.Path(file_okay=False, path_type=Path))
@sets.options
@click.option("--strategy", "strategies", multiple=True, default=["linear-probe"])
@click.option("--backbone", "backbones", multiple=True, default=["autotl:*"])
@click.option("--models", default=3)
@click.option("--images", default=20, help="Images of each class to learn from.")
@click.option("--trials", default=12)
@click.option("--seeds", default=5)
@click.option("--out", type=File, help="Write the summary of all finished searches here.")
def main(
    work: Path,
    targets: Mapping[str, sets.Classes],
    strategies: tuple[str, ...],
    backbones: tuple[str, ...],
    models: int,
    images: int,
    trials: int,
    seeds: int,
    out: Path | None,
) -> None:
    """Search each target set with an ensemble, and compare it with the winner alone."""
    log = Log(work / "runs.jsonl", work)
    settings = {"strategies": strategies, "backbones": backbones, "ensemble": models, "trials": trials}
    asked = json.loads(json.dumps({**settings, "images": images}))
    for seed, target in product(range(seeds), targets):
        table = sets.draw(targets[target], work / f"{target}-{images}-{seed}.csv", images, seed)
        key = {"target": target, "seed": seed, **asked}
        log.fill(key, lambda name: averaged(table, work, name, seed=seed, **settings))  # noqa: B023
    runs = [run for run in log.read() if asked.items() <= run.items()]
    summary = list(compared(runs))
    for row in summary:
        click.echo(json.dumps(row))
    if out:
        facts = {"threads": 1, "torch": torch.__version__, "summary": summary, "runs": runs}
        write(out, json.dumps(facts, indent=1) + "\n")


def averaged(table: Path, work: Path, name: str, **settings: Any) -> dict[str, Any]:
    """The accuracy of the ensemble and of its winner alone on the test images, with their costs."""
    began = time.process_time()
    result, _ = search(table, work, name, reruns=4, compare=True, **settings)
    assert result.ensemble, result.skipped
    alone = next(found for name, found in result.comparisons.items() if name.startswith("the winner alone"))
    return {
        "test": result.test.value,
        "alone": alone.value,
        "members": [plan.backbone for plan in result.ensemble.plan.members],
        "flops": [result.best.metrics["flops"], result.ensemble.metrics["flops"]],
        "cpu_seconds": round(time.process_time() - began, 1),
    }


def compared(runs: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """The means over the seeds, and the paired gain of the ensemble."""
    for target in dict.fromkeys(run["target"] for run in runs):
        test, alone, flops = (
            np.array([run[name] for run in runs if run["target"] == target]) for name in ("test", "alone", "flops")
        )
        if len(test) > 1:
            row = {"target": target, "n": len(test), "alone": round(float(alone.mean()), 6)}
            row |= {"ensemble": round(float(test.mean()), 6), "gain": paired(test - alone)}
            yield row | {"flops": round(float((flops[:, 1] / flops[:, 0]).mean()), 2)}


if __name__ == "__main__":
    main()
