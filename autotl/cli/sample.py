"""`autotl sample`: a small real data set for a first try."""

from pathlib import Path
from shlex import quote

import click

from autotl.errors import DataError
from autotl.report import output


@click.command()
@click.argument("name", metavar="NAME", type=click.Choice(["digits"]))
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
def command(name: str, folder: Path) -> None:
    """Write the data set NAME into FOLDER, a new or empty folder, with a sub-folder for each class.

    digits: scikit-learn's 1,797 handwritten digits, 8 x 8 px, ten classes (Alpaydin and Kaynak 1998).

    \b
    autotl sample digits data/digits
    """
    from PIL import Image
    from sklearn.datasets import load_digits

    if folder.exists() and any(folder.iterdir()):
        raise DataError(f"{folder} is not empty. Choose a new folder, or delete this one first.")
    digits = load_digits()
    for number, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        file = folder / str(label) / f"{number:04d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        grey = (image * (255 / 16)).round().astype("uint8")
        Image.fromarray(grey).save(file)
    output.echo(f"{len(digits.images)} images in {len(digits.target_names)} classes: {folder}")
    output.echo(f"Next: autotl search {quote(str(folder))} --trials 20")
