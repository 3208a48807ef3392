"""The last part of a page: how the model was made, and what is needed to make it again."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from shlex import quote

from autotl.data import stored
from autotl.files import read, read_lines, where_it_is
from autotl.report import words
from autotl.report.page.answer import openings
from autotl.report.page.study import Finished
from autotl.report.page.units import duration
from autotl.tracking.folder import SearchLine

NAMES = 20
"""How many backbones are named."""
REASONS = 8
"""How many reasons for excluded files are listed, the most frequent ones."""


@dataclass(frozen=True)
class Made:
    """How the model was made."""

    rows: tuple[tuple[str, str], ...]
    training: tuple[str, ...]
    """What each phase of the winner trains."""
    problems: tuple[str, ...]
    """Excluded files, by reason."""
    skipped: tuple[str, ...]
    openings: tuple[str, ...]
    command: str
    plan: str
    """JSON."""
    plan_command: str
    licence: str
    """The terms of the weights; empty if the bundle is gone."""


def made(study: Finished) -> Made:
    """Raises: DataError if the stored split is damaged."""
    result, folder = study.result, study.folder
    licence = where_it_is(folder.bundle) / "LICENSE"
    commands = [line["command"] for line in read_lines(folder.searches, SearchLine.model_validate)]
    return Made(
        rows=tuple(_rows(study)),
        training=tuple(line.strip() for line in words.trained(result.best.plan)),
        problems=tuple(_problems(study)),
        skipped=result.skipped,
        openings=tuple(_openings(study)),
        command=commands[-1] if commands else words.go_on(folder, study.definition),
        plan=result.best.plan.to_json(),
        plan_command=f"autotl train plan.json {quote(study.definition.data)}",
        licence=read(licence).decode(errors="replace") if licence.is_file() else "",
    )


def _rows(study: Finished) -> Iterator[tuple[str, str]]:
    definition, result = study.definition, study.result
    yield "data", definition.data
    if (study.folder.path / "data").is_dir():
        yield "images", ", ".join(f"{split} {count:,}" for split, count in stored.sizes(study.folder.path).items())
    yield "classes", f"{len(definition.classes):,}"
    yield "selected by", f"{definition.metric} on val"
    yield "trials", ", ".join(f"{number:,} {state}" for state, number in result.trials.items() if number)
    yield "backbones", _first(list(definition.backbones))
    yield "strategies", ", ".join(definition.strategies)
    if definition.skipped:
        yield "not searched", _first(definition.skipped)
    seeds = ", ".join(str(run.seed) for run in result.best.runs)
    yield "seeds", f"{definition.seed} for splits and search; {seeds} for the winner"
    if len(result.best.runs) > 1:
        values = ", ".join(study.scale.text(run.value) for run in result.best.runs)
        yield "winner by seed", f"{values} on val"
    yield "time", duration(result.seconds)
    yield "device", definition.device
    yield "versions", ", ".join(f"{name} {version}" for name, version in definition.versions.items())
    refit = ", refit on all images except the test images" if "val" in result.final.train_on else ""
    if result.ensemble:
        yield "model", f"the average of {len(result.ensemble.trials)} plans' models{refit}"
    elif refit:
        yield "model", f"the winner's plan{refit}"
    yield "finished", _time(study.folder.result.stat().st_mtime)


def _problems(study: Finished) -> Iterator[str]:
    found = stored.problems(study.folder.path)
    reasons = Counter(problem.reason.partition(" as '")[0] for problem in found)
    often = reasons.most_common(REASONS)
    for reason, count in often:
        first = next(problem.path for problem in found if problem.reason.startswith(reason))
        yield f"{count:,} excluded, such as {first}: {reason}"
    if rest := len(found) - sum(count for _, count in often):
        yield f"{rest:,} excluded for other reasons; all are in data/problems.csv of the study"


def _openings(study: Finished) -> Iterator[str]:
    for each in openings(study.folder):
        yield f"{each.time.replace('T', ' ')[:16]}: {each.use or f'test of a plan chosen from {each.trials:,} trials'}"


def _first(names: Sequence[str]) -> str:
    more = len(names) - NAMES
    return ", ".join(names[:NAMES]) + (f" and {more:,} more" if more > 0 else "")


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
