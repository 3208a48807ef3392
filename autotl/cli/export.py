"""`autotl export`: the model for use without autotl."""

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
    help="bundle: for autotl; torch-export: a graph by torch.export; onnx: for ONNX Runtime and others.",
)
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), help="Folder to write. [default: as in digits-onnx]"
)
@click.option(
    "--images",
    type=options.Existing(),
    help="Images to compare the export with the model on. [default: those of the study]",
)
@options.plugins
@options.home
@options.cache_dir
def command(
    model: str,
    form: str,
    out: Path | None,
    images: Path | None,
    plugins: tuple[Path, ...],
    home: Path | None,
    cache_dir: Path | None,
) -> None:
    """Export the model of a study or a bundle to a new folder.

    The graph takes images as uint8 [N, 3, S, S] and gives probabilities [N, classes]. The folder also has
    the preprocessing, as preprocessing.json and as a short script in Pillow and NumPy, and a script that
    predicts. The export is first compared with the model on real image files; if they disagree, nothing is
    written.

    \b
    autotl export digits --format onnx
    autotl export digits --format torch-export --out model/
    python model/predict.py photo.jpg
    """
    from autotl import api
    from autotl.report import words

    loaded = api.load(model, device="cpu", home=home, cache_dir=cache_dir, plugins=plugins)
    folder = out or Path(f"{Path(model).resolve().name}-{form}")
    for line in words.exported(loaded.export(form, folder, images or ())):
        output.echo(line)
