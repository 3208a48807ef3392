"""`autotl predict`: classifies images."""

import csv
import io
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path

import click

from autotl.cli import completion, options
from autotl.report import output

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
"""First characters that a spreadsheet treats as a formula."""


@click.command()
@click.argument("model", metavar="STUDY|BUNDLE", shell_complete=completion.models)
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--format", "form", type=click.Choice(["csv", "json"]), default="csv", show_default=True, help="Output format."
)
@options.device
@options.plugins
@options.home
@options.cache_dir
def command(
    model: str,
    images: tuple[Path, ...],
    form: str,
    device: str,
    plugins: tuple[Path, ...],
    home: Path | None,
    cache_dir: Path | None,
) -> None:
    """Classify IMAGES, files or folders, with the model of a study or a bundle.

    Prints path, class and probability of each image. An image that cannot be read has an empty class and the
    reason in the column `problem`; the exit code is then 1.

    The CSV is UTF-8; a file name that is not UTF-8 keeps its bytes (in JSON: \\udc80 to \\udcff). A path that
    starts with =, +, - or @ would be a formula in a spreadsheet, so ./ is put before it, which names the same
    file. Class names are never changed: import them as text.

    \b
    autotl predict digits photo.jpg more-photos/
    autotl predict autotl-studies/digits/bundle photos/ --format json
    """
    from autotl import api

    loaded = api.load(model, device=device, home=home, cache_dir=cache_dir, plugins=plugins).bundle
    files = api.files_in(images)
    rows = []
    for file, answer in zip(files, loaded.predict(files), strict=True):
        row: dict[str, object] = {"path": str(file), "class": "", "probability": "", "problem": ""}
        if isinstance(answer, str):
            row["problem"] = answer
        else:
            row["class"], row["probability"] = loaded.classes[answer.argmax()], round(float(answer.max()), 6)
            if form == "json":
                row["probabilities"] = {
                    name: round(float(value), 6) for name, value in zip(loaded.classes, answer, strict=True)
                }
        rows.append(row)
    output.write(json.dumps(rows, indent=1) + "\n" if form == "json" else _csv(rows))
    if any(row["problem"] for row in rows):
        sys.exit(1)


def _csv(rows: Iterable[dict[str, object]]) -> str:
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, ["path", "class", "probability", "problem"], lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, "path": _no_formula(str(row["path"]))} for row in rows)
    return table.getvalue()


def _no_formula(path: str) -> str:
    """A path to the same file that no spreadsheet treats as a formula: file names may be hostile."""
    return os.path.join(".", path) if path.startswith(FORMULA) else path
