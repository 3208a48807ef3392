"""`autotl ui`: MLflow's pages on the studies of the workspace."""

import webbrowser
from contextlib import suppress
from pathlib import Path

import click

from autotl.cli import completion, options
from autotl.errors import StudyError, masked
from autotl.report import output

TRAINING = "workflowType=machine_learning"
"""Selects MLflow's pages for training, not those for language models."""


def _names(ctx: click.Context, option: click.Parameter, value: str | None) -> tuple[str, ...]:
    """Host names, separated by commas."""
    names = tuple(name for part in (value or "").split(",") if (name := part.strip()))
    if "*" in names:
        raise click.BadParameter("'*' alone lets any web page control MLflow. Name the hosts, such as '*.example.org'.")
    return names


@click.command()
@click.argument("study", required=False, shell_complete=completion.studies)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    metavar="ADDRESS",
    help="Address to serve the pages on; 0.0.0.0: all addresses of this machine, as needed in a container.",
)
@click.option("--port", type=click.IntRange(1, 65535), default=5000, show_default=True, help="Port of the pages.")
@click.option(
    "--allowed-hosts",
    metavar="NAME,…",
    callback=_names,
    help="Further host names under which browsers reach the pages, such as that of a proxy; '*.example.org' for many. "
    "MLflow refuses all names except these and those of this machine.",
)
@click.option("--browser/--no-browser", default=True, show_default=True, help="Open the page in a browser.")
@options.tracking_uri
@options.home
def command(
    study: str | None,
    host: str,
    port: int,
    allowed_hosts: tuple[str, ...],
    browser: bool,
    tracking_uri: str | None,
    home: Path | None,
) -> None:
    """Browse all studies, or STUDY, in the MLflow UI.

    The pages are served until Ctrl-C, only on this machine unless --host is given. MLflow asks for no
    password.

    \b
    autotl ui
    autotl ui digits --port 5001
    autotl ui --host 0.0.0.0 --allowed-hosts gpu1.example.org
    """
    from autotl.tracking import folder, serving, shipping

    workspace = folder.home(home)
    uri = shipping.tracking_uri(tracking_uri, workspace)
    pages = _pages(uri, tracking_uri, workspace, study)
    if uri.startswith(("http://", "https://")):  # it is served already
        _show(uri.rstrip("/"), pages, browser)
        return
    server = serving.Server(uri, workspace, host, port, allowed_hosts)
    output.echo("Starting MLflow …")
    with suppress(KeyboardInterrupt), server.served() as process:
        if not server.is_local:
            can = "can read, change and delete everything: MLflow asks for no password."
            output.echo(f"Warning: anyone who reaches {server.elsewhere} {can}", err=True)
        _show(server.here, pages, browser)
        output.echo("Press Ctrl-C to stop.")
        process.wait()
        raise server.ended()


def _pages(uri: str, named: str | None, workspace: Path, study: str | None) -> list[str]:
    """The URL paths of the study and of its trials, or of all studies.

    `named`: the server as the user named it.

    Raises: StudyError for a study that MLflow does not have, and for a workspace without studies.
    """
    from autotl.tracking import folder, shipping

    if study is None:
        if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
            start = f"autotl search DATA{folder.home_option(workspace)}"
            raise StudyError(f"There is nothing to show in {workspace} yet. Start a search: {start}")
        return [f"/#/experiments?{TRAINING}"]
    found = folder.find_study(workspace, study)

    from autotl.tracking.mlflow import Projection, page

    try:
        place = Projection(found, uri).find()
    except Exception as error:  # a server, a network and a database fail in many ways
        raise StudyError(f"MLflow at {masked(uri)} does not answer: {shipping.why(error)}") from error
    if place is None:
        again = f"{found.words}{shipping.tracking_option(named)}"
        raise StudyError(f"MLflow at {masked(uri)} has no study '{study}'. Log it: autotl log {again}")
    experiment, run = place
    runs = f"/#/experiments/{experiment}/runs"
    return [f"{runs}?{TRAINING}&{page.SHARED}", f"{runs}/{run}?{TRAINING}"]


def _show(server: str, pages: list[str], browser: bool) -> None:
    names = ["   # the trials, best first", "   # the study"] if len(pages) > 1 else [""]
    for page, name in zip(pages, names, strict=True):
        output.echo(f"{server}{page}{name}")
    if browser:
        webbrowser.open(server + pages[0])
