from dataclasses import replace

import pytest
from PIL import Image
from rich.console import Console

from autotl.builtin import logistic
from autotl.data.dataset import open_dataset
from autotl.data.pixels import PixelStore
from autotl.engine.scale import Scale
from autotl.plan import Head, TransferPlan
from autotl.report import tables
from autotl.tracking.log import TrialRecord
from autotl.tracking.probe import ProbeRow


def record(number, value, loss, flops):
    plan = TransferPlan.model_construct(
        backbone="tiny:net", cut="2.1", head=Head(pooling="avg"), phases=(logistic.probe("2.1"),)
    )
    return TrialRecord(
        number=number,
        state="complete",
        params={"strategy": "linear-probe"},
        plan=plan,
        value=value,
        metrics={"val.loss": loss, "parameters": 1e6, "flops": flops},
        seconds=1.0,
        reason="",
        by_plugin=False,
        epochs=(),
        kills=0,
        killed_at="",
    )


def test_a_star_marks_plans_that_no_cheaper_one_matches():
    board = [record(0, 0.9, 0.1, 5e6), record(1, 0.9, 0.2, 4e6), record(2, 0.8, 0.3, 4.5e6), record(3, 0.7, 0.4, 1e6)]
    console = Console(width=tables.PLAIN_WIDTH)
    with console.capture() as shown:
        console.print(tables.leaderboard(board, "accuracy", Scale(), console.width))
    rows = shown.get().splitlines()[1:]
    assert [row.split()[0] for row in rows] == ["0", "1", "2", "3"]  # in the order given
    assert [row.split()[0] for row in rows if "*" in row] == ["1", "3"]
    assert "0.200" in rows[1] and "4 M" in rows[1]


def test_values_of_a_metric_that_is_better_where_smaller():
    """The star, the best of a strategy and the order of strategies; log-loss has one column at any width."""
    scale = Scale(greater_is_better=False, percent=False)
    records = [record(0, 0.25, 0.25, 5e6), record(1, 0.5, 0.5, 6e6), record(2, 0.75, 0.75, 1e6)]
    records[0] = replace(records[0], params={"strategy": "full"})
    records.append(replace(records[0], number=3, params={"strategy": "scratch"}, state="failed", value=None))
    for width in (60, tables.PLAIN_WIDTH):
        console = Console(width=width)
        with console.capture() as shown:
            console.print(tables.leaderboard(records[:3], "log-loss", scale, width))
        header, *rows = shown.get().splitlines()
        assert header.split().count("log-loss") == 1
        assert [value in row for value, row in zip(("0.2500", "0.5000", "0.7500"), rows, strict=True)] == [True] * 3
    assert [row.split()[0] for row in rows if "*" in row] == ["0", "2"]
    with console.capture() as shown:
        console.print(tables.strategies(records, "log-loss", scale, 160))
    rows = [row.split() for row in shown.get().splitlines()[1:]]
    assert [row[0] for row in rows] == ["full", "linear-probe", "scratch"]
    assert rows[1][4:6] == ["0.5000", "0.6250"] and rows[2][4:] == ["1.0"]


def test_the_kinds_of_heads_are_shown_if_some_are_not_linear():
    def printed(*heads):
        rows = [record(number, 0.9, 0.1, 1e6) for number in range(len(heads))]
        rows = [
            replace(row, plan=row.plan.model_copy(update={"head": head})) for row, head in zip(rows, heads, strict=True)
        ]
        console = Console(width=tables.PLAIN_WIDTH)
        with console.capture() as shown:
            console.print(tables.leaderboard(rows, "accuracy", Scale(), console.width))
        return shown.get()

    linear = Head(pooling="avg")
    assert "head" not in printed(linear, linear)
    several = printed(linear, Head(pooling="avg", kind="mlp", width=64), Head(pooling="gem", kind="cosine"))
    assert [word in several for word in (" head ", " linear ", " mlp 64 ", " cosine ")] == [True] * 4


def board(backbone, cut):
    """A leaderboard of one trial."""
    one = record(12, 0.9, 0.1, 5e6)
    plan = one.plan.model_copy(update={"backbone": backbone, "cut": cut})
    return [replace(one, plan=plan, params={"strategy": "gradual-unfreeze"})]


@pytest.mark.parametrize("width", [60, 80, 100, 140, 160])
@pytest.mark.parametrize(
    ("backbone", "cut"),
    [
        ("autotl:convnext@random", "stages.3.blocks.0"),
        ("timm:vit_small_patch16_224.augreg_in21k_ft_in1k", "blocks.11"),
    ],
)
def test_the_leaderboard_fits_with_the_columns_that_matter(width, backbone, cut):
    console = Console(width=width)
    with console.capture() as shown:
        console.print(tables.leaderboard(board(backbone, cut), "accuracy", Scale(), width))
    lines = shown.get().splitlines()
    assert len(lines) == 2 and max(map(len, lines)) <= width
    columns = lines[0].split()
    assert columns[:4] == ["trial", "strategy", "backbone", "cut"] and "accuracy" in columns
    assert ("FLOPs" in columns) == (width >= 80) and ("pooling" in columns) == (width >= 140)
    row = lines[1].split()
    assert row[0] == "12" and "90.0%" in row
    assert row[2][:5] == backbone[:5] and row[2][-5:] == backbone[-5:]
    if width == 160:
        assert row[2] == backbone


@pytest.mark.parametrize("width", [60, 80])
def test_every_other_table_fits_too(width):
    rows = [ProbeRow("timm:vit_small_patch16_224.augreg_in21k_ft_in1k", f"blocks.{at}", "avg", 0.5) for at in range(12)]
    records = board("tiny:net", "2.1")
    console = Console(width=width)
    with console.capture() as shown:
        console.print(tables.probe(rows, width), tables.strategies(records, "balanced-accuracy", Scale(), width))
    assert "timm:" in shown.get() and "gradual-unfreeze" in shown.get()
    words = shown.get().split()
    assert {"probe:", "accuracy", "best", "trials", "seconds"} <= set(words)  # no word is broken
    assert words.count("50") == 12


@pytest.mark.parametrize(("width", "says"), [(40, "a square crop removes 25% of the median image"), (30, None)])
def test_the_data_summary_says_what_a_crop_cuts_away(tmp_path, width, says):
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(6):
            colour = (9 * number, 100 if name == "a" else 0, 50)
            Image.new("RGB", (width, 30), colour).save(tmp_path / "data" / name / f"{number}.png")
    data = open_dataset(tmp_path / "data", seed=0, inputs=[], pixels=PixelStore(tmp_path / "cache"))
    console = Console(width=tables.PLAIN_WIDTH)
    with console.capture() as shown:
        console.print(tables.dataset(data))
    lines = [line for line in shown.get().splitlines() if line.startswith("cropping")]
    assert [line.split(maxsplit=1)[1].strip() for line in lines] == ([says] if says else [])
