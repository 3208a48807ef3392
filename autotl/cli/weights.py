"""`autotl weights`: lists and downloads pretrained weights."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from autotl.cli import options
from autotl.report import output

if TYPE_CHECKING:
    from autotl.backbones.catalogue import Catalogue


@click.group()
def command() -> None:
    """List and get pretrained weights.

    \b
    autotl weights list
    autotl weights fetch timm:resnet18.a1_in1k
    """


@command.command("list")
@click.argument("patterns", nargs=-1)
@options.plugins
def list_(patterns: tuple[str, ...], plugins: tuple[Path, ...]) -> None:
    """List where the weights of backbones are.

    PATTERNS are names of backbones, with * and ? for any characters; without PATTERNS, the backbones that a search
    uses by default are listed, and those whose weights a plugin provides.

    \b
    autotl weights list
    autotl weights list 'timm:resnet18*'
    """
    from autotl.report import backbones
    from autotl.study import pool

    catalogue = _catalogue(plugins)
    names = catalogue.expand(patterns) if patterns else pool.usual(catalogue, _warn)
    output.echo_list((name, backbones.where(catalogue, name)) for name in names)


@command.command()
@click.argument("patterns", nargs=-1, required=True)
@options.plugins
def fetch(patterns: tuple[str, ...], plugins: tuple[Path, ...]) -> None:
    """Get the weights of backbones from a plugin or by download, and print each path.

    PATTERNS are names of backbones, with * and ? for any characters. Downloaded files are written to the caches of the
    Hugging Face hub and of torch, those of plugins to autotl's own.

    \b
    autotl weights fetch timm:resnet18.a1_in1k

    For a machine without internet access: run this on another machine, copy the files, and use
    --weights NAME=FILE in the search.
    """
    catalogue = _catalogue(plugins)
    for name in catalogue.expand(patterns):
        catalogue.obtain(name)
        file = catalogue.file(name)
        output.echo(f"{name}  {file.path if file else 'needs none'}")


def _catalogue(plugins: tuple[Path, ...]) -> "Catalogue":
    from autotl.backbones.catalogue import Catalogue
    from autotl.host import Host
    from autotl.tracking import folder

    host = Host.from_environment(plugins)
    for problem in host.problems:
        _warn(problem)
    return Catalogue(host, folder.cache_dir(None), note=lambda text: output.echo(text, err=True), skip=_warn)


def _warn(problem: object) -> None:
    output.echo(f"Warning: {problem}", err=True)
