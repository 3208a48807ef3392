"""A backbone as tables: its source, its weights, its stages and their costs."""

from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table

from autotl.backbones.catalogue import Catalogue
from autotl.contracts import BackboneInfo
from autotl.report.tables import fitted
from autotl.study.costs import count


def card(catalogue: Catalogue, name: str, width: int) -> Iterator[RenderableType]:
    """Everything known about one backbone before a search.

    Raises: PluginError for a backbone that is unknown or cannot be split into stages.
    """
    known, info = catalogue.card(name), catalogue.info(name)
    last = info.names[-1]
    sizes = ", ".join(map(str, known.sizes))
    facts = {
        "backbone": name,
        "plugin": str(catalogue.owner(name)),
        "trained on": "; ".join(part for part in (known.source, known.note) if part),
        "license": known.license,
        "weights": where(catalogue, name),
        "input": f"{known.input.size} px, {known.input.mode}" + (f"; also {sizes} px" if sizes else ""),
        "cost": f"{count(info.parameters(last))} parameters, {count(info.flops(last))} FLOPs per image",
    }
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for fact in facts.items():
        table.add_row(*fact)
    yield table
    yield ""
    yield stages(info, width)


def stages(info: BackboneInfo, width: int) -> Table:
    """Every cut of the backbone, with the cost of the stages up to it."""
    columns: dict[str, list[str]] = {
        "cut": [stage.name for stage in info.stages],
        "layout": [stage.layout for stage in info.stages],
        "shape": [" x ".join(map(str, stage.shape)) for stage in info.stages],
        "parameters up to it": [count(info.parameters(stage.name)) for stage in info.stages],
        "FLOPs up to it": [count(info.flops(stage.name)) for stage in info.stages],
        "poolings": [", ".join(stage.poolings) for stage in info.stages],
    }
    return fitted(columns, width, names=("cut", "layout", "poolings"), optional={"layout": 16, "poolings": 16})


def where(catalogue: Catalogue, name: str) -> str:
    """Where the weights of a backbone are, or how to get them."""
    file = catalogue.file(name)
    if file:
        return f"{file.path}  {file.path.stat().st_size / 1e6:.1f} MB  sha256 {file.sha256[:12]}…  ({file.found})"
    if offer := catalogue.offer(name):
        return f"provided by {offer.owner.distribution} {offer.owner.version}"
    return "needs none" if catalogue.available(name) else f"not on this machine: autotl weights fetch {name}"
