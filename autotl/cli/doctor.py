"""`autotl doctor`: checks of this machine or of a data set."""

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from autotl.cli import options
from autotl.report import output

if TYPE_CHECKING:
    from autotl.plan import NearCopies
    from autotl.report.checks import Check


@click.command()
@click.argument("data", required=False, type=options.Existing())
@options.path_column
@options.label_column
@options.near_copies
@options.plugins
@options.home
@options.cache_dir
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON and nothing else.")
def command(
    data: Path | None,
    path_column: str | None,
    label_column: str | None,
    near_copies: "NearCopies",
    plugins: tuple[Path, ...],
    home: Path | None,
    cache_dir: Path | None,
    as_json: bool,
) -> None:
    """Check versions, devices, folders, weights and plugins, and print how to fix what is wrong.

    With DATA, check that folder or manifest instead: its layout, classes, sizes and bit depths,
    copies and near-copies, unreadable files, and how a search would split it.

    The exit code is 1 if something prevents a search from working.

    \b
    autotl doctor
    autotl doctor data/flowers
    """
    from autotl.tracking import folder

    cache = folder.cache_dir(cache_dir)
    if data is None:
        from autotl.host import Host
        from autotl.report.checks import checks

        found = list(checks(Host.from_environment(plugins), folder.home(home), cache))
        text = json.dumps([asdict(check) for check in found], indent=1) + "\n"
    else:
        from autotl.data.listing import Columns
        from autotl.report import data as of_data
        from autotl.report import terminal

        with terminal.watcher(quiet=as_json) as watcher:
            columns = Columns(path_column, label_column)
            progress = partial(watcher.progress, "reading images")
            report = of_data.report(data, columns, near_copies, cache, progress)
        found = list(of_data.checks(report))
        text = report.to_json()
    if as_json:
        output.write(text)
    else:
        _show(found)
    sys.exit(1 if any(check.wrong for check in found) else 0)


def _show(found: "Iterable[Check]") -> None:
    rows, wrong = [], 0
    for check in found:
        wrong += check.wrong
        rows.append((f"{'✗' if check.wrong else ' '} {check.what}", check.found))
        if check.advice:
            rows.append(("", f"→ {check.advice}"))
    output.echo_list(rows)
    output.echo()
    output.echo(f"{wrong} {'problem' if wrong == 1 else 'problems'} to fix." if wrong else "No problem found.")
