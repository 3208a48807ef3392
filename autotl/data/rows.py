"""A store of equally shaped rows by key, which processes can share and which survives a kill.

A store is a folder: `rows.bin` has the rows one after another, `keys.bin` their keys with their checksums in
the same order, `store.json` the shape and type of a row. A row is written before its key, so a killed process
leaves rows without keys at the end: they are not read, and the next append overwrites them. A row whose checksum
fails counts as missing, and the next append of its key rewrites it in place. Nothing is flushed to the disk, which
would take longer than the writing: rows that a power cut loses although it keeps their keys fail their checksums.
"""

import json
import os
import shutil
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import RLock
from typing import BinaryIO
from weakref import WeakSet

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import DTypeLike

from autotl.errors import AutotlError
from autotl.files import write

FORMAT = 2
"""Incremented when the format of a store's files changes; callers include it in the name of a store's folder."""
KEY_BYTES = 32
SUM_BYTES = 4
ENTRY_BYTES = KEY_BYTES + SUM_BYTES
DEFAULT_BUDGET = 10_000_000_000
_META = "store.json"

_in_use: "WeakSet[RowStore]" = WeakSet()


class StoreError(AutotlError):
    """A store in the cache folder cannot be read or written."""


class DamagedRows(StoreError):
    """The checksums of rows fail; from now on the rows count as missing."""

    def __init__(self, folder: Path, count: int) -> None:
        super().__init__(f"The cache {str(folder)!r} is damaged in {count} places. Delete this folder.")
        self.note = f"Warning: the cache {str(folder)!r} is damaged. The damaged entries are computed again."


class RowStore:
    """Rows of one `shape` and `dtype` by key: the hex SHA-256 of a row's source."""

    _inode: int | None
    _positions: dict[str, int]
    """The positions of intact rows, by their keys."""
    _damaged: dict[str, int]
    """The positions of rows whose checksums failed, by their keys."""
    _sums: "array[int]"
    """The checksum of each row, by position."""
    _sound: bytearray
    """Whether the checksum of each row has been verified, by position."""

    def __init__(self, folder: Path, shape: Sequence[int], dtype: DTypeLike) -> None:
        """Raises: StoreError if the folder contains something else."""
        self.folder = Path(folder)
        self.shape = tuple(shape)
        self.dtype = np.dtype(dtype)
        self._row_bytes = self.dtype.itemsize * int(np.prod(self.shape))
        # Beside the folder, so that the lock is not deleted with the store while others wait for it.
        self._lock = FileLock(f"{self.folder}.lock")
        self._seeing = RLock()
        self._rows = np.empty((0, *self.shape), self.dtype)
        self._modified = 0
        self._forget()
        _in_use.add(self)
        with self._writing():
            self._create()
        self.refresh()

    def __len__(self) -> int:
        self.refresh()
        return len(self._positions)

    def __contains__(self, key: object) -> bool:
        """Whether a row existed at the last `refresh`, which all other methods call."""
        return key in self._positions

    def missing(self, keys: Iterable[str]) -> list[str]:
        """The keys without an intact row, each once, in the given order."""
        self.refresh()
        return [key for key in dict.fromkeys(keys) if key not in self._positions]

    def keys(self) -> list[str]:
        """The keys that have a row."""
        return list(self._positions)

    def append(self, keys: Sequence[str], rows: np.ndarray) -> None:
        """Add rows, [N, *shape] of the store's type; an existing key keeps its row, unless that is damaged.

        Raises: StoreError if they cannot be written.
        """
        if rows.shape != (len(keys), *self.shape) or rows.dtype != self.dtype:
            raise ValueError(f"{len(keys)} keys, rows {rows.shape} {rows.dtype}; the store: {self}")
        with self._writing():
            self._create()
            self.refresh()
            self._write(keys, np.ascontiguousarray(rows))
            self._modified = self._last_written()
        self.refresh()

    def clear(self) -> None:
        """Remove all rows.

        Raises: StoreError if they cannot be removed.
        """
        with self._writing():
            shutil.rmtree(self.folder)
            self._create()
        self.refresh()

    def read(self, keys: Sequence[str], columns: slice | None = None) -> np.ndarray:
        """The rows of `keys`, [N, *shape], as a copy; with `columns`, only those of flat rows.

        Raises: KeyError for a key without a row; DamagedRows if a checksum fails.
        """
        if not all(key in self._positions for key in keys):
            self.refresh()
        self._touch()
        at = np.fromiter((self._positions[key] for key in keys), np.intp, len(keys))
        self._check(keys, at)
        if columns is None:
            return self._rows[at]
        if len(self.shape) != 1:
            raise ValueError(f"only flat rows have columns; the store: {self}")
        return self._rows[at, columns]

    def _check(self, keys: Sequence[str], positions: np.ndarray) -> None:
        """Verify the checksums of rows: each once, and again after the file was written to.

        A checksum costs as much as reading the whole row, while a caller may need only a few columns.

        Raises: DamagedRows.
        """
        modified = self._last_written()
        if modified != self._modified:
            self._sound = bytearray(len(self._sums))
            self._modified = modified
        damaged = 0
        for key, at in zip(keys, positions.tolist(), strict=True):
            if self._sound[at]:
                continue
            if _sum(key, self._rows[at]) == self._sums[at]:
                self._sound[at] = True
            else:
                self._damaged[key] = at
                self._positions.pop(key, None)
                damaged += 1
        if damaged:
            raise DamagedRows(self.folder, damaged)

    def _last_written(self) -> int:
        """The modification time in nanoseconds; a removed store can still be read."""
        with suppress(FileNotFoundError):
            return os.stat(self.folder / "rows.bin").st_mtime_ns
        return self._modified

    def __repr__(self) -> str:
        return f"RowStore({str(self.folder)!r}, {self.shape}, {self.dtype})"

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Locks the store against writing by other threads and processes."""
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            with self._lock:
                yield
        except OSError as error:
            raise StoreError(
                f"Cannot write to the cache {str(self.folder)!r}: {error.strerror or error}. Free some space "
                f"there, or use another folder: --cache-dir DIR"
            ) from error

    def _create(self) -> None:
        """Create the folder, or check that it belongs to this store."""
        expected = {"schema": FORMAT, "shape": list(self.shape), "dtype": self.dtype.str}
        meta = self.folder / _META
        try:
            found = json.loads(meta.read_text())
        except (FileNotFoundError, ValueError):  # missing or damaged; the rows have their own checksums
            self.folder.mkdir(exist_ok=True)
            write(meta, json.dumps(expected))
            found = expected
        if found != expected:
            raise StoreError(
                f"The cache {str(self.folder)!r} cannot be used: it contains {found} instead of {expected}. "
                f"Delete this folder; it will be created again."
            )
        self._touch()

    def _write(self, keys: Sequence[str], rows: np.ndarray) -> None:
        new: dict[str, int] = {}
        for at, key in enumerate(keys):
            if key not in self._positions:
                new.setdefault(key, at)
        again = [key for key in new if key in self._damaged]
        added = [key for key in new if key not in self._damaged]
        sums = {key: _sum(key, rows[at]) for key, at in new.items()}
        count = len(self._sums)
        with _opened(self.folder / "rows.bin") as file:
            file.truncate(count * self._row_bytes)
            for key in again:
                file.seek(self._damaged[key] * self._row_bytes)
                file.write(rows[new[key]].data)
            file.seek(0, os.SEEK_END)
            # Usually all rows are new, and need not be copied.
            file.write((rows if len(added) == len(keys) else rows[[new[key] for key in added]]).data)
        with _opened(self.folder / "keys.bin") as file:
            file.truncate(count * ENTRY_BYTES)
            for key in again:
                file.seek(self._damaged[key] * ENTRY_BYTES)
                file.write(_entry(key, sums[key]))
            file.seek(0, os.SEEK_END)
            file.write(b"".join(_entry(key, sums[key]) for key in added))
        for key in again:
            at = self._damaged.pop(key)
            self._sums[at] = sums[key]
            self._positions[key] = at

    def refresh(self) -> None:
        """Read the current state on disk: this or another process may have added rows or removed the store."""
        with self._seeing:
            try:
                with open(self.folder / "rows.bin", "rb") as rows, open(self.folder / "keys.bin", "rb") as keys:
                    self._see(rows, keys)
            except FileNotFoundError:
                self._forget()

    def _see(self, rows: BinaryIO, keys: BinaryIO) -> None:
        status = os.fstat(rows.fileno())
        count = min(status.st_size // self._row_bytes, os.fstat(keys.fileno()).st_size // ENTRY_BYTES)
        # A mapped file keeps its inode number: another number means a new store.
        if status.st_ino != self._inode or count < len(self._sums):
            self._forget()
        seen = len(self._sums)
        if count == seen:
            return
        keys.seek(seen * ENTRY_BYTES)
        fresh = keys.read((count - seen) * ENTRY_BYTES)
        # The keys come last, because another thread may use a new position immediately.
        self._rows = np.asarray(np.memmap(rows, self.dtype, mode="r", shape=(count, *self.shape)))
        self._inode = status.st_ino
        entries = [fresh[at : at + ENTRY_BYTES] for at in range(0, len(fresh), ENTRY_BYTES)]
        self._sound.extend(bytes(len(entries)))
        self._sums.extend(int.from_bytes(entry[KEY_BYTES:], "little") for entry in entries)
        self._positions.update((entry[:KEY_BYTES].hex(), at) for at, entry in enumerate(entries, seen))

    def _forget(self) -> None:
        """Reset the known state. The mapped file stays mapped for threads that are reading it."""
        self._inode = None
        self._positions, self._damaged = {}, {}
        self._sums, self._sound = array("I"), bytearray()

    def _touch(self) -> None:
        with suppress(OSError):
            os.utime(self.folder / _META)


def _entry(key: str, checksum: int) -> bytes:
    return bytes.fromhex(key) + checksum.to_bytes(SUM_BYTES, "little")


def _sum(key: str, row: np.ndarray) -> int:
    """A checksum of a row with its key, so that a row in the wrong place is detected, too."""
    return zlib.crc32(row.data, zlib.crc32(bytes.fromhex(key)))


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """A file open for writing at any position, created if missing."""
    with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
        yield file


def trim(cache_dir: Path, budget_bytes: int = DEFAULT_BUDGET) -> list[Path]:
    """Remove the least recently used stores until the rest fit the budget; returns the removed folders.

    A store that this process uses, or that another one is writing, is kept.
    """
    stores = sorted(_stores(Path(cache_dir)))
    excess = sum(size for _, _, size in stores) - budget_bytes
    used = {store.folder.resolve() for store in list(_in_use)}
    removed = []
    for _, folder, size in stores:
        if excess > 0 and folder.resolve() not in used and _remove(folder):
            excess -= size
            removed.append(folder)
    return removed


def _stores(cache_dir: Path) -> Iterator[tuple[float, Path, int]]:
    """The time of last use, the folder and the bytes of each store."""
    for meta in cache_dir.rglob(_META):
        with suppress(FileNotFoundError):  # Another process may be trimming, too.
            yield (
                meta.stat().st_mtime,
                meta.parent,
                sum(file.stat().st_size for file in meta.parent.iterdir()),
            )


def _remove(store: Path) -> bool:
    try:
        with FileLock(f"{store}.lock", timeout=0):
            shutil.rmtree(store)
    except Timeout:
        return False
    return True
