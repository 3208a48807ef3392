"""`autotl plugins`: what the installed plugins offer."""

import click

from autotl.errors import PluginError
from autotl.host import Host
from autotl.registry import Registry

KINDS = ("backbones", "augmentations", "strategies")


@click.command()
@click.argument("kind", type=click.Choice(KINDS), required=False)
@click.argument("pattern", metavar="[GLOB]", required=False)
def command(kind: str | None, pattern: str | None) -> None:
    """List backbones, augmentations and strategies, with the distribution that each comes from.

    \b
    autotl plugins
    autotl plugins backbones 'timm:resnet*'
    """
    host = Host.from_environment()
    for problem in host.problems:
        click.echo(f"Warning: {problem}", err=True)
    if kind == "backbones" and pattern:
        _backbones(host, pattern)
        return
    for each in [kind] if kind else KINDS:
        click.echo(f"{each}:")
        _entries(getattr(host, each), pattern or "*", colon=":" if each == "backbones" else "")
    if kind in (None, "backbones"):
        click.echo("\nThe backbones of a family: autotl plugins backbones 'timm:resnet*'")


def _entries(registry: Registry, pattern: str, colon: str) -> None:
    entries = registry.match(pattern)
    width = max(len(entry.name) for entry in entries) + 2
    for entry in entries:
        source = f"{entry.owner.distribution} {entry.owner.version}"
        click.echo(f"  {entry.name + colon:<{width}}{entry.summary}  ({source})")


def _backbones(host: Host, pattern: str) -> None:
    from autotl.backbones.catalogue import Catalogue
    from autotl.tracking.folder import cache_dir

    catalogue = Catalogue(host, cache_dir(None))
    names = catalogue.expand([pattern if ":" in pattern else f"{pattern}:*"])
    width = max(map(len, names)) + 2
    for name in names:
        try:
            card = catalogue.card(name)
        except PluginError as error:
            click.echo(f"Warning: {error}", err=True)
            continue
        size = f"{card.input.size} px"
        click.echo(f"{name:<{width}}{size:<8}{'; '.join(part for part in (card.source, card.note) if part)}")
