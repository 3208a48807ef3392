"""Measures what the choice among the plans of a search costs: the regret of several rules on the same trials.

    python studies/selection/regret.py /tmp/work --digits digits --images 5 --images 20 --out results.json

Every cell is a search on images that are drawn from a target set of sets.py. Afterwards each complete plan is refit on
all images except the test images and tested, and the plans that a rule may look at are rerun. The regret of a rule is
the best test accuracy of all plans minus that of the plan that the rule chooses.

Every finished cell is a line of WORK/runs.jsonl. The same command resumes where it stopped. Several may run in
parallel: each cell is done by one of them. The summary, with Student's 95 % interval over the draws, paired where rules
are compared, is written to `--out`.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

import click
import numpy as np
import sets
import torch
from runs import File, Log, paired, search

from autotl.backbones.catalogue import Catalogue
from autotl.engine.bench import Bench
from autotl.engine.fit import fit, on_all_images
from autotl.engine.scale import Scale
from autotl.errors import TrainingError
from autotl.files import write
from autotl.host import Host
from autotl.plan import TransferPlan
from autotl.study import select
from autotl.study.pick import contending, simplest
from autotl.study.reruns import with_turn

Plans = Sequence[Mapping[str, Any]]
"""The plans of a search, best first."""
OLD_TURNS, TURNS = 2, 4
"""How often plans are rerun on the same `val`, and in other divisions of the images."""


class Key(NamedTuple):
    """Identifies a cell; unique in the log."""

    target: str
    images: int
    seed: int
    trials: int


@click.command(context_settings={"show_default": True})
@click.argument("work", type=click.Path(file_okay=False, path_type=Path))
@sets.options
@click.option("--backbone", default="autotl:resnet10")
@click.option("--strategies", help="Names or globs, separated by commas.  [default: all]")
@click.option("--images", multiple=True, default=[5, 20, 50], help="Images per class outside the test split.")
@click.option("--seeds", default=5, help="Draws of each set and size.")
@click.option("--trials", default=12, help="Trials of each search.")
@click.option("--minutes", default=float("inf"), help="Start no further cell after this time.")
@click.option("--out", type=File, help="Write the summary of all finished cells here.")
def main(
    work: Path,
    targets: Mapping[str, sets.Classes],
    backbone: str,
    strategies: str | None,
    images: tuple[int, ...],
    seeds: int,
    trials: int,
    minutes: float,
    out: Path | None,
) -> None:
    """Search each target set at each size, and measure the regret of each rule."""
    log, began = Log(work / "runs.jsonl", work), time.monotonic()
    for seed, count, target in product(range(seeds), images, targets):
        if time.monotonic() - began < 60 * minutes:
            key = Key(target, count, seed, trials)
            table = sets.draw(targets[target], work / f"{target}-{count}-{seed}.csv", count, seed)
            log.fill(key._asdict(), lambda name: timed(table, key, name, backbone, strategies, work))  # noqa: B023
    runs = read(log)
    summary = list(summarised(runs))
    for row in summary:
        click.echo(json.dumps(row))
    if out:
        write(out, json.dumps({"threads": 1, "torch": torch.__version__, "summary": summary, "runs": [*runs.values()]}))


def timed(table: Path, key: Key, name: str, backbone: str, strategies: str | None, work: Path) -> dict[str, Any]:
    """The plans of a search, and the processor time that they took."""
    started = time.process_time()
    plans = measured(table, key, name, backbone, strategies, work)
    return {"seconds": round(time.process_time() - started), "plans": plans}


def measured(
    table: Path, key: Key, name: str, backbone: str, strategies: str | None, work: Path
) -> list[dict[str, Any]]:
    """The plans of a search, best first, with their test accuracy, and the values of the reruns of finalists."""
    _, folder = search(
        table,
        work,
        name,
        trials=key.trials,
        backbones=(backbone,),
        strategies=strategies or (),
        seed=key.seed,
        refit=False,
    )
    bench = Bench.open(table, [], Catalogue(Host(), work / "cache"), "cpu", seed=key.seed)
    board = select.leaderboard(folder.log.records(), bench.scale, bench.dataset.fingerprint)
    labels = bench.dataset.open_test(work / "openings.jsonl", plan="all", trials=key.trials)
    finalists = contending(select.finalists(board), bench.dataset.independent("val"), bench.scale)
    plans = []
    for place, record in enumerate(board):
        plan = select.plan_of(record)
        refit = fit(on_all_images(plan, record.metrics, bench), bench)
        known = [select.value_of(record)]
        turns = (TURNS if plan.trainings else select.HEAD_TURNS) if record in finalists else 0
        divided = [value(with_turn(plan, turn, divided=True), bench) for turn in range(1, turns + 1)]
        old = OLD_TURNS if place < select.BEST and plan.trainings else 0
        same = [value(with_turn(plan, turn, divided=False), bench) for turn in range(1, old + 1)]
        plans.append(
            {
                "trial": record.number,
                "strategy": record.params["strategy"],
                "complexity": select.complexity(record),
                "test": float((refit.logits("test").argmax(1) == labels).mean()),
                "same_val": known + same,
                "divided": known + divided,
            }
        )
    return plans


def value(plan: TransferPlan, bench: Bench) -> float | None:
    """The accuracy on `val`; None if the training fails."""
    try:
        return fit(plan, bench).metrics["val.accuracy"]
    except TrainingError:
        return None


def read(log: Log) -> Mapping[Key, Mapping[str, Any]]:
    """The cells in the log so far."""
    return {Key(*(run[field] for field in Key._fields)): run for run in log.read()}


def before(plans: Plans) -> int:
    """Of the three best plans the one with the best mean over seeds, on the same images."""
    able = [at for at, plan in enumerate(plans[: select.BEST]) if None not in plan["same_val"]]
    return max(able, key=lambda at: float(np.mean(plans[at]["same_val"])))


def after(plans: Plans, turns: int, *, simple: bool) -> int:
    """What a search chooses after so many reruns in other divisions of the images."""
    able = [at for at, plan in enumerate(plans) if len(plan["divided"]) > 1 and None not in plan["divided"]]
    heads = [at for at in able if not plans[at]["complexity"][0]]
    best_head = max(heads, key=lambda at: float(np.mean(plans[at]["divided"])), default=None)
    left = [at for at in able if plans[at]["complexity"][0] or at == best_head]
    left.sort(key=lambda at: -float(np.mean(plans[at]["divided"][: turns + 1])))
    if not simple:
        return left[0]
    values = np.array([plans[at]["divided"][: turns + 1] for at in left])
    order, _ = simplest(values, [plans[at]["complexity"] for at in left], images=1, scale=Scale())
    return left[order[0]]


RULES: dict[str, Callable[[Plans], int]] = {
    "before": before,
    "best": partial(after, turns=2, simple=False),
    "simplest": partial(after, turns=2, simple=True),
    "best, 4 reruns": partial(after, turns=4, simple=False),
    "simplest, 4 reruns": partial(after, turns=4, simple=True),
}


def summarised(runs: Mapping[Key, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """For all sizes together and each by itself, and for all sets together and each by itself: the mean regret of each
    rule in points, what it gains over `before`, and how often it chose a head on frozen features."""
    sizes: list[int | None] = [None, *sorted({key.images for key in runs})]
    targets: list[str | None] = [None, *sorted({key.target for key in runs})]
    for images, target in product(sizes, targets):
        those = [key for key in runs if images in (None, key.images) and target in (None, key.target)]
        some = [runs[key]["plans"] for key in those]
        if not some:
            continue
        row: dict[str, Any] = {"images": images or "all", "target": target or "all", "n": len(some)}
        regrets = {name: np.array([regret(plans, rule(plans)) for plans in some]) for name, rule in RULES.items()}
        for name, values in regrets.items():
            row[name] = {"regret": round(float(values.mean()), 2)}
            row[name]["heads"] = sum(not plans[RULES[name](plans)]["complexity"][0] for plans in some)
            if len(some) > 1:
                row[name]["interval"] = paired(values)[1:]
                row[name]["gain"] = paired(regrets["before"] - values)
        yield row


def regret(plans: Plans, chosen: int) -> float:
    """By how many points the chosen plan's test accuracy is below that of the best plan."""
    return 100 * (max(plan["test"] for plan in plans) - plans[chosen]["test"])


if __name__ == "__main__":
    main()
