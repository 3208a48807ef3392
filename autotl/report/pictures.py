"""The picture of a study: the probe accuracy of each cut, and the metric of each trial by its cost."""

import io

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, PercentFormatter

from autotl.errors import StudyError
from autotl.report.frames import leaderboard, probe
from autotl.study import select
from autotl.study.costs import COSTS, USUAL
from autotl.tracking.folder import StudyFolder

FEW = 15
"""Of more plans than this, only those that no cheaper plan matches are numbered."""


def trade_offs(folder: StudyFolder) -> bytes:
    """A PNG file: on the left the probe accuracy of every cut, on the right the plans by metric and cost.

    Raises: StudyError if no trial on the current images has succeeded.
    """
    board = leaderboard(folder)
    if board.empty:
        raise StudyError(
            f"No trial of study '{folder.name}' has succeeded on its current images, so there is nothing to draw."
        )
    figure = Figure(figsize=(13, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    _cuts(left, folder)
    _costs(right, board, folder)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=110)
    return data.getvalue()


def _cuts(axes: Axes, folder: StudyFolder) -> None:
    for backbone, rows in probe(folder).groupby("backbone", sort=False):
        best = rows.groupby("cut", sort=False)["accuracy"].max()
        depth = [(at + 1) / len(best) for at in range(len(best))]
        top = int(best.to_numpy().argmax())
        (line,) = axes.plot(depth, best, marker=".", label=f"{backbone}, best at {best.index[top]}")
        axes.plot(depth[top], best.iloc[top], marker="o", markersize=9, color=line.get_color())
    axes.set_xlabel("cut, as a share of the backbone's stages")
    axes.set_ylabel("accuracy of a linear classifier on held-out train images")
    axes.set_title("Probe accuracy of each cut")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.legend()
    axes.grid(alpha=0.3)


def _costs(axes: Axes, board: pd.DataFrame, folder: StudyFolder) -> None:
    definition = folder.definition
    assert definition is not None
    metric, scale, cost = definition.metric, definition.scale, COSTS[definition.minimize or USUAL]
    # Plans far worse than the best of every strategy would squeeze the others into a line.
    orders = board[metric].map(scale.order)
    worst = orders.groupby(board["strategy"]).min().max()
    points = zip(board.index, zip(orders, board[cost.metric], strict=True), strict=True)
    cheapest = board.index.isin(select.front(dict(points)))
    near = orders <= worst + max(0.02, 0.3 * (worst - orders.min()))
    shown = board[near | cheapest if definition.minimize else near]
    for strategy, rows in shown.groupby("strategy", sort=False):
        axes.scatter(rows[cost.metric], rows[metric], label=str(strategy), alpha=0.8)
    front = shown[shown.index.isin(board.index[cheapest])].sort_values(cost.metric)
    axes.plot(
        front[cost.metric],
        front[metric],
        color="grey",
        linewidth=1,
        zorder=0,
        label=f"none with {cost.less} is as good",
    )
    for _, rows in (shown if len(shown) <= FEW else front).groupby([cost.metric, metric]):
        place = (rows[cost.metric].iloc[0], rows[metric].iloc[0])
        axes.annotate(", ".join(map(str, sorted(rows.index))), place, xytext=(4, 4), textcoords="offset points")
    if len(shown) < len(board):
        below = "below" if scale.greater_is_better else "above"
        where = "not on the front" if definition.minimize else below
        axes.text(
            0.98,
            0.02,
            f"{len(board) - len(shown)} more {where}",
            transform=axes.transAxes,
            color="grey",
            ha="right",
        )
    axes.set_xscale("log", subs=(2, 3, 5))
    for write in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        write("{x:g}" if definition.minimize == "latency" else EngFormatter(sep=" "))
    if scale.percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlabel(cost.unit)
    axes.set_ylabel(f"{metric} on the val split")
    axes.set_title(f"{metric} and cost of each trial")
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
