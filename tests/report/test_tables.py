import pytest
from rich.console import Console

from autotl.plan import Head, Phase, TransferPlan
from autotl.report import tables
from autotl.tracking.log import TrialRecord


def record(number, value, loss, flops):
    plan = TransferPlan.model_construct(
        backbone="tiny:net", cut="2.1", head=Head(pooling="avg"), phases=(Phase.linear_probe("2.1"),)
    )
    return TrialRecord(
        number=number,
        state="complete",
        params={"strategy": "linear-probe"},
        plan=plan,
        value=value,
        metrics={"rank.loss": loss, "parameters": 1e6, "flops": flops},
        seconds=1.0,
        reason="",
        by_plugin=False,
        epochs=(),
        kills=0,
        killed_at="",
    )


def test_a_star_marks_what_nothing_cheaper_matches():
    board = [record(0, 0.9, 0.1, 5e6), record(1, 0.9, 0.2, 4e6), record(2, 0.8, 0.3, 4.5e6), record(3, 0.7, 0.4, 1e6)]
    console = Console(width=tables.PLAIN_WIDTH)
    with console.capture() as shown:
        console.print(tables.leaderboard(board, "accuracy", console.width))
    rows = shown.get().splitlines()[1:]
    assert [row.split()[0] for row in rows] == ["0", "1", "2", "3"]  # in the order given
    assert [row.split()[0] for row in rows if "*" in row] == ["1", "3"]
    assert "0.200" in rows[1] and "4 M" in rows[1]


@pytest.mark.parametrize(
    ("number", "says"),
    [(0, "0"), (999, "999"), (999_700, "1 M"), (1234567, "1.23 M"), (2.03e12, "2.03 T"), (5e15, "5e+03 T")],
)
def test_large_numbers_are_counted_in_thousands(number, says):
    assert tables.count(number) == says
