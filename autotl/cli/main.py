"""The command `autotl`. Each sub-command is a module of this package, imported when it is called."""

import errno
import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, NoReturn

import click

from autotl.errors import AutotlError, unknown
from autotl.report import output

COMMANDS = {
    "search": "Find the best transfer-learning setup for a folder of images.",
    "advise": "Say which way of transfer learning suits a data set, and why.",
    "predict": "Classify images with the model of a study.",
    "evaluate": "Measure the model of a study on labelled images that came later.",
    "export": "Export the model for use without autotl.",
    "ui": "Browse studies and trials in the MLflow UI.",
    "log": "Log a study to MLflow again, or to another server.",
    "worker": "Run trials of a search in another process or on another machine.",
    "train": "Train one plan on a folder of images.",
    "studies": "List the studies of the workspace.",
    "show": "Show a study: leaderboard, winner, trade-offs.",
    "report": "Write a study as one HTML page, to read and to share.",
    "plugins": "List backbones, augmentations and strategies; start a plugin.",
    "weights": "List and download pretrained weights.",
    "doctor": "Check the installation, devices, weights and plugins, or a data set.",
    "unpack": "Convert an archive or a data set of another library to a folder of images.",
    "sample": "Write a small real data set for a first try.",
}

JSON = "autotl.json"
"""The key in a command's context for whether JSON output was requested."""


class Commands(click.Group):
    """A group that imports a command only when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = import_module(f"autotl.cli.{name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and not args[0].startswith("-") and not ctx.resilient_parsing:
            ctx.fail(unknown("command", args[0], COMMANDS))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        joined = " ".join(args)
        ctx.meta[JSON] = "--json" in args or "--format json" in joined or "--format=json" in args
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        output.escape_what_cannot_be_encoded()
        try:
            with _sigterm_as_ctrl_c():
                return super().invoke(ctx)
        except AutotlError as error:
            _end(ctx, f"Error: {error}", error.exit_code)
        except click.UsageError as error:
            if not ctx.meta[JSON]:
                message = error.format_message().replace("\n\t", " ")  # click lists choices in lines that a tab indents
                raise click.UsageError(output.printable(message), error.ctx) from None
            _end(ctx, error.format_message(), error.exit_code)
        except OSError as error:
            if error.errno in (None, errno.EPIPE):  # the reader of a pipe is gone, which click handles
                raise
            _end(ctx, f"Error: {error.strerror}: {error.filename or 'no file is named'}", AutotlError.exit_code)
        except KeyboardInterrupt:
            _end(ctx, "Stopped. Finished work is saved; run the same command to resume.", 130)


def _end(ctx: click.Context, message: str, code: int) -> NoReturn:
    """End a command with a message on standard error, or as a JSON object if JSON was requested."""
    if ctx.meta[JSON]:
        output.write(json.dumps({"error": message.removeprefix("Error: ")}))
    else:
        output.echo(message, err=True)
    sys.exit(code)


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """SIGTERM ends a command as Ctrl-C does: finished work is saved."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="autotl")
def main() -> None:
    """Find the best image classifier for your images by transfer learning.

    \b
    autotl sample digits data/digits
    autotl search data/digits --trials 20
    """
