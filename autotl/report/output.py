"""Printing to the terminal: text is escaped, so that it cannot control the terminal or fail to be encoded."""

import re
import sys
from collections.abc import Iterable

import click

from autotl.report import layout

_UNPRINTABLE = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f"  # control characters but the line break
    "\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"  # line separators, and changes of the writing direction
    "\ud800-\udfff]"  # bytes of a file name that is not UTF-8, as Python keeps them
)


def printable(text: str) -> str:
    """The text with an escape such as `\\x1b` for each character that would control a terminal or is not text."""
    return _UNPRINTABLE.sub(_escape, text)


def echo(text: str = "", *, err: bool = False) -> None:
    """Print a line for people, on standard error if `err`."""
    width = layout.width(sys.stderr if err else sys.stdout)
    click.echo(layout.wrapped(printable(text), width), err=err)


def echo_list(rows: Iterable[tuple[str, str]]) -> None:
    """Print names for people, each with its text."""
    shown = [(printable(name), printable(text)) for name, text in rows]
    for line in layout.listed(shown, layout.width(sys.stdout)):
        click.echo(line)


def write(text: str) -> None:
    """Print text for programs: UTF-8, with file names as their own bytes; on a terminal with escapes, like `echo`."""
    if sys.stdout.isatty():
        click.echo(printable(text), nl=False)
    else:
        click.echo(text.encode("utf-8", "surrogateescape"), nl=False)


def escape_what_cannot_be_encoded() -> None:
    """Make standard output escape characters that its encoding lacks, as standard error does."""
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    if 0xDC80 <= code <= 0xDCFF:
        code -= 0xDC00  # the byte itself
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
