"""Output of a search in a notebook: one output below the cell, which grows line by line."""

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
    """Suppress warnings of libraries about their own progress bars, which are not shown."""
    warnings.filterwarnings("ignore", message="IProgress not found")


def console() -> Console:
    """A console that prints below the running cell."""
    return Console(
        file=_Cell(), width=WIDTH, force_terminal=False, force_jupyter=False, highlight=False, markup=False, emoji=False
    )


class _Cell(io.StringIO):
    """Text that a cell shows as one output; printed directly, each line would be a separate output."""

    def __init__(self) -> None:
        from IPython.display import display

        super().__init__()
        self._output = display({"text/plain": ""}, raw=True, display_id=True)

    def flush(self) -> None:
        text = self.getvalue()
        page = f"<pre style='line-height: 1.2; font-family: monospace'>{html.escape(text)}</pre>"
        self._output.update({"text/plain": text, "text/html": page}, raw=True)
