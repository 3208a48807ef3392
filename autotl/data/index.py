"""Listing the labelled files of a folder or a manifest. No image file is opened here.

Data is one of
- a folder with a sub-folder for each class, with files at any depth;
- a folder with `train/` and, optionally, `val/` and `test/`, each with a sub-folder for each class;
- a manifest: a CSV or Parquet file with the columns `path` and `label`, and optionally `split` and `group`.

Files without a split are in train, and missing splits are split off from train.
"""

from pathlib import Path

from autotl.data.folders import SHAPES, read_folder
from autotl.data.foreign.recognize import foreign
from autotl.data.listing import BY_NAME, Columns, Listing, some
from autotl.data.manifest import read_manifest
from autotl.errors import DataError, missing


def find(path: Path, columns: Columns = BY_NAME) -> Listing:
    """List the labelled files of a folder or a manifest.

    Raises: DataError, in one line.
    """
    path = Path(path).resolve()
    try:
        return _find(path, columns)
    except DataError:
        if line := foreign(path):
            raise DataError(line) from None
        raise


def _find(path: Path, columns: Columns) -> Listing:
    if path.is_dir():
        if columns.said():
            raise DataError(f"{str(path)!r} is a folder and has no columns. Remove --path-column and --label-column.")
        listing = read_folder(path)
    elif path.is_file():
        listing = read_manifest(path, columns)
    else:
        raise DataError(f"{missing(path)} {SHAPES}")
    _check(listing, path)
    return listing


def _check(listing: Listing, path: Path) -> None:
    """Checks that apply to folders and manifests.

    Raises: DataError.
    """
    empty = f" No images are in {some(listing.empty)}." if listing.empty else ""
    if not listing.files:
        raise DataError(f"{str(path)!r} has no images.{empty} {SHAPES}")
    train = {file.label for file in listing.files if file.split == "train"}
    if not train:
        raise DataError(f"{str(path)!r} has no train split.{empty} Add images to train, or remove all splits.")
    _require_distinct({file.label for file in listing.files}, path)
    for file in listing.files:
        if file.label not in train:
            raise DataError(
                f"Class {file.label!r} has no image in train, but {file.path!r} is in another split of "
                f"{str(path)!r}. Add images of it to train, or remove the class."
            )
    for label in train:
        if not label.isprintable():
            raise DataError(f"The class name {label!r} of {str(path)!r} cannot be printed. Rename it.")
    if len(train) == 1:
        top, _, below = listing.files[0].path.partition("/")
        deeper = f" If the classes are in it, use {str(path / top)!r}." if "/" in below else ""
        raise DataError(
            f"{str(path)!r} has only one class, {train.pop()!r}; a classifier needs two or more.{empty}"
            f"{deeper if listing.layout == 'class folders' else ''} {SHAPES}"
        )


def _require_distinct(labels: set[str], path: Path) -> None:
    """Raises: DataError for classes that look the same when they are printed."""
    seen: dict[str, str] = {}
    for label in sorted(labels):
        other = seen.setdefault(" ".join(label.split()), label)
        if other != label:
            raise DataError(
                f"The class names {other!r} and {label!r} of {str(path)!r} differ only in spaces. Give them one name."
            )
