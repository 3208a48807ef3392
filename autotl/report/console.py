"""The rich console for tables, notes and progress; it escapes text as `output` does."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console as RichConsole
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from autotl.report import layout
from autotl.report.output import printable


class Console(RichConsole):
    """A rich console that passes all text through `printable`; the only control codes are its own."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)  # before it is measured

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else printable(text), style, control)


def say(console: RichConsole, text: str) -> None:
    """Print a line for people on a console."""
    width = console.width if console.is_terminal else None
    console.print(layout.wrapped(printable(text), width), soft_wrap=True)
