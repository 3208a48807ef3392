"""`autotl predict`: classifies images."""

import csv
import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from autotl.cli import completion, options
from autotl.engine.calibration import ENOUGH
from autotl.report import output

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
"""First characters that a spreadsheet treats as a formula."""
UNKNOWN = (
    "Predictions are not called sure or unsure: the model has no record of validation predictions. A new search, or "
    "autotl train with --out, makes a model with one."
)
"""What the user reads instead of `certainty`."""


@click.command()
@click.argument("model", metavar="STUDY|BUNDLE", shell_complete=completion.models)
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--format", "form", type=click.Choice(["csv", "json"]), default="csv", show_default=True, help="Output format."
)
@click.option(
    "--top-k",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="How many classes to print for each image.",
)
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write the output to a file."
)
@options.device
@options.plugins
@options.home
@options.cache_dir
def command(
    model: str,
    images: tuple[Path, ...],
    form: str,
    top_k: int,
    out: Path | None,
    device: str,
    plugins: tuple[Path, ...],
    home: Path | None,
    cache_dir: Path | None,
) -> None:
    """Classify IMAGES, files or folders, with the model of a study or a bundle.

    Prints path, class and probability of each image; with --top-k 3 also class2, probability2, class3 and
    probability3. `certainty` is `unsure` for a probability at which fewer than nine validation predictions of
    ten were right, otherwise `sure`; it is empty, and a note says so, if there were too few to tell. An image
    that cannot be read has an empty class and the reason in the column `problem`; the exit code is then 1.

    The CSV is UTF-8; a file name that is not UTF-8 keeps its bytes (in JSON: \\udc80 to \\udcff). A path that
    starts with =, +, - or @ would be a formula in a spreadsheet, so ./ is put before it, which names the same
    file. Class names are never changed: import them as text.

    \b
    autotl predict digits photo.jpg more-photos/
    autotl predict digits photos/ --top-k 3 --out predictions.csv
    autotl predict autotl-studies/digits/bundle photos/ --format json
    """
    from autotl import api
    from autotl.files import write
    from autotl.report import words

    loaded = api.load(model, device=device, home=home, cache_dir=cache_dir, plugins=plugins).bundle
    files, names, calibration = api.files_in(images), loaded.classes, loaded.calibration
    ranks = range(min(top_k, len(names)))
    columns = [column for rank in ranks for column in _columns(rank)]
    rows = []
    for file, answer in zip(files, loaded.predict(files), strict=True):
        row: dict[str, object] = {"path": str(file), **dict.fromkeys(columns, ""), "certainty": "", "problem": ""}
        if isinstance(answer, str):
            row["problem"] = answer
        else:
            for rank, number in zip(ranks, (-answer).argsort(kind="stable"), strict=False):
                row |= zip(_columns(rank), (names[number], round(float(answer[number]), 6)), strict=True)
            row["certainty"] = calibration.certainty(float(answer.max())) if calibration else ""
            if form == "json":
                row["probabilities"] = {name: round(float(value), 6) for name, value in zip(names, answer, strict=True)}
        rows.append(row)
    text = json.dumps(rows, indent=1) + "\n" if form == "json" else _csv(rows)
    if out:
        write(out, text.encode("utf-8", "surrogateescape"))
        output.echo(f"Written: {out}, {len(rows):,} images.")
    else:
        output.write(text)
    if not calibration or calibration.images < ENOUGH:
        output.echo(words.certain(calibration) if calibration else UNKNOWN, err=True)
    if any(row["problem"] for row in rows):
        sys.exit(1)


def _columns(rank: int) -> tuple[str, str]:
    """The columns of the class of a rank, counted from 0, and of its probability."""
    number = str(rank + 1) if rank else ""
    return f"class{number}", f"probability{number}"


def _csv(rows: Sequence[dict[str, object]]) -> str:
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, "path": _no_formula(str(row["path"]))} for row in rows)
    return table.getvalue()


def _no_formula(path: str) -> str:
    """A path to the same file that no spreadsheet treats as a formula: file names may be hostile."""
    return os.path.join(".", path) if path.startswith(FORMULA) else path
