"""Does searching what to freeze, where to cut and a rate for each stage pay, and when?

    autotl sample digits digits
    python studies/freeze-cut-rates/compare.py digits --work /tmp/freeze-cut-rates

Digits with 10, 50 and 100 images a class to learn from, and 60 a class to test on, both drawn anew for each
seed. Three arms, each a search of its own with as many trials, on the same images and splits:

    linear-probe   the cut and the pooling are searched
    full           the whole network at one rate; the recipe is searched
    searched       fine-tune, lp-ft and gradual-unfreeze: cut, frozen stages, rates and the recipe are searched

Every finished search is a line of `--work`/runs.jsonl; the same command goes on where it stopped. The summary,
paired over seeds with Student's 95 % interval, goes to results.json beside this file.
"""

import csv
import json
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import click
import numpy as np
import torch
from scipy import stats

from autotl.host import Host
from autotl.study.search import Search
from autotl.study.settings import Settings
from autotl.study.watch import Silent

ARMS = {
    "linear-probe": ("linear-probe",),
    "full": ("full",),
    "searched": ("fine-tune", "lp-ft", "gradual-unfreeze"),
}
TEST = 60


@click.command(context_settings={"show_default": True})
@click.argument("digits", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--seeds", default=5)
@click.option("--trials", default=10, help="Trials of each search.")
@click.option("--images", multiple=True, default=[10, 50, 100], help="Images a class to learn from.")
def main(digits: Path, work: Path, seeds: int, trials: int, images: tuple[int, ...]) -> None:
    """Search each arm for each number of images and each seed, and compare them."""
    torch.set_num_threads(1)
    work.mkdir(parents=True, exist_ok=True)
    log = work / "runs.jsonl"
    runs = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    done = {(run["images"], run["seed"], run["arm"]) for run in runs}
    for seed in range(seeds):
        for count in images:
            table = draw(digits.resolve(), work / f"{count}-{seed}.csv", count, seed)
            for arm, strategies in ARMS.items():
                if (count, seed, arm) in done:
                    continue
                runs.append(
                    {"images": count, "seed": seed, "arm": arm, **search(table, arm, strategies, work, trials, seed)}
                )
                with log.open("a") as file:
                    file.write(json.dumps(runs[-1]) + "\n")
                click.echo(json.dumps(runs[-1]))
    summary = [compare(runs, count) for count in images]
    for row in summary:
        click.echo(json.dumps(row))
    result = {
        "trials": trials,
        "seeds": seeds,
        "threads": 1,
        "torch": torch.__version__,
        "summary": summary,
        "runs": runs,
    }
    (Path(__file__).parent / "results.json").write_text(json.dumps(result, indent=1) + "\n")


def draw(digits: Path, table: Path, count: int, seed: int) -> Path:
    """A manifest with `count` images of each class to learn from and others to test on."""
    rng = np.random.default_rng(seed)
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        for folder in sorted(path for path in digits.iterdir() if path.is_dir()):
            files = rng.permutation(sorted(map(str, folder.iterdir())))
            writer.writerows([path, folder.name, "test"] for path in files[:TEST])
            writer.writerows([path, folder.name, ""] for path in files[TEST : TEST + count])
    return table


def search(table: Path, arm: str, strategies: tuple[str, ...], work: Path, trials: int, seed: int) -> dict:
    settings = Settings(
        data=table,
        trials=trials,
        strategies=strategies,
        backbones=("autotl:resnet10",),
        seed=seed,
        device="cpu",
        study=f"{table.stem}-{arm}",
        reruns=0,
        compare=False,
        home=work / "studies",
        cache_dir=work / "cache",
    )
    result = Search(settings, Host(), Silent(), began=time.monotonic()).run()
    plan = result.best.plan
    return {
        "test": result.test.value,
        "rank": result.best.validation,
        "strategy": result.best.strategy,
        "cut": plan.cut,
        "frozen": plan.phases[-1].frozen,
        "augmentation": plan.augmentation.name,
        "seconds": round(result.seconds, 1),
    }


def compare(runs: list[dict], count: int) -> dict:
    """Means over seeds, and by how much one arm is better than another, paired."""
    by_arm = {
        arm: [
            run["test"]
            for run in sorted(runs, key=lambda run: run["seed"])
            if (run["images"], run["arm"]) == (count, arm)
        ]
        for arm in ARMS
    }
    row: dict = {"images": count, "n": len(by_arm["searched"])}
    for arm, values in by_arm.items():
        row[arm] = round(float(np.mean(values)), 4)
    for one, other in (("searched", "linear-probe"), ("searched", "full"), ("full", "linear-probe")):
        gain = np.subtract(by_arm[one], by_arm[other])
        half = stats.t.ppf(0.975, len(gain) - 1) * gain.std(ddof=1) / np.sqrt(len(gain))
        values = (gain.mean(), gain.mean() - half, gain.mean() + half)
        row[f"{one} - {other}"] = [round(float(value), 4) for value in values]
    return row


if __name__ == "__main__":
    main()
