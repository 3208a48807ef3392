"""Compares a linear-probe search with a linear probe written by hand.

    python studies/linear-probe/against_by_hand.py DATA squeezenet1_0.safetensors --out results.json

By hand: torchvision's SqueezeNet, its last features averaged, scikit-learn's StandardScaler and
LogisticRegression with its defaults, fitted on every image that is not in the test split. autotl:
20 trials on the same backbone with the same weights; all images outside the test split are divided into
train, early_stop and val. DATA is an image folder without splits; every seed splits it again, and both
sides are measured on the same test images. The margin for "no worse" is 1.5 points.
"""

import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import click
import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from scipy.stats import t as student
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torchvision import models, transforms

BACKBONE = "torchvision:squeezenet1_0"
MARGIN = 1.5


@click.command()
@click.argument("data", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("weights", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--seeds", default=5, show_default=True)
@click.option("--trials", default=20, show_default=True)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path))
def main(data: Path, weights: Path, seeds: int, trials: int, out: Path | None) -> None:
    torch.set_num_threads(1)
    files = sorted(file for file in data.rglob("*") if file.is_file())
    features = dict(zip((str(file.relative_to(data)) for file in files), last_features(files, weights), strict=True))
    rows = []
    with tempfile.TemporaryDirectory() as home:
        for seed in range(seeds):
            found = search(data, weights, seed, trials, Path(home))
            hand = by_hand(Path(home) / f"seed{seed}" / "data" / "split.csv", features)
            rows.append({"seed": seed, "autotl": 100 * found["test"]["value"], "by_hand": 100 * hand,
                         "test_images": found["test"]["images"], "cut": found["best"]["plan"]["cut"],
                         "pooling": found["best"]["plan"]["head"]["pooling"],
                         "validation": 100 * found["best"]["validation"]})  # fmt: skip
            click.echo(json.dumps(rows[-1]))
    differences = [row["autotl"] - row["by_hand"] for row in rows]
    mean = statistics.mean(differences)
    half = float(student.ppf(0.975, seeds - 1)) * statistics.stdev(differences) / seeds**0.5
    summary = {"mean_difference": mean, "low": mean - half, "high": mean + half, "margin": MARGIN,
               "no_worse": mean - half > -MARGIN, "runs": rows}  # fmt: skip
    click.echo(f"autotl minus by hand: {mean:+.2f} points, 95 % interval {mean - half:+.2f} to {mean + half:+.2f}")
    if out:
        out.write_text(json.dumps(summary, indent=2) + "\n")


def search(data: Path, weights: Path, seed: int, trials: int, home: Path) -> dict:
    words = [
        sys.executable, "-m", "autotl", "search", str(data), "--trials", str(trials), "--seed", str(seed),
        "--backbones", BACKBONE, "--strategies", "linear-probe", "--weights", f"{BACKBONE}={weights}",
        "--study", f"seed{seed}", "--home", str(home), "--device", "cpu", "--json",
    ]  # fmt: skip
    return json.loads(subprocess.run(words, stdout=subprocess.PIPE, check=True).stdout)


def by_hand(split: Path, features: dict[str, np.ndarray]) -> float:
    """Accuracy on the test images of a classifier fitted on all other images."""
    table = list(csv.DictReader(split.open()))
    sides = [[row for row in table if (row["split"] == "test") == test] for test in (False, True)]
    (x, y), (test_x, test_y) = (
        (np.stack([features[row["path"]] for row in side]), [row["label"] for row in side]) for side in sides
    )
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(x, y)
    return float(classifier.score(test_x, test_y))


@torch.no_grad()
def last_features(files: list[Path], weights: Path) -> np.ndarray:
    """[N, 512]: SqueezeNet's last features, averaged over the image."""
    model = models.squeezenet1_0()
    model.load_state_dict(load_file(weights))
    model.eval()
    prepare = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    rows = []
    for start in range(0, len(files), 32):
        images = torch.stack([prepare(Image.open(file).convert("RGB")) for file in files[start : start + 32]])
        rows.append(model.features(images).mean((2, 3)))
    return torch.cat(rows).numpy()


if __name__ == "__main__":
    main()
