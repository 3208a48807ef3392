"""Compares what training does about unequal classes: nothing, class weights, balanced sampling, focal loss.

    python studies/unequal.py /tmp/unequal --digits digits --seeds 5 --out results.json

Of each target set of sets.py every seed draws between `--fewest` and `--most` images of a class to learn from, as many
in proportion from each class to the next, in a random order of the classes, and 60 others of each class to test on.
Each arm is a search with one trial, the first guess of a strategy, on the same images and splits. As the test images
are of equal classes, their accuracy is the balanced accuracy. Effective weights are not an arm: for classes of up to a
hundred images they are the balanced ones.

Every finished search is a line of WORK/runs.jsonl. The same command resumes where it stopped.
"""

import csv
import json
from collections import defaultdict
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

ARMS: dict[str, dict[str, Any]] = {
    "none": {},
    "balanced weights": {"set": {"class_weights": "balanced"}},
    "balanced sampling": {"techniques": ("balanced-sampling",), "set": {"sampling": "balanced"}},
    "focal": {"objectives": ("focal",), "set": {"focal.gamma": 2.0}},
    "focal, balanced weights": {"objectives": ("focal",), "set": {"focal.gamma": 2.0, "class_weights": "balanced"}},
}
FROZEN = ("none", "balanced weights")
"""The arms of a strategy without gradient descent."""


@click.command(context_settings={"show_default": True})
@click.argument("work", type=click.Path(file_okay=False, path_type=Path))
@sets.options
@click.option("--strategy", "strategies", multiple=True, default=["linear-probe", "full"])
@click.option("--fewest", default=5, help="Images of the smallest class.")
@click.option("--most", default=100, help="Images of the largest class.")
@click.option("--seeds", default=5)
@click.option("--out", type=File, help="Write the summary of all finished searches here.")
def main(
    work: Path,
    targets: Mapping[str, sets.Classes],
    strategies: tuple[str, ...],
    fewest: int,
    most: int,
    seeds: int,
    out: Path | None,
) -> None:
    """Train each arm on each target set, and compare each with the arm that does nothing."""
    log = Log(work / "runs.jsonl", work)
    for seed, target, strategy in product(range(seeds), targets, strategies):
        table = work / f"{target}-{fewest}-{most}-{seed}.csv"
        unequal(targets[target], table, fewest, most, seed)
        for arm in FROZEN if strategy == "linear-probe" else ARMS:
            key = {"images": [fewest, most], "target": target, "strategy": strategy, "arm": arm, "seed": seed}
            log.fill(key, lambda name: trained(table, key, name, work))  # noqa: B023
    runs = log.read()
    summary = list(compared(runs, [fewest, most]))
    for row in summary:
        click.echo(json.dumps(row))
    if out:
        facts = {"threads": 1, "torch": torch.__version__, "summary": summary, "runs": runs}
        write(out, json.dumps(facts, indent=1) + "\n")


def compared(runs: Sequence[Mapping[str, Any]], images: Sequence[int]) -> Iterator[dict[str, Any]]:
    """The mean of each arm over the seeds, and its paired gain over the arm that does nothing."""
    tests: dict[tuple[str, str, str], dict[int, float]] = defaultdict(dict)
    for run in runs:
        if run["images"] == images:
            tests[run["target"], run["strategy"], run["arm"]][run["seed"]] = run["test"]
    for (target, strategy, arm), found in tests.items():
        plain = tests[target, strategy, "none"]
        both = sorted(found.keys() & plain.keys())
        if len(both) > 1:
            values, others = (np.array([each[seed] for seed in both]) for each in (found, plain))
            row = {"target": target, "strategy": strategy, "arm": arm, "n": len(both)}
            yield row | {"test": round(float(values.mean()), 6), "gain": paired(values - others)}


def unequal(classes: sets.Classes, table: Path, fewest: int, most: int, seed: int) -> None:
    """Write a manifest with images of unequal classes to learn from, and of equal ones to test on."""
    drawn = sets.manifest(sets.draw(classes, table, most, seed))
    order = np.random.default_rng(seed).permutation(list(classes))
    counts = np.geomspace(fewest, most, len(order)).round().astype(int)
    left = dict(zip(order, counts.tolist(), strict=True))
    kept = []
    for line in drawn:
        if line["split"] == "":
            left[line["label"]] -= 1
        if line["split"] or left[line["label"]] >= 0:
            kept.append(line)
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["path", "label", "split"])
        writer.writeheader()
        writer.writerows(kept)


def trained(table: Path, key: dict[str, Any], name: str, work: Path) -> dict[str, Any]:
    """The accuracy of the only trial, trained on all images except the test images."""
    arm = dict(ARMS[key["arm"]])
    result, _ = search(
        table,
        work,
        name,
        trials=1,
        strategies=(key["strategy"],),
        backbones=("autotl:resnet10",),
        metric="balanced-accuracy",
        seed=key["seed"],
        **{**arm, "set": {"class_weights": "none", **arm.get("set", {})}},
    )
    recalls = {name: found.recall for name, found in result.test.classes.items()}
    return {"test": result.test.value, "val": result.best.validation, "recalls": recalls, "plan": result.final.hash}


if __name__ == "__main__":
    main()
