"""Atomic writing of files, and reading of files that may be damaged."""

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
"""Largest file that is read, in bytes."""


def write(file: Path, content: str | bytes, *, private: bool = False) -> None:
    """Write a file atomically, and create its folder if missing. Text is UTF-8.

    `private`: only its owner may read it.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}.{threading.get_ident()}.new")
    try:
        with open(partial, "wb", opener=owner_only if private else None) as out:
            out.write(content.encode() if isinstance(content, str) else content)
            out.flush()
            os.fsync(out.fileno())  # else a power cut after the rename could leave it empty
        partial.replace(file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def is_utf8(path: Path) -> bool:
    """Whether the path is valid UTF-8, so that JSON can hold it."""
    return not any("\ud800" <= letter <= "\udfff" for letter in str(path))


def seal(file: Path, text: str) -> None:
    """Write a file of the cache with its hash in front, so that damage is detected."""
    write(file, f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}")


def unseal(file: Path) -> str | None:
    """The text of a file that `seal` wrote; None if it is missing or damaged."""
    try:
        found, _, text = file.read_text(encoding="utf-8").partition("\n")
    except (FileNotFoundError, UnicodeDecodeError):
        return None
    return text if found == hashlib.sha256(text.encode()).hexdigest() else None


def read_regular(file: Path, most: int) -> bytes:
    """The content of a regular file of at most `most` bytes; no pipes or devices, which might never end.

    Raises: OSError, whose `strerror` is the reason.
    """
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(file))
    if status.st_size > most:
        raise OSError(errno.EFBIG, f"too large: {status.st_size:,} bytes, at most {most:,} are read", str(file))
    return file.read_bytes()


def owner_only(file: str, flags: int) -> int:
    """An opener for `open` that creates files readable only by their owner, as they may hold a URL."""
    return os.open(file, flags, 0o600)


def as_json(value: Any) -> str:
    """A JSON value as indented text."""
    return json.dumps(value, indent=2) + "\n"


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A new folder to fill, which then replaces `folder`; if filling it fails, nothing changes.

    It is filled beside `folder`, so that a kill never leaves a mix of both.
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
    """Restore the old folder after a process was killed while `replacing` it; only for the writer."""
    _, old = _beside(folder)
    if old.exists() and not folder.exists():
        old.rename(folder)


def where_it_is(folder: Path) -> Path:
    """For a reader: the folder, or the old one while a process is `replacing` it or if it was killed then."""
    _, old = _beside(folder)
    return old if old.exists() and not folder.exists() else folder


def holds_only(folder: Path, names: tuple[str, ...], mark: str) -> bool:
    """Whether the folder may be replaced: it is missing, empty, or holds `mark` and only these names.

    Hidden files are ignored; hidden folders are not, as one may be a repository.
    """
    if not folder.exists():
        return True
    if not folder.is_dir():
        return False
    there = {file.name for file in folder.iterdir() if not file.name.startswith(".") or file.is_dir()}
    return not there or (mark in there and there <= {*names, "__pycache__"})


def _beside(folder: Path) -> tuple[Path, Path]:
    """Temporary paths of the new folder and of the old one that it replaces."""
    return folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")


def read(file: Path) -> bytes:
    """The content of a file of a study.

    Raises: DamagedFile if it is not a regular file, such as a folder or a pipe.
    """
    try:
        return read_regular(file, MOST)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EFBIG):
            raise
        raise DamagedFile(file, f"it is {error.strerror}") from None


def read_lines(file: Path, check: Callable[[Any], object]) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file, one per line; none if it is missing. Half-written lines are ignored.

    `check` raises pydantic's ValidationError for a value that is not a line of this file.

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
    """The first validation error, and its place in the value."""
    first = error.errors()[0]
    return f"{first['msg']} (at {'.'.join(map(str, first['loc'])) or 'the top level'})"


def append_line(file: Path, line: str) -> None:
    """Append a line to a file that may end in half a line, and flush it to the disk.

    A new file is readable only by its owner.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "ab+", opener=owner_only) as stream:
        stream.seek(max(0, stream.tell() - 1))
        torn = stream.read() not in (b"", b"\n")  # by a process that was killed while writing
        stream.write(b"\n" * torn + line.encode() + b"\n")
        stream.flush()
        os.fsync(stream.fileno())
