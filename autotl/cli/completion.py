"""Shell completion of studies, of names that plugins registered, and of values that plans allow.

Completion prints nothing and never fails: names that cannot be found are not offered.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from io import StringIO
from typing import get_args

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
    """Names of this kind; for backbones their families, such as `timm:`."""

    def names() -> list[str]:
        from autotl.host import Host

        colon = ":" if kind == "backbones" else ""
        return [entry.name + colon for entry in Host.from_environment().registries[kind]]

    return _several(names)


def of_plan(kind: str) -> Complete:
    """The values that a type of `autotl.plan` allows, such as those of `HeadKind`."""

    def names() -> tuple[str, ...]:
        from autotl import plan

        return get_args(getattr(plan, kind))

    return _several(names)


def _several(names: Callable[[], Iterable[str]]) -> Complete:
    """Several names, separated by commas."""

    def complete(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        before, comma, start = incomplete.rpartition(",")
        known: Iterable[str] = ()
        with _quietly():
            known = names()
        return [CompletionItem(before + comma + name) for name in known if name.startswith(start)]

    return complete


@contextmanager
def _quietly() -> Iterator[None]:
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()), suppress(Exception):
        yield
