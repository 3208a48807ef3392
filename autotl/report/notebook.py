"""A search in a notebook: one output below the cell, which grows line by line."""

import html
import io
import sys
import warnings

from autotl.report.console import Console

WIDTH = 110
"""Characters that fit below a cell."""


def is_here() -> bool:
    """Whether this process runs the cells of a notebook."""
    shell = sys.modules.get("IPython")
    return shell is not None and type(shell.get_ipython()).__name__ == "ZMQInteractiveShell"


def quieten() -> None:
    """Keep libraries from complaining that progress bars of theirs, which nobody sees, cannot be drawn."""
    warnings.filterwarnings("ignore", message="IProgress not found")


def console() -> Console:
    """Prints below the cell that is running."""
    return Console(
        file=_Cell(), width=WIDTH, force_terminal=False, force_jupyter=False, highlight=False, markup=False, emoji=False
    )


class _Cell(io.StringIO):
    """Text that a cell shows as one output: each line on its own would be an output of its own."""

    def __init__(self) -> None:
        from IPython.display import display

        super().__init__()
        self._output = display({"text/plain": ""}, raw=True, display_id=True)

    def flush(self) -> None:
        text = self.getvalue()
        page = f"<pre style='line-height: 1.2; font-family: monospace'>{html.escape(text)}</pre>"
        self._output.update({"text/plain": text, "text/html": page}, raw=True)
