"""Writing files so that a process that dies in the middle spoils nothing."""

import json
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any


def write(file: Path, content: str | bytes) -> None:
    """Write a file whole or not at all, with its folder where that is missing. Text is UTF-8."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}.{threading.get_ident()}.new")
    try:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        partial.replace(file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def read_lines(file: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file, one a line; none where there is no file, and half-written lines do not count."""
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        with suppress(json.JSONDecodeError):
            yield json.loads(line)


def append_line(file: Path, line: str) -> None:
    """Add a line to a file that may end in half of one, and do not return before it is on the disk."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a+", encoding="utf-8") as stream:
        stream.seek(max(0, stream.tell() - 1))
        torn = stream.read() not in ("", "\n")  # by a process that was killed while writing
        stream.write("\n" * torn + line + "\n")
        stream.flush()
        os.fsync(stream.fileno())
