"""A store of equally shaped rows by key, shared by processes and safe against being killed.

A store is a folder: `rows.bin` holds the rows one after another, `keys.bin` their keys in the same order,
`store.json` the shape and type of a row. A row is written before its key, so what a killed process leaves
is a tail without keys: it is not seen, and the next append overwrites it.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from weakref import WeakSet

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import DTypeLike

from autotl.errors import AutotlError

KEY_BYTES = 32
DEFAULT_BUDGET = 10_000_000_000
_META = "store.json"

_in_use: "WeakSet[RowStore]" = WeakSet()


class StoreError(AutotlError):
    """A store in the cache folder cannot be used or written."""


class RowStore:
    """Rows of one `shape` and `dtype` by key: the hex SHA-256 of what a row was made from."""

    def __init__(self, folder: Path, shape: Sequence[int], dtype: DTypeLike) -> None:
        """Raises: StoreError when the folder holds something else."""
        self.folder = Path(folder)
        self.shape = tuple(shape)
        self.dtype = np.dtype(dtype)
        self._row_bytes = self.dtype.itemsize * int(np.prod(self.shape))
        # Beside the folder: whoever waits for it must not find it deleted together with the store.
        self._lock = FileLock(f"{self.folder}.lock")
        self._positions: dict[str, int] = {}
        self._rows = np.empty((0, *self.shape), self.dtype)
        self._inode: int | None = None
        _in_use.add(self)
        with self._writing():
            self._create()
        self.refresh()

    def __len__(self) -> int:
        self.refresh()
        return len(self._positions)

    def __contains__(self, key: object) -> bool:
        """Whether there was a row at the last `refresh`, which all other methods do by themselves."""
        return key in self._positions

    def missing(self, keys: Iterable[str]) -> list[str]:
        """The keys that have no row yet, each once, in the order given."""
        self.refresh()
        return [key for key in dict.fromkeys(keys) if key not in self._positions]

    def append(self, keys: Sequence[str], rows: np.ndarray) -> None:
        """Add rows, [N, *shape] of the store's type; a key that is there keeps its row.

        Raises: StoreError when they cannot be written.
        """
        if rows.shape != (len(keys), *self.shape) or rows.dtype != self.dtype:
            raise ValueError(f"{len(keys)} keys, rows {rows.shape} {rows.dtype}; the store: {self}")
        with self._writing():
            self._create()
            self.refresh()
            self._write(keys, rows)
        self.refresh()

    def read(self, keys: Sequence[str], columns: slice | None = None) -> np.ndarray:
        """The rows of `keys`, [N, *shape], as a copy; of flat rows only `columns`, if given.

        Raises: KeyError for a key that has no row.
        """
        if not all(key in self._positions for key in keys):
            self.refresh()
        self._touch()
        at = np.fromiter((self._positions[key] for key in keys), np.intp, len(keys))
        if columns is None:
            return self._rows[at]
        if len(self.shape) != 1:
            raise ValueError(f"only flat rows have columns; the store: {self}")
        return self._rows[at, columns]

    def __repr__(self) -> str:
        return f"RowStore({str(self.folder)!r}, {self.shape}, {self.dtype})"

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Keeps other threads and processes from writing meanwhile."""
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            with self._lock:
                yield
        except OSError as error:
            raise StoreError(
                f"Cannot write to the cache {str(self.folder)!r}: {error.strerror or error}. Make room "
                f"there, or name another folder with --cache-dir."
            ) from error

    def _create(self) -> None:
        """Make the folder, or see that it is this store's."""
        expected = {"schema": 1, "shape": list(self.shape), "dtype": self.dtype.str}
        meta = self.folder / _META
        if not meta.exists():
            self.folder.mkdir(exist_ok=True)
            draft = meta.with_suffix(".new")
            draft.write_text(json.dumps(expected))
            draft.replace(meta)
        try:
            found = json.loads(meta.read_text())
        except ValueError:
            found = "something unreadable"
        if found != expected:
            raise StoreError(
                f"The cache {str(self.folder)!r} cannot be used: it holds {found} instead of {expected}. "
                f"Delete this folder; it will be made again."
            )
        self._touch()

    def _write(self, keys: Sequence[str], rows: np.ndarray) -> None:
        new: dict[str, int] = {}
        for at, key in enumerate(keys):
            if key not in self._positions:
                new.setdefault(key, at)
        count = len(self._positions)
        with open(self.folder / "rows.bin", "ab") as file:
            file.truncate(count * self._row_bytes)
            file.write(rows[list(new.values())].tobytes())
            file.flush()
            # Were a power cut to keep a key and lose its row, the row would read as zeros.
            os.fsync(file.fileno())
        with open(self.folder / "keys.bin", "ab") as file:
            file.truncate(count * KEY_BYTES)
            file.write(b"".join(map(bytes.fromhex, new)))

    def refresh(self) -> None:
        """See what is on disk now: this or another process may have added rows, or removed the store."""
        try:
            with open(self.folder / "rows.bin", "rb") as rows, open(self.folder / "keys.bin", "rb") as keys:
                self._see(rows, keys)
        except FileNotFoundError:
            self._positions = {}

    def _see(self, rows: BinaryIO, keys: BinaryIO) -> None:
        status = os.fstat(rows.fileno())
        count = min(status.st_size // self._row_bytes, os.fstat(keys.fileno()).st_size // KEY_BYTES)
        # A mapped file keeps its inode number: under another one lies a store that was made anew.
        grown = status.st_ino == self._inode and count >= len(self._positions)
        known = self._positions if grown else {}
        fresh = b""
        if count > len(known):
            keys.seek(len(known) * KEY_BYTES)
            fresh = keys.read((count - len(known)) * KEY_BYTES)
            # The rows first: another thread may look up a new position at once.
            self._rows = np.asarray(np.memmap(rows, self.dtype, mode="r", shape=(count, *self.shape)))
            self._inode = status.st_ino
        new = (fresh[at : at + KEY_BYTES].hex() for at in range(0, len(fresh), KEY_BYTES))
        self._positions = known | {key: at for at, key in enumerate(new, len(known))}

    def _touch(self) -> None:
        with suppress(OSError):
            os.utime(self.folder / _META)


def trim(cache_dir: Path, budget_bytes: int = DEFAULT_BUDGET) -> list[Path]:
    """Remove the stores used longest ago until the rest fit the budget; returns the folders removed.

    A store that this process uses, or that another one is just writing, is kept.
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
    """When a store was last used, its folder and its bytes."""
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
