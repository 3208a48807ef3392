"""What is shown as a table: the data, the probe's look at each cut, the leaderboard, the studies."""

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from statistics import median
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from autotl.errors import AutotlError, one_line
from autotl.plan import TransferPlan
from autotl.report.output import Console
from autotl.study.select import LOSS_DIGITS, front, plan_of
from autotl.tracking import result as results
from autotl.tracking.folder import StudyFolder
from autotl.tracking.log import ENDED, TrialRecord
from autotl.tracking.probe import ProbeRow

if TYPE_CHECKING:
    from autotl.data.dataset import Dataset

WIDE = 116
"""Columns from which the leaderboard shows everything."""
PLAIN_WIDTH = 160
"""Columns where the output goes to a file or a pipe."""


def console(*, stderr: bool = False) -> Console:
    """The terminal, or plain text of a fixed width where there is none."""
    # The stream itself, as it is now: while plugins are at work, `sys.stdout` is standard error.
    made = Console(file=sys.stderr if stderr else sys.stdout, highlight=False, markup=False, emoji=False)
    if not made.is_terminal:
        made.width = PLAIN_WIDTH
    return made


def dataset(data: "Dataset") -> Table:
    """Images, classes, smallest and largest class, sizes, splits, what was wrong."""
    counts = data.counts()
    totals = {name: sum(by_split.values()) for name, by_split in counts.items()}
    smallest, largest = min(totals, key=totals.__getitem__), max(totals, key=totals.__getitem__)
    splits = {
        split: sum(by_split.get(split, 0) for by_split in counts.values())
        for split in ("train", "stop", "rank", "test")
    }
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_row("images", f"{len(data.images):,} in {len(data.classes)} classes")
    if totals[smallest] == totals[largest]:
        table.add_row("each class", f"{totals[largest]:,} images")
    else:
        table.add_row("smallest class", f"{smallest} ({totals[smallest]:,})")
        table.add_row("largest class", f"{largest} ({totals[largest]:,})")
    table.add_row("sizes", _sizes([(image.width, image.height) for image in data.images]))
    table.add_row("splits", ", ".join(f"{name} {count:,}" for name, count in splits.items() if count))
    for note in data.notes:
        table.add_row("note", note)
    for problem in data.problems[:5]:
        table.add_row("set aside", f"{problem.path}: {problem.reason}")
    if len(data.problems) > 5:
        table.add_row("", f"… and {len(data.problems) - 5:,} more; all are in data/problems.csv of the study")
    return table


def probe(rows: Sequence[ProbeRow]) -> Table:
    """For each backbone a row of its cuts, from the first stage to the last, under the best pooling."""
    best: dict[str, dict[str, float]] = {}
    for row in rows:
        cuts = best.setdefault(row.backbone, {})
        cuts[row.cut] = max(row.accuracy, cuts.get(row.cut, 0.0))
    table = Table(box=None)
    table.add_column("probe: left-out train images")
    table.add_column("best cut")
    table.add_column("accuracy", justify="right")
    table.add_column("every cut from first to last, %")
    for backbone, cuts in sorted(best.items(), key=lambda item: -max(item[1].values())):
        top = max(cuts, key=cuts.__getitem__)
        cells = Text(" ").join(
            Text(f"{100 * value:.0f}", style="bold" if cut == top else "") for cut, value in cuts.items()
        )
        table.add_row(backbone, top, f"{cuts[top]:.1%}", cells)
    return table


def leaderboard(records: Sequence[TrialRecord], metric: str, width: int, most: int = 10) -> Table:
    """The best plans with what one image costs them; `*` marks those that nothing cheaper matches.

    Where `width`, in characters, is little, only the columns that matter most are shown.
    """
    cheapest = front({record.number: (record.value or 0.0, record.metrics["flops"]) for record in records})
    columns: dict[str, Callable[[TrialRecord, TransferPlan], str]] = {
        "trial": lambda record, plan: str(record.number),
        "strategy": lambda record, plan: str(record.params["strategy"]),
        "backbone": lambda record, plan: plan.backbone,
        "cut": lambda record, plan: plan.cut,
        "frozen": lambda record, plan: frozen(plan),
        "pooling": lambda record, plan: plan.head.pooling,
        metric: lambda record, plan: f"{record.value:.1%}",
        "log-loss": lambda record, plan: f"{record.metrics['rank.loss']:.{LOSS_DIGITS}f}",
        "parameters": lambda record, plan: count(record.metrics["parameters"]),
        "FLOPs": lambda record, plan: count(record.metrics["flops"]),
        "": lambda record, plan: "*" if record.number in cheapest else "",
    }
    left_out = () if width >= WIDE else ("pooling", "log-loss", "parameters")
    shown = {name: cell for name, cell in columns.items() if name not in left_out}
    table = Table(box=None)
    for name in shown:
        numbers = name in (metric, "log-loss", "parameters", "FLOPs")
        table.add_column(name, justify="right" if numbers else "left", no_wrap=name != "backbone", overflow="fold")
    for record in records[:most]:
        table.add_row(*(cell(record, plan_of(record)) for cell in shown.values()))
    return table


def frozen(plan: TransferPlan) -> str:
    """The last stage that the last phase leaves as it is, `all` or `none`."""
    last = plan.phases[-1].frozen
    return "all" if last == plan.cut else last or "none"


def strategies(records: Sequence[TrialRecord], metric: str) -> Table:
    """What each strategy came to: its trials, its best and its middle value, and what its trials took."""
    table = Table(box=None)
    for name in ("strategy", "trials", "pruned", "failed", f"best {metric}", "median", "seconds a trial"):
        table.add_column(name, justify="left" if name == "strategy" else "right")
    by_strategy: dict[str, list[TrialRecord]] = {}
    for record in records:
        if record.state in ENDED and "strategy" in record.params:
            by_strategy.setdefault(record.params["strategy"], []).append(record)
    for name, members in sorted(by_strategy.items(), key=lambda item: -max(_values(item[1]), default=0.0)):
        values = _values(members)
        table.add_row(
            name,
            str(len(members)),
            *(str(sum(record.state == state for record in members)) for state in ("pruned", "failed")),
            f"{max(values):.1%}" if values else "",
            f"{median(values):.1%}" if values else "",
            f"{median(record.seconds for record in members):.1f}",
        )
    return table


def _values(records: Iterable[TrialRecord]) -> list[float]:
    return [record.value for record in records if record.value is not None]


def count(number: float) -> str:
    """1234567 → `1.23 M`."""
    rounded = float(f"{number:.3g}")
    power = min(4, max(0, int(math.log10(max(1.0, rounded))) // 3))
    return f"{rounded / 1000**power:.3g}{('', ' k', ' M', ' G', ' T')[power]}"


def studies(folders: Iterable[StudyFolder]) -> Iterator[Table | str]:
    """A row for each study that can be read, and then a line for each other one, with what is wrong with it."""
    table = Table(box=None)
    for name in ("study", "classes", "trials", "metric"):
        table.add_column(name)
    for name in ("validation", "test"):
        table.add_column(name, justify="right")
    problems = []
    for folder in folders:
        try:
            table.add_row(*_study(folder))
        except (AutotlError, OSError) as error:
            problems.append(f"Study '{folder.name}' cannot be read: {one_line(error)}")
    yield table
    yield from problems


def _study(folder: StudyFolder) -> Iterator[str]:
    definition, result = folder.require_definition(), results.load(folder)
    yield folder.name
    yield str(len(definition.classes))
    yield str(sum(record.state in ENDED for record in folder.log.records()))
    yield definition.metric
    yield f"{result.best.validation:.1%}" if result else ""
    yield f"{result.test.value:.1%}" if result else ""


def _sizes(sizes: Sequence[tuple[int, int]]) -> str:
    smallest, largest = min(sizes, key=lambda s: s[0] * s[1]), max(sizes, key=lambda s: s[0] * s[1])
    text = f"{smallest[0]} x {smallest[1]} px"
    return text if smallest == largest else f"{text} to {largest[0]} x {largest[1]} px"
