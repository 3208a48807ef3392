"""Tables: the data, the probe, the leaderboard, the strategies, the studies."""

import math
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from autotl.engine.scale import Scale
from autotl.errors import AutotlError, one_line, shortened
from autotl.plan import TransferPlan
from autotl.report.console import Console
from autotl.report.output import printable
from autotl.study.costs import COSTS, USUAL, Cost, count
from autotl.study.select import LOSS_DIGITS, by_cut, front, plan_of, starting_cuts, value_of
from autotl.tracking import result as results
from autotl.tracking.folder import StudyFolder
from autotl.tracking.log import ENDED, TrialRecord
from autotl.tracking.probe import ProbeRow

if TYPE_CHECKING:
    from autotl.data.dataset import Dataset

PLAIN_WIDTH = 160
"""Width of output to a file or a pipe, in characters."""
NAMES = ("trial", "strategy", "backbone", "cut", "frozen", "pooling", "head")
"""Columns of the leaderboard that hold no numbers."""
LOSS = "log-loss"
"""The column of the loss on `val`, by which equal values are ordered; the metric of this name is the same number."""
OPTIONAL = {"pooling": 24, "head": 24, "parameters": 24, LOSS: 24, "frozen": 24, "": 12, "ms": 12, "FLOPs": 12}
"""Columns that the leaderboard drops, in this order, before names get shorter than that many characters."""
Cells = dict[str, Callable[[TrialRecord, TransferPlan], str]]
"""What the cells of each column show."""
SHORTEST = 12
"""The fewest characters to which a name is shortened."""


def console(*, stderr: bool = False) -> Console:
    """The terminal, or plain text of a fixed width for a file or a pipe."""
    # The stream itself, as it is now: while plugin code runs, `sys.stdout` is standard error.
    made = Console(file=sys.stderr if stderr else sys.stdout, highlight=False, markup=False, emoji=False)
    if not made.is_terminal:
        made.width = PLAIN_WIDTH
    return made


def dataset(data: "Dataset") -> Table:
    """Images, classes, smallest and largest class, sizes, splits, notes, excluded files."""
    counts = data.counts()
    totals = {name: sum(by_split.values()) for name, by_split in counts.items()}
    smallest, largest = min(totals, key=totals.__getitem__), max(totals, key=totals.__getitem__)
    splits = {
        split: sum(by_split.get(split, 0) for by_split in counts.values())
        for split in ("train", "early_stop", "val", "test")
    }
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("images", f"{len(data.images):,} in {len(data.classes)} classes")
    if totals[smallest] == totals[largest]:
        table.add_row("each class", f"{totals[largest]:,} images")
    else:
        table.add_row("smallest class", f"'{smallest}', {totals[smallest]:,} images")
        table.add_row("largest class", f"'{largest}', {totals[largest]:,} images")
    table.add_row("sizes", _sizes([(image.width, image.height) for image in data.images]))
    if f"{data.shapes.cut_away:.0%}" != "0%":
        table.add_row("cropping", f"a square crop removes {data.shapes.cut_away:.0%} of the median image")
    table.add_row("splits", ", ".join(f"{name} {count:,}" for name, count in splits.items() if count))
    for note in data.notes:
        table.add_row("note", note)
    for problem in data.problems[:5]:
        table.add_row("excluded", f"{problem.path}: {problem.reason}")
    if len(data.problems) > 5:
        table.add_row("", f"… and {len(data.problems) - 5:,} more; all are in data/problems.csv of the study")
    return table


def fitted(
    columns: Mapping[str, Sequence[str]], width: int, *, names: Collection[str], optional: Mapping[str, int]
) -> Table:
    """A table no wider than `width` if possible, with each row in one line.

    If it were wider, its headers take several lines; then columns are dropped, each if `names` had to be shorter than
    the characters that `optional` gives for it; then names are shortened. Columns not in `names` hold numbers.
    """
    shown = {name: list(map(printable, column)) for name, column in columns.items()}
    cells = {name: max(map(cell_len, column), default=0) for name, column in shown.items()}
    size = {name: max(cell_len(name), cells[name]) for name in columns}
    if _width(size.values()) > width:
        size = {name: max(*map(cell_len, [*name.split(), ""]), cells[name]) for name in columns}
    for name, least in optional.items():
        if _width(min(size[each], least) if each in names else size[each] for each in shown) > width:
            del shown[name]
    for _ in range(_width(size[name] for name in shown) - width):  # the longest loses one character at a time
        longest = max((name for name in names if name in shown), key=size.__getitem__)
        size[longest] = max(SHORTEST, size[longest] - 1)
    table = Table(box=None)
    for name in shown:
        table.add_column(name, justify="left" if name in names or not name else "right", width=size[name])
    for row in zip(*([shortened(cell, size[name]) for cell in column] for name, column in shown.items()), strict=True):
        table.add_row(*row)
    return table


def _width(columns: Iterable[int]) -> int:
    """Width of a table whose columns have these widths, with a space on either side of each."""
    return sum(size + 2 for size in columns)


def probe(rows: Sequence[ProbeRow], width: int) -> Table:
    """For each backbone the accuracy at its cuts, from the first stage to the last, with the best pooling."""
    names = dict.fromkeys(row.backbone for row in rows)
    cuts_of = {name: by_cut(row for row in rows if row.backbone == name) for name in names}
    most = max(SHORTEST, (width - 30) // 2)  # so that some cuts fit beside the names
    table = Table(box=None)
    table.add_column("probe: held-out train images")
    table.add_column("first cut to try", no_wrap=True)
    table.add_column("accuracy", justify="right", no_wrap=True)
    table.add_column("every cut, first to last, %")
    for start in starting_cuts(rows):
        backbone, top, cuts = start.backbone, start.cut, cuts_of[start.backbone]
        cells = Text(" ").join(
            Text(f"{100 * value:.0f}", style="bold" if cut == top else "") for cut, value in cuts.items()
        )
        table.add_row(Text(shortened(backbone, most), no_wrap=True), shortened(top, most), f"{cuts[top]:.1%}", cells)
    return table


def leaderboard(
    records: Sequence[TrialRecord], metric: str, scale: Scale, width: int, most: int = 10, cost: Cost = COSTS[USUAL]
) -> Table:
    """The best plans with their cost per image; `*` marks plans that no plan with less of `cost` matches.

    The kinds of heads are shown only if some are not linear, the latency in milliseconds only if it was measured.
    If `width`, in characters, is small, only the most important columns are shown, and names are shortened.
    """
    points = {record.number: (scale.order(value_of(record)), record.metrics[cost.metric]) for record in records}
    cheapest = front(points)
    losses: Cells = {LOSS: lambda record, plan: f"{record.metrics['val.loss']:.{LOSS_DIGITS}f}"}
    columns: Cells = {
        "trial": lambda record, plan: str(record.number),
        "strategy": lambda record, plan: str(record.params["strategy"]),
        "backbone": lambda record, plan: plan.backbone,
        "cut": lambda record, plan: plan.cut,
        "frozen": lambda record, plan: frozen(plan),
        "pooling": lambda record, plan: plan.head.pooling,
        "head": lambda record, plan: plan.head.title,
        metric: lambda record, plan: scale.text(value_of(record)),
        **(losses if metric != LOSS else {}),
        "parameters": lambda record, plan: count(record.metrics["parameters"]),
        "FLOPs": lambda record, plan: count(record.metrics["flops"]),
        "ms": lambda record, plan: f"{record.metrics['latency_ms']:.3g}",
        "": lambda record, plan: "*" if record.number in cheapest else "",
    }
    if not all("latency_ms" in record.metrics for record in records[:most]):
        del columns["ms"]
    if all(plan_of(record).head.kind == "linear" for record in records[:most]):
        del columns["head"]
    cells = {name: [cell(record, plan_of(record)) for record in records[:most]] for name, cell in columns.items()}
    optional = {name: least for name, least in OPTIONAL.items() if name in columns and name != metric}
    return fitted(cells, width, names=NAMES, optional=optional)


def frozen(plan: TransferPlan) -> str:
    """The last stage that the last phase keeps frozen, or `all` or `none`."""
    last = plan.phases[-1].frozen
    return "all" if last == plan.cut else last or "none"


def strategies(records: Sequence[TrialRecord], metric: str, scale: Scale, width: int) -> Table:
    """For each strategy its trials, its best and median value, and the median time of its trials."""
    names = ("strategy", "trials", "pruned", "failed", f"best {metric}", "median", "seconds per trial")
    by_strategy: dict[str, list[TrialRecord]] = {}
    for record in records:
        if record.state in ENDED and "strategy" in record.params:
            by_strategy.setdefault(record.params["strategy"], []).append(record)
    columns: dict[str, list[str]] = {name: [] for name in names}
    values_of = {name: sorted(_values(members), key=scale.order) for name, members in by_strategy.items()}
    for name in sorted(by_strategy, key=lambda name: [*map(scale.order, values_of[name]), math.inf][0]):
        members, values = by_strategy[name], values_of[name]
        row = (
            name,
            str(len(members)),
            *(str(sum(record.state == state for record in members)) for state in ("pruned", "failed")),
            scale.text(values[0]) if values else "",
            scale.text(median(values)) if values else "",
            f"{median(record.seconds for record in members):.1f}",
        )
        for column, cell in zip(columns.values(), row, strict=True):
            column.append(cell)
    return fitted(columns, width, names=("strategy",), optional={"pruned": 16, "failed": 16, "median": 16})


def _values(records: Iterable[TrialRecord]) -> list[float]:
    return [record.value for record in records if record.value is not None]


def studies(folders: Iterable[StudyFolder], width: int) -> Iterator[Table | str]:
    """A row for each readable study, then a line for each other one that says what is wrong with it."""
    columns: dict[str, list[str]] = {
        name: [] for name in ("study", "classes", "trials", "metric", "validation", "test")
    }
    problems = []
    for folder in folders:
        try:
            row = list(_study(folder))
        except (AutotlError, OSError) as error:
            problems.append(f"Study '{folder.name}' cannot be read: {one_line(error)}")
            continue
        for column, cell in zip(columns.values(), row, strict=True):
            column.append(cell)
    yield fitted(columns, width, names=("study", "metric"), optional={"classes": 24, "trials": 16})
    yield from problems


def _study(folder: StudyFolder) -> Iterator[str]:
    definition, result = folder.require_definition(), results.load(folder)
    yield folder.name
    yield str(len(definition.classes))
    yield str(sum(record.state in ENDED for record in folder.log.records()))
    yield definition.metric
    yield definition.scale.text(result.best.validation) if result else ""
    yield definition.scale.text(result.test.value) if result else ""


def _sizes(sizes: Sequence[tuple[int, int]]) -> str:
    smallest, largest = min(sizes, key=lambda s: s[0] * s[1]), max(sizes, key=lambda s: s[0] * s[1])
    text = f"{smallest[0]} x {smallest[1]} px"
    return text if smallest == largest else f"{text} to {largest[0]} x {largest[1]} px"
