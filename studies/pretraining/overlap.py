"""Finds images of a target set that are in the training set of the shipped backbones, too.

    python studies/pretraining/overlap.py tiny-imagenet-200/train CIFAR-10-images/train --out same.txt --pairs pairs.png

Every image becomes a perceptual hash of 64 bits (the signs of the lowest frequencies of its cosine transform about
their median, as in Zauner 2010), which survives resizing and compression. For each image of the target the nearest
of the source is found. If it is near, the two are compared pixel by pixel at 32 px. Pairs that agree count as the
same picture and are listed, and the pairs that agree most are drawn side by side for a check by eye.
"""

import json
from pathlib import Path

import click
import numpy as np
from PIL import Image
from scipy.fft import dctn

SIDE, LOW = 32, 8
DISTANCES = (0, 2, 4, 6, 8, 10)
NEAR = 12
"""Bits within which a pair is compared pixel by pixel."""
SAME = 0.75
"""Pairs with at least this correlation of pixels count as one picture; it finds too many rather than too few."""
SUFFIXES = {".jpg", ".jpeg", ".png"}
CHUNK = 256
SHOWN = 80


@click.command(context_settings={"show_default": True})
@click.argument("source", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("target", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="List shared images of TARGET here.")
@click.option("--pairs", type=click.Path(dir_okay=False, path_type=Path), help="Draw the pairs that agree most here.")
def main(source: Path, target: Path, out: Path | None, pairs: Path | None) -> None:
    """Find the images of TARGET that are in SOURCE too."""
    theirs, ours = files(source), files(target)
    known, asked = hashes(theirs), hashes(ours)
    nearest, distance = closest(asked, known)
    counts = {str(limit): int((distance <= limit).sum()) for limit in DISTANCES}
    near = np.flatnonzero(distance <= NEAR)
    agreement = np.array([correlation(ours[at], theirs[nearest[at]]) for at in near])
    order = near[agreement.argsort(kind="stable")[::-1]]
    same = order[: int((agreement >= SAME).sum())]
    report = {"source": len(theirs), "target": len(ours), "within this many bits": counts, "the same": len(same)}
    click.echo(json.dumps(report))
    if out:
        out.write_text("".join(f"{ours[at].relative_to(target)}\n" for at in sorted(same)))
    if pairs:
        draw([(ours[at], theirs[nearest[at]]) for at in order[:SHOWN]], pairs)


def files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)


def hashes(paths: list[Path]) -> np.ndarray:
    """[N] uint64."""
    weights = 2 ** np.arange(LOW * LOW, dtype=np.uint64)
    found = np.empty(len(paths), np.uint64)
    for at, path in enumerate(paths):
        with Image.open(path) as image:
            grey = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.float32)
        low = dctn(grey, norm="ortho")[:LOW, :LOW].ravel()
        found[at] = weights[low > np.median(low[1:])].sum()
    return found


def correlation(one: Path, two: Path) -> float:
    """Correlation of two images' pixels at 32 px, all channels together; 0 if one of them has a single colour."""
    values = []
    for path in (one, two):
        with Image.open(path) as image:
            small = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        values.append(np.asarray(small, np.float64).ravel())
    return 0.0 if min(map(np.ptp, values)) == 0 else float(np.corrcoef(*values)[0, 1])


def closest(asked: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each hash in `asked` the index of the nearest known one, and how many bits differ."""
    nearest = np.empty(len(asked), np.int64)
    distance = np.empty(len(asked), np.int64)
    for start in range(0, len(asked), CHUNK):
        bits = np.bitwise_count(asked[start : start + CHUNK, None] ^ known)
        nearest[start : start + CHUNK] = bits.argmin(1)
        distance[start : start + CHUNK] = bits.min(1)
    return nearest, distance


def draw(pairs: list[tuple[Path, Path]], file: Path) -> None:
    """Draw each pair side by side, eight pairs per row."""
    side, across = 64, 8
    rows = -(-len(pairs) // across)
    sheet = Image.new("RGB", (across * (2 * side + 8), rows * (side + 8)), "white")
    for at, pair in enumerate(pairs):
        x, y = at % across * (2 * side + 8), at // across * (side + 8)
        for which, path in enumerate(pair):
            with Image.open(path) as image:
                sheet.paste(image.convert("RGB").resize((side, side)), (x + which * side, y))
    sheet.save(file)


if __name__ == "__main__":
    main()
