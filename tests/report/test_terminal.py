import io
import math
import re
import time

import pytest
from rich.console import Console
from rich.progress import Progress

from autotl.report import terminal
from autotl.report.terminal import TRIALS, Terminal


@pytest.fixture
def log(monkeypatch):
    """A search's output without a terminal, which shows progress after 0.05 s; `brief` as for `--json`."""
    monkeypatch.setattr(terminal, "QUIET", 0.05)

    def start(brief=False):
        file = io.StringIO()
        return Terminal(Console(file=file, width=160), brief=brief), file

    return start


def until(file, pattern):
    began = time.monotonic()
    while not re.search(pattern, file.getvalue()):
        assert time.monotonic() - began < 10, file.getvalue()
        time.sleep(0.02)


def test_long_phases_show_progress_and_the_rest_of_the_budget(log):
    made, file = log()
    with made:
        until(file, r"^working, 0\.\d s so far\n")
        made.budget(lambda: 90.0)
        made.progress("reading images", 500, 1_797)
        until(file, r"\nreading images: 500 of 1,797, 0\.\d s so far; 1 min 30 s of the budget left\n")
        made.trial_planned(3, "linear-probe tiny:net → 2.1", 2, 10)
        until(file, r"\ntrial 3  linear-probe tiny:net → 2\.1, \d\.\d s so far; 1 min")
        made.trial_epoch(3, "epoch 2 of phase 1, 20 %")
        until(file, r"\ntrial 3  linear-probe tiny:net → 2\.1: epoch 2 of phase 1, 20 %, \d\.\d s so far;")
        made.trial_planned(4, "scratch tiny:net@random → 2.1", 2, 10)  # by another worker
        until(
            file, r"so far; 1 min \d+ s of the budget left\ntrial 4  scratch tiny:net@random → 2\.1, \d\.\d s so far;"
        )
        made.progress("trial 3 with seed 1", 0, 1)
        until(file, r"\ntrial 3 with seed 1, \d\.\d s so far;")
    said = file.getvalue()
    time.sleep(0.2)
    assert file.getvalue() == said


def test_brief_output_shows_no_progress(log):
    made, file = log(brief=True)
    with made:
        made.trial_planned(3, "linear-probe tiny:net → 2.1", 2, 10)
        time.sleep(0.3)
    assert file.getvalue() == ""


@pytest.mark.parametrize(
    ("left", "task", "says"),
    [
        (125.0, TRIALS, "2:05 left"),
        (3725.0, "trial 3 with seed 1", "1:02:05 left"),
        (math.inf, TRIALS, "1:15 so far"),
        (math.inf, "trial 3 with seed 1", "1:15 so far"),
        (math.inf, "reading images", "about 0:15 to go"),
    ],
)
def test_no_remaining_time_is_shown_if_it_is_unknown(left, task, says):
    now = [0.0]
    progress = Progress(disable=True, get_time=lambda: now[0])
    number = progress.add_task(task, total=1 if "seed" in task else 6)
    for at in range(1, 6):
        now[0] = 15.0 * at
        if "seed" not in task:
            progress.update(number, completed=at)
    (shown,) = progress.tasks
    assert str(terminal._Clock(lambda: left).render(shown)) == says


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_each_running_task_takes_one_line(width):
    console = Console(file=io.StringIO(), width=width, force_terminal=True)
    made = Terminal(console, brief=False)
    made.budget(lambda: 3725.0)
    made.trial_planned(3, "gradual-unfreeze timm:tf_efficientnet_lite0.in1k → blocks.6.0", 2, 10)
    made.progress("reference:pixels, on all images", 0, 1)
    lines = console.render_lines(made._live.get_renderable(), console.options)
    said = ["".join(segment.text for segment in line) for line in lines]
    assert len(said) == 3
    assert all(len(line) <= width for line in said)
    assert "2/10" in said[0] and "0/1" in said[1] and "1:02:05 left" in said[0] and "1:02:05 left" in said[1]
    assert said[2].startswith("trial 3  gradual-unfreeze")
