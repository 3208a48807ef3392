"""Line wrapping to the width of the terminal; lines to a file or a pipe are not wrapped."""

import math
import os
import re
import textwrap
from collections.abc import Iterable, Iterator
from typing import IO

COMMAND = "(?:autotl [a-z]|pip install )"
"""The start of a command at the end of a text."""
SHARE = 0.4
"""Largest share of the width that names may take."""


def width(stream: IO[str]) -> int | None:
    """Columns of the terminal that a stream writes to, or `COLUMNS` if set; None for a file or a pipe."""
    if not stream.isatty():
        return None  # even with COLUMNS set: readline sets it, unasked, for every child process
    columns = os.environ.get("COLUMNS", "")
    return int(columns) if columns.isdigit() else os.get_terminal_size(stream.fileno()).columns or None


def wrapped(text: str, width: int | None) -> str:
    """The text in lines broken between words; continuation lines are indented by two columns.

    A command at the end of a line stays whole, so that it can be copied.
    """
    if width is None:
        return text
    found = []
    for line in text.split("\n"):
        start = len(line) - len(line.lstrip())
        found += _wrapped(line, width, start, start + 2)
    return "\n".join(found)


def listed(rows: Iterable[tuple[str, str]], width: int | None) -> Iterator[str]:
    """Lines of names, each with its text beside it, or below a name that is too long."""
    rows = list(rows)
    most = SHARE * width if width else math.inf
    column = max((len(name) for name, _ in rows if len(name) <= most), default=2) + 2
    for name, text in rows:
        beside = len(name) < column
        if not beside:
            yield name
        line = f"{name if beside else '':<{column}}{text}"
        yield from _wrapped(line, width, column, column) if width else [line.rstrip()]


def _wrapped(line: str, width: int, start: int, hang: int) -> list[str]:
    """A line broken into several. Its text starts at column `start`; the other lines start at `hang`."""
    text = line[start:]
    if len(line) <= width or re.match(f"(→ )?{COMMAND}", text):
        return [line.rstrip()]
    found = re.fullmatch(f"(.+:) ({COMMAND}.+)", text)
    prose, command = found.groups() if found else (text, "")
    indent = " " * hang
    lines = textwrap.wrap(
        prose,
        width,
        initial_indent=line[:start],
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [*lines, indent + command] if command else lines
