"""`autotl log`: sending a study to MLflow again."""

import sys
from functools import partial
from pathlib import Path

import click

from autotl.cli import completion, options
from autotl.report import output


@click.command()
@click.argument("study", shell_complete=completion.studies)
@options.tracking_uri
@options.home
@options.cache_dir
@click.option("--follow", is_flag=True, hidden=True, help="Continue until standard input is closed.")
def command(study: str, tracking_uri: str | None, home: Path | None, cache_dir: Path | None, follow: bool) -> None:
    """Log STUDY to MLflow.

    A search does this by itself while it runs. Use this command for a server that was out of reach then,
    or for another server. Only what the server lacks is sent.

    \b
    autotl log digits
    autotl log digits --tracking-uri http://mlflow.example.org:5000
    """
    from filelock import Timeout

    from autotl.errors import StudyError, masked
    from autotl.report.outcome import Outcome
    from autotl.tracking import folder, shipping
    from autotl.tracking.mlflow import Projection

    workspace = folder.home(home)
    found = folder.find_study(workspace, study)
    uri = shipping.tracking_uri(tracking_uri, workspace)
    projection, outcome = Projection(found, uri), Outcome(found, folder.cache_dir(cache_dir))
    if follow:
        complete = shipping.follow(projection, outcome, partial(print, flush=True), sys.stdin)
        sys.exit(0 if complete else shipping.NOT_ALL)
    try:
        with shipping.only_writer(found, uri).acquire(timeout=0):
            projection.end(outcome)
    except Timeout:
        raise StudyError(f"A search is logging study '{study}' to {masked(uri)} now. Wait for it to end.") from None
    except Exception as error:
        raise StudyError(f"MLflow at {masked(uri)} cannot be updated: {shipping.why(error)}") from error
    again = f"{found.words}{shipping.tracking_option(tracking_uri)}"
    output.echo(f"MLflow at {masked(uri)} has all of study '{study}'. Open it: autotl ui {again}")
