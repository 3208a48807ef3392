"""Images that are in no class folder yet, and the one tree that all of them end in."""

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
"""Told, in a sentence, what a user should know."""

LABELS = ("label", "labels", "fine_label")
"""What a column of classes is usually called."""
IMAGE_SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".jp2", ".avif", ".ico", ".tga", ".heic", ".heif"),
}
FOLDERS: dict[Split, str] = {"train": "train", "val": "val", "test": "test"}
"""What the splits are called that a source can have."""
_LONGEST = 255
"""Bytes of a folder's name."""


@dataclass(frozen=True)
class Source:
    """What is to be written: `files` are paths below the new folder, with forward slashes, and contents."""

    what: str
    total: int
    """How many files there are; those that are left out count, too."""
    files: Iterator[tuple[str, bytes]]
    size: int | None
    """Bytes on disk, where these can bound what comes out of them."""


@dataclass(frozen=True)
class Sample:
    """An image file of a source; `label` and `content` are None where the source has none."""

    split: str
    """The folder of its split, or nothing where there are no splits."""
    label: str | None
    content: bytes | None
    suffix: str
    """With its dot; nothing where it is not known."""


def in_class_folders(samples: Iterable[Sample], tell: Tell) -> Iterator[tuple[str, bytes]]:
    """Paths and contents of samples, numbered as they come."""
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
        tell(f"left out: {count:,} without {'an' if what == 'image' else 'a'} {what}")


class _ClassFolders:
    """The folder of each class: its name, with `_` for what no folder's name can hold.

    That is a slash, a character that cannot be printed, a dot that would hide it, and no name at all. One stands
    before what would be passed over as litter.
    """

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._folder_of: dict[str, str] = {}
        self._label_of: dict[str, str] = {}

    def of(self, label: str) -> str:
        """Raises: DataError where two classes would share a folder, or the name is too long for one."""
        if label not in self._folder_of:
            self._folder_of[label] = self._new(label)
        return self._folder_of[label]

    def _new(self, label: str) -> str:
        folder = "".join("_" if letter == "/" or not letter.isprintable() else letter for letter in label)
        folder = re.sub(r"^\.|^\s*$", "_", folder)
        folder = f"_{folder}" if is_litter(folder) else folder
        if len(folder.encode()) > _LONGEST:
            raise DataError(
                f"{one_line(label, 60)!r}… is too long for the name of a class, which is {_LONGEST} bytes at most. "
                f"Name the column of the classes by --label-column."
            )
        other = self._label_of.setdefault(folder, label)
        if other != label:
            raise DataError(
                f"The classes {other!r} and {label!r} would share the folder {folder!r}, for '_' stands for what a "
                f"folder's name cannot hold. Rename one of them in the source."
            )
        if folder != label:
            self._tell(f"The folder of class {label!r} is {folder!r}.")
        return folder


def split_folders(names: Iterable[str], tell: Tell) -> dict[str, str]:
    """The folders of a source's splits by their names, without those that a search does not know.

    The only split of a source is none.

    Raises: DataError where no split is for training.
    """
    names = list(names)
    if len(names) <= 1:
        return dict.fromkeys(names, "")
    folders = {name: FOLDERS[known.pop()] for name in names if len(known := splits_within(name)) == 1}
    if "train" not in folders.values():
        raise DataError(
            f"Of the splits {', '.join(map(repr, names))} none is for training. Unpack one of them alone, and the "
            f"search carves its own."
        )
    unknown = [name for name in names if name not in folders]
    if unknown:
        tell(f"left out: {', '.join(map(repr, unknown))}, for splits are train, val and test")
    return folders


def split_files(files: Sequence[Path], tell: Tell) -> dict[Path, str]:
    """The folder of the split that each file holds: by a word in its name, or else in those of the folders around.

    Raises: DataError where some name a split and others do not.
    """
    above = os.path.commonpath([file.parent for file in files])
    named = {file: _split_in(file.relative_to(above)) for file in files}
    without = [file for file, split in named.items() if split is None]
    if without and len(without) < len(files):
        raise DataError(
            f"{len(files) - len(without)} of {len(files)} files name their split, and {str(without[0])!r} does not. "
            f"Rename or leave out those that do not."
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
    """A class that is written as text or a whole number; None for none.

    Raises: DataError for anything else.
    """
    if value is None or isinstance(value, str | int):
        return None if value is None or value == "" else str(value)
    raise DataError(f"{one_line(repr(value), 60)} is no class: a class is a text or a whole number.")


def label_column(columns: Iterable[str], said: str | None, where: str, marked: Iterable[str] = ()) -> str:
    """Which of the columns holds the class: the one that is said, is `marked`, or is called so.

    Raises: DataError where it is none, or may be several.
    """
    columns = list(columns)
    if said is not None:
        if said not in columns:
            raise DataError(f"There is no {said!r} in {where}; it has {', '.join(map(repr, columns))}.")
        return said
    named = set(LABELS) & set(columns)
    for candidates in (named | set(marked), named & set(marked)):
        if len(candidates) == 1:
            return candidates.pop()
    raise DataError(
        f"Which column of {where} is the class? It has {', '.join(map(repr, columns))}. Say --label-column NAME."
    )
