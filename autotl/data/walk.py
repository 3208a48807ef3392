"""Listing the files below a folder: links are followed, hidden files and litter such as `Thumbs.db` are ignored."""

import os
from collections import deque
from collections.abc import Iterator, Set
from contextlib import contextmanager
from pathlib import Path

from autotl.data.names import is_litter
from autotl.errors import DataError

_Identity = tuple[int, int]
"""The device and inode of a folder, the same for all paths and links to it."""


class Walk:
    """Lists what is below `root`, by paths relative to it, with forward slashes; the root itself is ``""``.

    `litter` has the ignored paths: hidden files, and system files.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.litter: list[str] = []
        self._above_root = {_identity(str(parent)) for parent in root.resolve().parents}

    def look(self, folder: str = "") -> tuple[list[str], list[str]]:
        """The files and the folders directly in a folder, sorted by name; empty for a link to a folder above it.

        Raises: DataError for a folder that cannot be listed, as `files` does.
        """
        if self._identity(folder) in self._above(folder):
            return [], []
        files, folders, links = self._entries(folder)
        return files, sorted(folders + links)

    def files(self, folder: str = "") -> Iterator[str]:
        """Every file below a folder, except through links to folders above it.

        A folder with several paths is listed once, preferably by a path without links.
        """
        seen = set(self._above(folder))
        folders, links = [folder], deque[str]()  # no recursion: folders may be nested deeper than Python's calls
        while folders or links:
            folder = folders.pop() if folders else links.popleft()
            identity = self._identity(folder)
            if identity not in seen:
                seen.add(identity)
                files, inner, linked = self._entries(folder)
                folders += inner
                links += linked
                yield from files

    def _above(self, folder: str) -> Set[_Identity]:
        parts = folder.split("/")
        inside = ["/".join(parts[:depth]) for depth in range(len(parts))] if folder else []
        return self._above_root | {self._identity(parent) for parent in inside}

    def _entries(self, folder: str) -> tuple[list[str], list[str], list[str]]:
        """Files, folders, and links to folders, each by name."""
        files, folders, links = list[str](), list[str](), list[str]()
        place = self._place(folder)
        with _listing(place), os.scandir(place) as found:
            for entry in found:
                path = f"{folder}/{entry.name}" if folder else entry.name
                if entry.name.startswith(".") or is_litter(entry.name):
                    self.litter.append(path)
                elif not _is_folder(entry):
                    files.append(path)
                else:
                    (links if entry.is_symlink() else folders).append(path)
        return sorted(files), sorted(folders), sorted(links)

    def _identity(self, folder: str) -> _Identity:
        return _identity(self._place(folder))

    def _place(self, folder: str) -> str:
        return str(self.root / folder)


def files_below(folder: Path) -> Iterator[Path]:
    """Every file at any depth that is neither hidden nor litter. Links are followed, to each folder once.

    Raises: DataError for a folder that cannot be listed.
    """
    return (folder / path for path in Walk(folder).files())


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder or a link to one. Other entries, such as broken links, fail later when they are read."""
    return entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry.path))


def _identity(folder: str) -> _Identity:
    with _listing(folder):
        status = os.stat(folder)
    return status.st_dev, status.st_ino


@contextmanager
def _listing(folder: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"The folder {folder[:200]!r} cannot be listed: {error.strerror}. Make it readable, or remove it."
        ) from None
