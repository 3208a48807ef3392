"""Measures how much faster a search is with several processes, in pairs: alone, with N workers, alone, …

    python studies/workers.py /tmp/workers --digits digits --workers 2 --pairs 5

The work is fixed: twelve mixed trials, none pruned, with reruns, refit and comparisons, on 300 training and 600 test
images. Each run has empty caches and one thread for each process. Its wall time counts from start to end, imports
included. The machine should do nothing else.
"""

# ruff: noqa: E402, because the modules beside this script are found first

import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import click
import sets

IMAGES = 30
"""Of each class to learn from."""
SEARCH = (
    *("--trials", "12", "--no-prune", "--no-mlflow", "--device", "cpu"),
    *("--backbones", "autotl:resnet10", "--strategies", "fine-tune,full,lp-ft"),
)


@click.command(context_settings={"show_default": True})
@click.argument("place", metavar="WORK", type=click.Path(file_okay=False, path_type=Path))
@click.option("--digits", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--workers", default=2, type=click.IntRange(2))
@click.option("--pairs", default=5, type=click.IntRange(1))
def main(place: Path, digits: Path, workers: int, pairs: int) -> None:
    """Time the same search alone and with workers."""
    place.mkdir(parents=True, exist_ok=True)
    data = sets.draw(sets.by_folder(digits), place.resolve() / "digits.csv", IMAGES, 0)
    ratios = []
    for pair in range(pairs):
        alone, shared = (seconds(place.resolve(), data, number) for number in (1, workers))
        ratios.append(alone / shared)
        click.echo(
            f"pair {pair + 1}: alone {alone:.1f} s, {workers} workers {shared:.1f} s, {ratios[-1]:.2f} times as fast"
        )
    click.echo(f"{statistics.mean(ratios):.2f} times as fast ({min(ratios):.2f} to {max(ratios):.2f}, n = {pairs})")


def seconds(place: Path, data: Path, workers: int) -> float:
    """The wall time of a search with empty caches."""
    for name in ("home", "cache"):
        shutil.rmtree(place / name, ignore_errors=True)
    folders = ("--home", place / "home", "--cache-dir", place / "cache")
    words = (sys.executable, "-m", "autotl", "search", data, "--workers", str(workers), *SEARCH, *folders)
    began = time.monotonic()
    done = subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=HERE.parent)
    if done.returncode:
        raise click.ClickException(done.stderr[-2000:])
    return time.monotonic() - began


if __name__ == "__main__":
    main()
