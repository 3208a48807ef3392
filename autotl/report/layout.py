"""Text laid out for the width that it is read at. Where the output goes to a file or a pipe, a line stays a line."""

import math
import os
import re
import textwrap
from collections.abc import Iterable, Iterator
from typing import IO

COMMAND = "(?:autotl [a-z]|pip install )"
"""How a command begins that a text may end with."""
SHARE = 0.4
"""How much of the width names may take."""


def width(stream: IO[str]) -> int | None:
    """Columns of the terminal that a stream writes to, or as `COLUMNS` says of it; None where it is none."""
    if not stream.isatty():
        return None  # whatever COLUMNS says: readline sets it unasked for all that a program starts
    said = os.environ.get("COLUMNS", "")
    return int(said) if said.isdigit() else os.get_terminal_size(stream.fileno()).columns or None


def wrapped(text: str, width: int | None) -> str:
    """The text in lines that end between words; those that a line is continued in begin two columns further right.

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
    """Lines of names with what there is to say of each beside it, or below a name that leaves too little room."""
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
    """A line in several, not broken before its text, which begins at `start`; the others begin at `hang`."""
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
