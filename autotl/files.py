"""Writing files so that a process that dies in the middle spoils nothing, and reading what may be damaged."""

import errno
import hashlib
import json
import os
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from autotl.errors import DamagedFile

MOST = 1 << 30
"""Bytes of a file that is read whole."""


def write(file: Path, content: str | bytes, *, private: bool = False) -> None:
    """Write a file whole or not at all, with its folder where that is missing. Text is UTF-8.

    `private`: nobody but its owner may read it.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}.{threading.get_ident()}.new")
    try:
        with open(partial, "wb", opener=owner_only if private else None) as out:
            out.write(content.encode() if isinstance(content, str) else content)
            out.flush()
            os.fsync(out.fileno())  # a new name for what a power cut may still empty would spoil the file
        partial.replace(file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def is_utf8(path: Path) -> bool:
    """Whether JSON can hold the path; other names of files are bytes that are no text."""
    return not any("\ud800" <= letter <= "\udfff" for letter in str(path))


def seal(file: Path, text: str) -> None:
    """Write a file of the cache with its hash in front, so that damage is found out."""
    write(file, f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}")


def unseal(file: Path) -> str | None:
    """The text of a file that `seal` wrote; None where there is none, or it is damaged."""
    try:
        found, _, text = file.read_text(encoding="utf-8").partition("\n")
    except (FileNotFoundError, UnicodeDecodeError):
        return None
    return text if found == hashlib.sha256(text.encode()).hexdigest() else None


def read_regular(file: Path, most: int) -> bytes:
    """The content of a regular file of so many bytes at most: nothing that never ends, nothing that waits for a writer.

    Raises: OSError, whose `strerror` is the reason.
    """
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(file))
    if status.st_size > most:
        raise OSError(errno.EFBIG, f"too large: {status.st_size:,} bytes, at most {most:,} are read", str(file))
    return file.read_bytes()


def owner_only(file: str, flags: int) -> int:
    """An opener for `open`: a file that it makes can be read by its owner alone, as it may hold a URL."""
    return os.open(file, flags, 0o600)


def as_json(value: Any) -> str:
    """A JSON value as the text of a file that people may read."""
    return json.dumps(value, indent=2) + "\n"


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A new folder to fill, which then takes the place of `folder`; where filling it fails, all stays as it was.

    It is filled beside it, so that whoever kills this process never leaves half of two.
    """
    made, old = _beside(folder)
    for left in (made, old):
        shutil.rmtree(left, ignore_errors=True)
    made.mkdir(parents=True)
    try:
        yield made
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    if folder.exists():
        folder.rename(old)
    made.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def settle(folder: Path) -> None:
    """Put back what a process that was killed while `replacing` the folder had laid aside; for its writer alone."""
    _, old = _beside(folder)
    if old.exists() and not folder.exists():
        old.rename(folder)


def where_it_is(folder: Path) -> Path:
    """For a reader: the folder, or where a process that is `replacing` it, or was killed then, has laid it."""
    _, old = _beside(folder)
    return old if old.exists() and not folder.exists() else folder


def holds_only(folder: Path, names: tuple[str, ...], mark: str) -> bool:
    """Whether the folder may be replaced: it is absent or empty, or holds `mark` and no others than these names.

    Hidden files do not count, hidden folders do: one may be a repository.
    """
    if not folder.exists():
        return True
    if not folder.is_dir():
        return False
    there = {file.name for file in folder.iterdir() if not file.name.startswith(".") or file.is_dir()}
    return not there or (mark in there and there <= {*names, "__pycache__"})


def _beside(folder: Path) -> tuple[Path, Path]:
    """Where a new folder is made, and where the one that it replaces is laid."""
    return folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")


def read(file: Path) -> bytes:
    """The content of a file of a study.

    Raises: DamagedFile for what is none, such as a folder, or a pipe that nobody may ever write to.
    """
    try:
        return read_regular(file, MOST)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EFBIG):
            raise
        raise DamagedFile(file, f"it is {error.strerror}") from None


def read_lines(file: Path, check: Callable[[Any], object]) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file, one a line; none where there is no file, and half-written lines do not count.

    `check` raises pydantic's ValidationError for a value that is no line of this file.

    Raises: DamagedFile.
    """
    for number, line in enumerate(read(file).splitlines() if file.exists() else (), 1):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        try:
            check(value)
        except ValidationError as error:
            raise DamagedFile(file, f"line {number}, {first_problem(error)}") from None
        yield value


def first_problem(error: ValidationError) -> str:
    """What is wrong with a value, and where in it."""
    first = error.errors()[0]
    return f"{first['msg']} (at {'.'.join(map(str, first['loc'])) or 'the top level'})"


def append_line(file: Path, line: str) -> None:
    """Add a line to a file that may end in half of one, and do not return before it is on the disk.

    A file that is not there yet is made for its owner alone.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "ab+", opener=owner_only) as stream:
        stream.seek(max(0, stream.tell() - 1))
        torn = stream.read() not in (b"", b"\n")  # by a process that was killed while writing
        stream.write(b"\n" * torn + line.encode() + b"\n")
        stream.flush()
        os.fsync(stream.fileno())
