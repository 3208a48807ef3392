import fcntl
import io
import os
import struct
import termios

import pytest

from autotl.report import layout

TEXT = "Winner: autotl:resnet10, cut after layer4.0, features averaged, by full."


@pytest.mark.parametrize("indent", ["", "    "])
def test_lines_break_between_words_and_only_if_there_is_a_width(indent):
    lines = layout.wrapped(indent + TEXT, 30).splitlines()
    assert " ".join(map(str.strip, lines)) == TEXT
    assert max(map(len, lines)) <= 30 and lines[0].startswith(indent)
    assert all(line.startswith(f"{indent}  ") for line in lines[1:])
    assert layout.wrapped(indent + TEXT, None) == indent + TEXT


@pytest.mark.parametrize("command", ["autotl show digits --plan 3 --home /a/long/path", "pip install 'onnx>=1.17,<2'"])
def test_a_command_at_the_end_stays_whole(command):
    *prose, last = layout.wrapped(f"There is none yet. Resume it: {command}", 24).splitlines()
    assert last == f"  {command}" and prose[-1].endswith(":")
    for line in (f"   → {command}", f"  {command}   # then: {command}"):
        assert layout.wrapped(line, 10) == line


def test_the_text_about_a_name_is_beside_it_or_below():
    rows = [("resnet", "not here"), ("a name that takes half of the width", "one two three four five six seven")]
    assert list(layout.listed(rows, 40)) == [
        "resnet  not here",
        "a name that takes half of the width",
        "        one two three four five six",
        "        seven",
    ]
    assert next(layout.listed(rows, None)) == f"{'resnet':<37}not here"


def test_the_width_is_that_of_the_terminal_or_of_columns(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    ours, theirs = os.openpty()
    with open(theirs, "w") as terminal, os.fdopen(ours):
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 93, 0, 0))
        assert layout.width(terminal) == 93
        monkeypatch.setenv("COLUMNS", "72")
        assert layout.width(terminal) == 72
        assert layout.width(io.StringIO()) is None
