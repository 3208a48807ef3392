"""`autotl weights`: which pretrained weights are on this machine, and how to get others."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from autotl.cli import options

if TYPE_CHECKING:
    from autotl.backbones.catalogue import Catalogue


@click.group()
def command() -> None:
    """List and fetch pretrained weights.

    \b
    autotl weights list
    autotl weights fetch timm:resnet18.a1_in1k
    """


@command.command("list")
@click.argument("patterns", nargs=-1)
@options.cache_dir
def list_(patterns: tuple[str, ...], cache_dir: Path | None) -> None:
    """Where the weights of PATTERNS lie; of the default pools when none are named."""
    from autotl.report import backbones
    from autotl.study.pool import LARGE, SHIPPED, SMALL

    catalogue = _catalogue(cache_dir)
    names = catalogue.expand(patterns or (*SHIPPED, *SMALL, *LARGE))
    width = max(map(len, names)) + 2
    for name in names:
        click.echo(f"{name:<{width}}{backbones.where(catalogue, name)}")


@command.command()
@click.argument("patterns", nargs=-1, required=True)
@options.cache_dir
def fetch(patterns: tuple[str, ...], cache_dir: Path | None) -> None:
    """Download the weights of PATTERNS, and print where each file lies.

    \b
    autotl weights fetch timm:resnet18.a1_in1k

    On a machine without network: run this on one that has it, copy the files, and say
    --weights NAME=FILE to the search.
    """
    catalogue = _catalogue(cache_dir)
    for name in catalogue.expand(patterns):
        catalogue.obtain(name)
        file = catalogue.file(name)
        click.echo(f"{name}  {file.path if file else 'needs none'}")


def _catalogue(cache_dir: Path | None) -> "Catalogue":
    from autotl.backbones.catalogue import Catalogue
    from autotl.host import Host
    from autotl.tracking import folder

    return Catalogue(Host.from_environment(), folder.cache_dir(cache_dir))
