"""Writes the page of a study."""

from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from autotl.errors import reason
from autotl.files import write
from autotl.report.output import printable
from autotl.report.page.chart import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH
from autotl.report.page.facts import Facts, facts
from autotl.report.page.model import Judged
from autotl.report.page.study import read
from autotl.tracking.folder import StudyFolder

CANVAS = {
    "width": WIDTH,
    "height": HEIGHT,
    "left": LEFT,
    "right": WIDTH - RIGHT,
    "top": TOP,
    "bottom": HEIGHT - BOTTOM,
}


def html(folder: StudyFolder, test: Judged | None = None) -> str:
    """The page of a finished study. `test`: the model on the test images, if they are to be shown.

    Raises: StudyError if the study has no result yet, or one of its files is damaged.
    """
    return rendered(facts(read(folder), test))


def rendered(found: Facts) -> str:
    """Facts as HTML."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        finalize=_printable,  # names and paths are data, whatever characters they have
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(facts=found, canvas=CANVAS)


@dataclass(frozen=True)
class Page:
    """A page that was written; a notebook shows it."""

    path: Path

    def _repr_html_(self) -> str:
        page = escape(self.path.read_text(encoding="utf-8"))
        return f'<iframe srcdoc="{page}" sandbox style="width: 100%; height: 900px; border: 0"></iframe>'


def write_page(folder: StudyFolder, out: Path | None = None, test: Judged | None = None) -> Path:
    """Write the page to `out`, by default `report.html` in the study's folder.

    Raises: as `html`.
    """
    file = out or folder.report
    write(file, html(folder, test))
    return file


def write_at_the_end(folder: StudyFolder, note: Callable[[str], None]) -> None:
    """Write the page of a search that has just ended; if that fails, only note it: the search has its result."""
    try:
        write_page(folder)
    except Exception as error:  # nothing in a page may make a finished search fail
        note(f"The report was not written: {reason(error)} Write it later: autotl report {folder.words}")


def _printable(value: Any) -> Any:
    return printable(value) if type(value) is str else value
