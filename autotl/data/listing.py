"""The labelled files of a folder or a manifest, and how everything else in it was read."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from autotl.data.split import Split

Layout = Literal["class folders", "split folders", "manifest"]


@dataclass(frozen=True)
class Columns:
    """The columns of a manifest that contain paths and labels; None: found by their names."""

    path: str | None = None
    label: str | None = None

    def said(self) -> dict[str, str]:
        return {name: value for name, value in vars(self).items() if value is not None}

    def or_those(self, remembered: Mapping[str, str], data: Path) -> "Columns":
        """These, completed by the stored columns of a study. A folder has no columns."""
        return self if data.is_dir() else Columns(**{**remembered, **self.said()})


BY_NAME = Columns()


@dataclass(frozen=True)
class Found:
    """A file with its label, split and group. `path` is relative to the root, with forward slashes.

    The path is spelled as on disk, while the label is in Unicode's form NFC.
    """

    path: str
    label: str
    split: "Split" = "train"
    group: str | None = None


@dataclass(frozen=True)
class Listing:
    """Every labelled file below `root`, sorted by path, and how everything else was read.

    Paths are relative to `root`, with forward slashes.
    """

    root: Path
    files: tuple[Found, ...]
    layout: Layout = field(kw_only=True)
    read_as: tuple[tuple[str, str], ...] = field(kw_only=True)
    """Folders with their splits, or columns with their meanings."""
    unlabelled: tuple[str, ...] = ()
    """Files beside the class folders."""
    empty: tuple[str, ...] = ()
    """Folders of classes or splits without files."""
    litter: tuple[str, ...] = ()
    """Hidden files and folders, and system files such as `Thumbs.db`; of a folder not its contents."""
    remarks: tuple[str, ...] = ()
    """What else a user should know about how it was read."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know, in words."""
        return tuple(self._notes())

    def _notes(self) -> Iterator[str]:
        if self.unlabelled:
            yield f"files beside the class folders, ignored: {some(self.unlabelled)}"
        if self.empty:
            yield f"folders without images, ignored: {some(self.empty)}"
        yield from self.said()

    def said(self) -> Iterator[str]:
        """The notes that are not about unused files and folders."""
        ambiguous = sorted(_same_without_case({file.label for file in self.files}))
        if ambiguous:
            yield f"classes whose names differ only in upper and lower case: {some(ambiguous)}"
        yield from self.remarks


def _same_without_case(labels: Iterable[str]) -> Iterator[str]:
    named = defaultdict(list)
    for label in labels:
        named[label.casefold()].append(label)
    return (label for same in named.values() if len(same) > 1 for label in same)


def some(names: Sequence[str]) -> str:
    """The first three names, and how many more there are."""
    shown = ", ".join(map(repr, names[:3]))
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
