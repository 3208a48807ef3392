"""Reading data sets of Hugging Face's library `datasets`: saved to disk, or as Parquet or Arrow files."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from types import ModuleType
from typing import Any

from autotl.data import images
from autotl.data.foreign.recognize import Recognized, image_columns
from autotl.data.foreign.samples import (
    IMAGE_SUFFIXES,
    Sample,
    Source,
    Tell,
    in_class_folders,
    label_column,
    label_text,
    split_files,
    split_folders,
)
from autotl.data.images import UnreadableImage
from autotl.data.pixels import LARGEST_FILE
from autotl.errors import DataError, reason
from autotl.files import read_regular

_ROWS = 64
"""How many rows are in memory at a time."""


@dataclass(frozen=True)
class _Table:
    """Rows of one split. `batches(columns)` returns them as pyarrow tables."""

    split: str
    features: Any
    rows: int
    batches: Callable[[list[str]], Iterable[Any]]


def read(found: Recognized, said: str | None, tell: Tell) -> Source:
    """The rows of a data set; `said`: the column of the classes, if the user named it.

    Raises: DataError.
    """
    datasets = _library(found)
    with _reading(found.path):
        tables = list(_saved(found, datasets, tell) if found.kind == "saved" else _files(found, datasets, tell))
    features = tables[0].features
    where = f"the data set {str(found.path)!r}"
    marked = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    image = _image_column(features, datasets, where)
    label = label_column([name for name in features if name != image], said, where, marked)
    samples = (sample for table in tables for sample in _samples(table, image, label, found.path))
    total = sum(table.rows for table in tables)
    size = sum(file.stat().st_size for file in found.files) or None
    return Source(found.what, total, in_class_folders(samples, tell), size)


def _library(found: Recognized) -> ModuleType:
    try:
        import datasets
    except ImportError:
        raise DataError(
            f"{str(found.path)!r} is {found.what}, which needs the package datasets: pip install datasets"
        ) from None
    return datasets


def _saved(found: Recognized, datasets: ModuleType, tell: Tell) -> Iterator[_Table]:
    loaded = datasets.load_from_disk(str(found.path))
    splits = loaded if isinstance(loaded, dict) else {"": loaded}
    for name, folder in split_folders(splits, tell).items():
        yield _table(folder, splits[name])


def _files(found: Recognized, datasets: ModuleType, tell: Tell) -> Iterator[_Table]:
    for file, folder in split_files(found.files, tell).items():
        if found.kind == "arrow":
            yield _table(folder, datasets.Dataset.from_file(str(file)))
        else:
            yield _parquet(folder, file, datasets)


def _table(folder: str, rows: Any) -> _Table:
    return _Table(
        folder,
        rows.features,
        rows.num_rows,
        lambda columns: rows.select_columns(columns).with_format("arrow").iter(batch_size=_ROWS),
    )


def _parquet(folder: str, file: Path, datasets: ModuleType) -> _Table:
    import pyarrow.parquet as pq

    content = pq.ParquetFile(file)
    return _Table(
        folder,
        datasets.Features.from_arrow_schema(content.schema_arrow),
        content.metadata.num_rows,
        lambda columns: content.iter_batches(batch_size=_ROWS, columns=columns),
    )


def _image_column(features: Any, datasets: ModuleType, where: str) -> str:
    found = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    found = found or [name for name in image_columns(features.arrow_schema) if not hasattr(features[name], "decode")]
    named = [name for name in found if name in ("image", "img")]
    for candidates in (found, named):
        if len(candidates) == 1:
            return candidates[0]
    if not found:
        raise DataError(f"No column of {where} has images; its columns are {', '.join(map(repr, features))}.")
    raise DataError(f"Several columns of {where} have images: {', '.join(map(repr, found))}. Name one of them image.")


def _samples(table: _Table, image: str, label: str, source: Path) -> Iterator[Sample]:
    labelled = label in table.features
    name_of = _names(table.features[label]) if labelled else label_text
    for batch in _each(table.batches([image, label] if labelled else [image]), source):
        labels = batch.column(label).to_pylist() if labelled else repeat(None)
        for content, value in zip(batch.column(image).to_pylist(), labels, strict=False):
            yield Sample(table.split, name_of(value), *_file(content))


def _names(feature: Any) -> Callable[[Any], str | None]:
    """The name of a class by its value; hidden labels are -1 and have none."""
    if not hasattr(feature, "int2str"):
        return label_text
    names = feature.names
    return lambda value: names[value] if value is not None and 0 <= value < len(names) else None


def _file(value: Any) -> tuple[bytes | None, str]:
    """The image bytes of a cell, or of the local file that it names, with their suffix."""
    content, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
    if content is None and path and Path(path).is_file():
        content = read_regular(Path(path), LARGEST_FILE)
        if not _suffix(content):  # the table is not trusted, and may name any file
            content = None
    if content is None:
        return None, ""
    suffix = Path(path or "").suffix.lower()
    return content, suffix if suffix in IMAGE_SUFFIXES else _suffix(content)


def _suffix(content: bytes) -> str:
    """The suffix by the content; empty if it is not an image."""
    try:
        return f".{(images.open_image(content).format or '').lower()}"
    except UnreadableImage:
        return ""


def _each(batches: Iterable[Any], source: Path) -> Iterator[Any]:
    with _reading(source):
        yield from batches


@contextmanager
def _reading(source: Path) -> Iterator[None]:
    """Turns the errors of the libraries, which have no common base class, into DataErrors."""
    try:
        yield
    except (DataError, OSError):
        raise
    except Exception as error:
        raise DataError(f"The data set {str(source)!r} cannot be read: {reason(error)}. Download it again.") from None
