"""Samples of a source, images with labels and splits, and the folder tree into which they are written."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from autotl.data.names import is_litter, splits_within
from autotl.data.split import Split
from autotl.errors import DataError, one_line

Tell = Callable[[str], None]
"""Called with a sentence that the user should know."""

LABELS = ("label", "labels", "fine_label")
"""Usual names of a column of classes."""
IMAGE_SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".jp2", ".avif", ".ico", ".tga", ".heic", ".heif"),
}
FOLDERS: dict[Split, str] = {"train": "train", "val": "val", "test": "test"}
"""The folders of the splits that a source can have."""
_LONGEST = 255
"""The most bytes of a folder's name."""


@dataclass(frozen=True)
class Source:
    """What will be written: `files` are paths below the new folder, with forward slashes, and contents."""

    what: str
    total: int
    """How many files there are, including those that are skipped."""
    files: Iterator[tuple[str, bytes]]
    size: int | None
    """Bytes on disk, if they limit the size of the contents."""


@dataclass(frozen=True)
class Sample:
    """An image file of a source; `label` and `content` are None if the source has none."""

    split: str
    """The folder of its split; empty if there are no splits."""
    label: str | None
    content: bytes | None
    suffix: str
    """With its dot; empty if it is unknown."""


def in_class_folders(samples: Iterable[Sample], tell: Tell) -> Iterator[tuple[str, bytes]]:
    """Paths and contents of samples, numbered in their order."""
    folders = _ClassFolders(tell)
    lacking: Counter[str] = Counter()
    for number, sample in enumerate(samples):
        if sample.label is None:
            lacking["label"] += 1
        elif sample.content is None:
            lacking["image"] += 1
        else:
            parts = (sample.split, folders.of(sample.label), f"{number:07}{sample.suffix}")
            yield "/".join(filter(None, parts)), sample.content
    for what, count in lacking.items():
        tell(f"skipped: {count:,} without {'an' if what == 'image' else 'a'} {what}")


class _ClassFolders:
    """The folder of each class: its name, with `_` for what the name of a folder cannot contain.

    That is a slash, a character that cannot be printed, a dot at the start, and an empty name. A `_` is put before a
    name that a search would ignore as litter.
    """

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._folder_of: dict[str, str] = {}
        self._label_of: dict[str, str] = {}

    def of(self, label: str) -> str:
        """Raises: DataError if two classes would share a folder, or the name is too long."""
        if label not in self._folder_of:
            self._folder_of[label] = self._new(label)
        return self._folder_of[label]

    def _new(self, label: str) -> str:
        folder = "".join("_" if letter == "/" or not letter.isprintable() else letter for letter in label)
        folder = re.sub(r"^\.|^\s*$", "_", folder)
        folder = f"_{folder}" if is_litter(folder) else folder
        if len(folder.encode()) > _LONGEST:
            raise DataError(
                f"{one_line(label, 60)!r}… is too long for the name of a class: at most {_LONGEST} bytes are allowed. "
                f"Name the column of the classes: --label-column NAME"
            )
        other = self._label_of.setdefault(folder, label)
        if other != label:
            raise DataError(
                f"The classes {other!r} and {label!r} would share the folder {folder!r}, because '_' replaces "
                f"characters that the name of a folder cannot contain. Rename one of them in the source."
            )
        if folder != label:
            self._tell(f"The folder of class {label!r} is {folder!r}.")
        return folder


def split_folders(names: Iterable[str], tell: Tell) -> dict[str, str]:
    """The folders of a source's splits by their names, without splits that a search does not know.

    A source with a single split has no split folders.

    Raises: DataError if no split is for training.
    """
    names = list(names)
    if len(names) <= 1:
        return dict.fromkeys(names, "")
    folders = {name: FOLDERS[known.pop()] for name in names if len(known := splits_within(name)) == 1}
    if "train" not in folders.values():
        raise DataError(
            f"None of the splits {', '.join(map(repr, names))} is for training. Unpack only one of them; the search "
            f"then splits it."
        )
    unknown = [name for name in names if name not in folders]
    if unknown:
        tell(f"skipped: {', '.join(map(repr, unknown))}, because splits are train, val and test")
    return folders


def split_files(files: Sequence[Path], tell: Tell) -> dict[Path, str]:
    """The split folder of each file: by a word in its name, or else in the names of its parent folders.

    Raises: DataError if some files name a split and others do not.
    """
    above = os.path.commonpath([file.parent for file in files])
    named = {file: _split_in(file.relative_to(above)) for file in files}
    without = [file for file, split in named.items() if split is None]
    if without and len(without) < len(files):
        raise DataError(
            f"{len(files) - len(without)} of {len(files)} files name their split, and {str(without[0])!r} does not. "
            f"Rename or remove those that do not."
        )
    folders = split_folders({split for split in named.values() if split}, tell)
    return {file: folders[split] if split else "" for file, split in named.items()}


def _split_in(path: Path) -> str | None:
    for part in reversed(path.parts):
        found = splits_within(part)
        if len(found) == 1:
            return FOLDERS[found.pop()]
    return None


def label_text(value: object) -> str | None:
    """A class given as text or an integer, as text; None without one.

    Raises: DataError for anything else.
    """
    if value is None or isinstance(value, str | int):
        return None if value is None or value == "" else str(value)
    raise DataError(f"{one_line(repr(value), 60)} is not a class: a class must be a text or an integer.")


def label_column(columns: Iterable[str], said: str | None, where: str, marked: Iterable[str] = ()) -> str:
    """The column of the class: the one that the user named, that is `marked`, or that has a usual name.

    Raises: DataError if there is none, or several match.
    """
    columns = list(columns)
    if said is not None:
        if said not in columns:
            raise DataError(f"There is no column {said!r} in {where}; it has {', '.join(map(repr, columns))}.")
        return said
    named = set(LABELS) & set(columns)
    for candidates in (named | set(marked), named & set(marked)):
        if len(candidates) == 1:
            return candidates.pop()
    raise DataError(
        f"Which column of {where} is the class? It has {', '.join(map(repr, columns))}. Use --label-column NAME."
    )
