"""`autotl studies`: the studies of the workspace."""

from pathlib import Path

import click

from autotl.cli import options
from autotl.report import output


@click.command()
@options.home
def command(home: Path | None) -> None:
    """List the studies of the workspace.

    \b
    autotl studies
    """
    from autotl.report import tables
    from autotl.tracking import folder

    workspace = folder.home(home)
    found = list(folder.studies(workspace))
    if not found:
        output.echo(f"No studies in {workspace} yet. Start one: autotl search DATA{folder.home_option(workspace)}")
        return
    console = tables.console()
    for part in tables.studies(found, console.width):
        console.print(part, soft_wrap=isinstance(part, str))
