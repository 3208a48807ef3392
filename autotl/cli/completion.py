"""Shell completion of studies and of names that plugins registered.

Completion prints nothing and never fails: names that cannot be found are not offered.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from io import StringIO

import click
from click.shell_completion import CompletionItem

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def studies(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The studies of the workspace."""
    names: list[str] = []
    with _quietly():
        from autotl.tracking import folder

        names = [study.name for study in folder.studies(folder.home(ctx.params.get("home")))]
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def models(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The studies of the workspace, and folders, which may be bundles."""
    return [CompletionItem(incomplete, type="dir"), *studies(ctx, parameter, incomplete)]


def registered(kind: str) -> Complete:
    """Names of this kind, separated by commas; for backbones their families, such as `timm:`."""

    def complete(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        before, comma, start = incomplete.rpartition(",")
        names: list[str] = []
        with _quietly():
            from autotl.host import Host

            colon = ":" if kind == "backbones" else ""
            names = [entry.name + colon for entry in Host.from_environment().registries[kind]]
        return [CompletionItem(before + comma + name) for name in names if name.startswith(start)]

    return complete


@contextmanager
def _quietly() -> Iterator[None]:
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()), suppress(Exception):
        yield
