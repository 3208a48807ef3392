"""What there is to know of a backbone before a search: where it comes from, its weights, its stages and their costs."""

from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table

from autotl.backbones.catalogue import Catalogue
from autotl.contracts import BackboneInfo
from autotl.report.tables import count


def card(catalogue: Catalogue, name: str) -> Iterator[RenderableType]:
    """All of it, of one backbone.

    Raises: PluginError for a backbone that is unknown or cannot be split into stages.
    """
    known, info = catalogue.card(name), catalogue.info(name)
    last = info.names[-1]
    sizes = ", ".join(map(str, known.sizes))
    facts = {
        "backbone": name,
        "of": str(catalogue.owner(name)),
        "trained on": "; ".join(part for part in (known.source, known.note) if part),
        "licence": known.licence,
        "weights": where(catalogue, name),
        "input": f"{known.input.size} px" + (f"; it takes {sizes} px too" if sizes else ""),
        "cost": f"{count(info.parameters(last))} parameters, {count(info.flops(last))} FLOPs an image",
    }
    table = Table(show_header=False, box=None, pad_edge=False)
    for fact in facts.items():
        table.add_row(*fact)
    yield table
    yield ""
    yield stages(info)


def stages(info: BackboneInfo) -> Table:
    """Each place where the backbone can be cut, with what is kept then."""
    table = Table(box=None, pad_edge=False)
    table.add_column("cut")
    table.add_column("layout")
    for name in ("shape", "parameters up to it", "FLOPs up to it"):
        table.add_column(name, justify="right")
    table.add_column("poolings")
    for stage in info.stages:
        costs = (count(cost(stage.name)) for cost in (info.parameters, info.flops))
        shape = " x ".join(map(str, stage.shape))
        table.add_row(stage.name, stage.layout, shape, *costs, ", ".join(stage.poolings))
    return table


def where(catalogue: Catalogue, name: str) -> str:
    """Where the weights of a backbone lie, or how to get them."""
    file = catalogue.file(name)
    if file:
        return f"{file.path}  {file.path.stat().st_size / 1e6:.1f} MB  sha256 {file.sha256[:12]}…  ({file.origin})"
    return "needs none" if catalogue.available(name) else f"not here: autotl weights fetch {name}"
