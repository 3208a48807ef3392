"""Recognising data sets that a search cannot read, and the command that converts them."""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any, Literal

from autotl.data.foreign import vision
from autotl.data.foreign.samples import IMAGE_SUFFIXES

Kind = Literal["zip", "tar", "saved", "arrow", "parquet"]

TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")
_SUFFIXES: dict[Kind, tuple[str, ...]] = {"zip": (".zip",), "tar": TARS, "arrow": (".arrow",), "parquet": (".parquet",)}
_WHAT: dict[Kind, str] = {
    "zip": "a zip archive",
    "tar": "a tar archive",
    "saved": "a Hugging Face data set",
    "arrow": "a Hugging Face data set in Arrow files",
    "parquet": "a Hugging Face data set in Parquet files",
}


@dataclass(frozen=True)
class Recognized:
    """A source on disk: the file or folder that the user named, and its relevant files."""

    kind: Kind
    path: Path
    files: tuple[Path, ...]

    @property
    def what(self) -> str:
        return _WHAT[self.kind] if self.kind != "tar" or self.path.is_file() else "a folder of tar archives"


def foreign(path: Path) -> str | None:
    """A line on what a path is and how to convert it for a search; None if it is not recognised."""
    base = path.name.partition(".")[0] if path.is_file() else path.name
    folder, options = path.with_name(f"{base}-images"), ""
    with suppress(OSError):
        if there := vision.at(path):
            name, root = there
            what, source = f"torchvision's {name}", f"torchvision:{name}"
            folder, options = root / f"{name}-images", f" --root {quote(str(root))}"
        elif found := recognize(path):
            what, source = found.what, quote(str(path))
        else:
            return None
        return (
            f"{str(path)!r} is {what}; a search reads folders of images and manifests. "
            f"Convert it once: autotl unpack {source} {quote(str(folder))}{options}"
        )
    return None


def recognize(path: Path) -> Recognized | None:
    """The source at a path that `unpack` can convert, by names and, for Parquet, by its columns.

    A folder with more images than files of such a kind is not a source.
    """
    if path.is_file():
        files = [path]
    elif (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return Recognized("saved", path, ())
    else:
        files = sorted(_below(path))
    images = sum(file.suffix.lower() in IMAGE_SUFFIXES for file in files)
    for kind, suffixes in _SUFFIXES.items():
        of_kind = tuple(file for file in files if file.name.lower().endswith(suffixes))
        if len(of_kind) <= images or (kind == "zip" and path.is_dir()):
            continue
        if kind != "parquet" or _holds_images(of_kind[0]):
            return Recognized(kind, path, of_kind)
    return None


def image_columns(schema: Any) -> list[str]:
    """Columns of a pyarrow schema that may contain encoded images: bytes, or bytes with a path."""
    import pyarrow as pa

    def is_image(kind: Any) -> bool:
        if pa.types.is_struct(kind):
            return kind.get_field_index("bytes") >= 0
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    return [field.name for field in schema if is_image(field.type)]


def _holds_images(file: Path) -> bool:
    import pyarrow as pa
    import pyarrow.parquet

    try:
        return bool(image_columns(pa.parquet.read_schema(file)))
    except pa.ArrowException:
        return False


def _below(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(place) / name for name in files if not name.startswith("."))
