"""`autotl export`: the model, for those who do not have autotl."""

from pathlib import Path

import click

from autotl.cli import completion, options
from autotl.report import output


@click.command()
@click.argument("model", metavar="STUDY|BUNDLE", shell_complete=completion.models)
@click.option(
    "--format",
    "form",
    type=click.Choice(["bundle", "torch-export", "onnx"]),
    default="onnx",
    show_default=True,
    help="bundle: as autotl reads it; torch-export: a traced graph for PyTorch; onnx: for ONNX Runtime and others.",
)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder. [default: NAME-FORMAT]")
@click.option(
    "--images",
    type=click.Path(exists=True, path_type=Path),
    help="Images on which the export is compared with the model. [default: those of the study]",
)
@options.home
@options.cache_dir
def command(
    model: str, form: str, out: Path | None, images: Path | None, home: Path | None, cache_dir: Path | None
) -> None:
    """Write the model of a study or a bundle into a folder of its own.

    The graph takes images as uint8 [N, 3, S, S] and gives probabilities [N, classes]; beside it lie
    preprocessing.json with a short reference in Pillow and NumPy, and a script that predicts. Before anything
    is left there, real image files go through both and must come out as from the model itself.

    \b
    autotl export digits --format onnx
    autotl export digits --format torch-export --out model/
    python model/predict.py photo.jpg
    """
    from autotl import api
    from autotl.report import words

    loaded = api.load(model, device="cpu", home=home, cache_dir=cache_dir)
    folder = out or Path(f"{Path(model).resolve().name}-{form}")
    for line in words.exported(loaded.export(form, folder, images or ())):
        output.echo(line)
