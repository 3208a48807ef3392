"""`autotl doctor`: what is here to search with, and what is wrong with it."""

import sys
from pathlib import Path

import click

from autotl.cli import options
from autotl.report import output


@click.command()
@options.home
@options.cache_dir
def command(home: Path | None, cache_dir: Path | None) -> None:
    """Look at versions, devices, folders, weights and plugins, and say what to do about what is wrong.

    The exit code is 1 where something keeps a search from working as it should.

    \b
    autotl doctor
    """
    from autotl.host import Host
    from autotl.report.checks import checks
    from autotl.tracking import folder

    found = list(checks(Host.from_environment(), folder.home(home), folder.cache_dir(cache_dir)))
    rows = []
    for check in found:
        rows.append((f"{'✗' if check.wrong else ' '} {check.what}", check.found))
        if check.advice:
            rows.append(("", f"→ {check.advice}"))
    output.echo_list(rows)
    wrong = sum(check.wrong for check in found)
    output.echo()
    output.echo(f"{wrong} to put right." if wrong else "Nothing is wrong.")
    sys.exit(1 if wrong else 0)
