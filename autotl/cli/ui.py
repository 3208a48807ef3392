"""`autotl ui`: MLflow's pages on the studies of the workspace."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import webbrowser
from pathlib import Path

import click

from autotl.cli import completion, options
from autotl.errors import StudyError, masked, one_line
from autotl.report import output

TRAINING = "workflowType=machine_learning"
"""MLflow's pages on training, not those on language models."""
STARTS_WITHIN = 120.0
"""Seconds."""


@click.command()
@click.argument("study", required=False, shell_complete=completion.studies)
@click.option("--port", type=click.IntRange(1, 65535), default=5000, show_default=True)
@click.option("--browser/--no-browser", default=True, show_default=True, help="Open the page.")
@options.tracking_uri
@options.home
def command(study: str | None, port: int, browser: bool, tracking_uri: str | None, home: Path | None) -> None:
    """Browse what was searched, in MLflow's own pages; of STUDY at once where it is named.

    They are served on this machine alone, until Ctrl-C.

    \b
    autotl ui
    autotl ui digits --port 5001
    """
    from autotl.tracking import folder, shipping

    workspace = folder.home(home)
    uri = shipping.tracking_uri(tracking_uri, workspace)
    pages = _pages(uri, tracking_uri, workspace, study)
    if uri.startswith(("http://", "https://")):  # it is served already
        _show(uri.rstrip("/"), pages, browser)
        return
    if not _free(port):
        raise StudyError(f"Port {port} is in use. Say another one: --port {port + 1}")
    words = ["server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    workspace.mkdir(parents=True, exist_ok=True)
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", *words],
        cwd=workspace,
        env={
            **os.environ,
            **shipping.SAFE_PATH,
            "UVICORN_APP_DIR": os.devnull,  # else it puts the folder it runs in first, whatever Python is told
            "MLFLOW_BACKEND_STORE_URI": uri,  # not among the words, where everybody could read its password
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait(server, port)
        _show(f"http://127.0.0.1:{port}", pages, browser)
        output.echo("Ctrl-C ends it.")
        server.wait()
    except KeyboardInterrupt:
        pass
    finally:
        server.terminate()
        server.wait()


def _pages(uri: str, named: str | None, workspace: Path, study: str | None) -> list[str]:
    """The parts of the address that lead to the study and to its trials, or to all studies.

    `named`: the server as the user named it.

    Raises: StudyError for one that MLflow has not heard of, and for a workspace without any.
    """
    from autotl.tracking import folder, shipping

    if study is None:
        if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
            begin = f"autotl search DATA{folder.home_option(workspace)}"
            raise StudyError(f"There is nothing to show in {workspace} yet. Begin: {begin}")
        return [f"/#/experiments?{TRAINING}"]
    found = folder.find_study(workspace, study)

    from autotl.tracking.mlflow import Projection, page

    try:
        place = Projection(found, uri).find()
    except Exception as error:  # a server, a network and a database fail in many ways
        raise StudyError(f"MLflow at {masked(uri)} does not answer: {one_line(error, 200)}") from error
    if place is None:
        again = f"{found.words}{shipping.tracking_option(named)}"
        raise StudyError(f"MLflow at {masked(uri)} has not heard of study '{study}'. Tell it: autotl log {again}")
    experiment, run = place
    runs = f"/#/experiments/{experiment}/runs"
    return [f"{runs}?{TRAINING}&{page.SHARED}", f"{runs}/{run}?{TRAINING}"]


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _wait(server: "subprocess.Popen[bytes]", port: int) -> None:
    """Until the server answers."""
    output.echo("MLflow starts …")
    straight = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    began = time.monotonic()
    while time.monotonic() - began < STARTS_WITHIN:
        if server.poll() is not None:
            raise StudyError(f"MLflow's server ended at once. See why: mlflow server --port {port}")
        try:
            straight.open(f"http://127.0.0.1:{port}/health", timeout=2).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise StudyError(f"MLflow's server has not answered within {STARTS_WITHIN:.0f} s.")


def _show(server: str, pages: list[str], browser: bool) -> None:
    names = ["   # the trials, best first", "   # the study"] if len(pages) > 1 else [""]
    for page, name in zip(pages, names, strict=True):
        output.echo(f"{server}{page}{name}")
    if browser:
        webbrowser.open(server + pages[0])
