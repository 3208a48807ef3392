import io
import os
import sys

import pytest
from click.testing import CliRunner
from rich.table import Table
from rich.text import Text

from autotl.cli.main import main
from autotl.report import output, tables
from autotl.report.terminal import Terminal

HOSTILE = "x\x1b]0;OWNED\x07.png"
LATIN = os.fsdecode(b"caf\xe9.png")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (HOSTILE, "x\\x1b]0;OWNED\\x07.png"),
        (LATIN, "caf\\xe9.png"),
        ("gnp.\u202eevil", "gnp.\\u202eevil"),
        ("a\rb\x9b2J", "a\\x0db\\x9b2J"),
        ("two\nlines, naïve → ✓ \u200d", "two\nlines, naïve → ✓ \u200d"),
    ],
)
def test_control_characters_and_invalid_text_are_escaped(text, shown):
    assert output.printable(text) == shown


class TerminalLike(io.TextIOWrapper):
    """A terminal in strict UTF-8 that keeps what is written to it."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", errors="strict", write_through=True)

    def isatty(self) -> bool:
        return True

    @property
    def sent(self) -> str:
        return self.buffer.getvalue().decode()


def test_tables_notes_and_progress_are_escaped_and_keep_their_own_colours():
    stream = TerminalLike()
    console = tables.Console(file=stream, force_terminal=True, width=120)
    table = Table(box=None)
    table.add_column("excluded", style="bold")
    table.add_row(f"{HOSTILE} {LATIN}")
    console.print(table)
    with Terminal(console, brief=False) as terminal:
        terminal.note(HOSTILE)
        terminal.trial_planned(0, HOSTILE, 0, 1)
        terminal.progress(HOSTILE, 0, 2)
        terminal._live.refresh()
    console.print(Text(HOSTILE))
    assert "\x1b]0" not in stream.sent and stream.sent.count("\\x1b]0;OWNED") >= 4
    assert "\x1b[1m" in stream.sent and "caf\\xe9.png" in stream.sent


def test_data_for_programs_keeps_every_byte_except_on_a_terminal(monkeypatch):
    text = f"{HOSTILE},{LATIN},é\n"
    pipe, terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii"), TerminalLike()
    for stream in (pipe, terminal):
        monkeypatch.setattr(sys, "stdout", stream)
        output.write(text)
        stream.flush()
    assert pipe.buffer.getvalue() == os.fsencode(text)
    assert terminal.sent == "x\\x1b]0;OWNED\\x07.png,caf\\xe9.png,é\n"


def test_an_encoding_that_lacks_characters_ends_no_command(tmp_path):
    done = CliRunner(charset="latin-1").invoke(main, ["studies", "--home", str(tmp_path / "→")])
    assert done.exit_code == 0, done.exception
    assert "\\u2192 yet" in done.stdout


def test_errors_of_click_are_escaped():
    done = CliRunner().invoke(main, ["studies", f"--{HOSTILE}"])
    assert done.exit_code == 2 and "\x1b" not in done.stderr and "Usage: " in done.stderr
