"""`autotl predict`: the model at work."""

import csv
import json
import sys
from pathlib import Path

import click

from autotl.cli import completion, options
from autotl.report import output


@click.command()
@click.argument("model", metavar="STUDY|BUNDLE", shell_complete=completion.models)
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--format", "form", type=click.Choice(["csv", "json"]), default="csv", show_default=True)
@options.device
@options.home
@options.cache_dir
def command(
    model: str, images: tuple[Path, ...], form: str, device: str, home: Path | None, cache_dir: Path | None
) -> None:
    """Classify IMAGES, files or folders, with the model of a study or a bundle.

    Prints path, class and probability of each image. One that cannot be read has an empty class and the
    reason in the column `problem`; the exit code is then 1.

    \b
    autotl predict digits photo.jpg more-photos/
    autotl predict autotl-studies/digits/bundle photos/ --format json
    """
    from autotl import api

    loaded = api.load(model, device=device, home=home, cache_dir=cache_dir).bundle
    rows = []
    for file, answer in loaded.predict(api.files_in(images)):
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
    if form == "json":
        output.echo(json.dumps(rows, indent=1))
    else:
        writer = csv.DictWriter(sys.stdout, ["path", "class", "probability", "problem"])
        writer.writeheader()
        writer.writerows(rows)
    if any(row["problem"] for row in rows):
        sys.exit(1)
