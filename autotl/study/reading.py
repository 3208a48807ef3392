"""Reading the images of a data set, with pixels for the backbones that will see them."""

from collections.abc import Callable, Mapping, Sequence

from autotl.backbones.catalogue import Catalogue
from autotl.data.listing import Columns, Listing
from autotl.data.pixels import Progress
from autotl.data.shapes import expected
from autotl.data.split import Split
from autotl.engine.bench import Bench
from autotl.study.inputs import Inputs
from autotl.study.settings import Settings


def read(
    settings: Settings,
    listing: Listing,
    columns: Columns,
    names: Sequence[str],
    catalogue: Catalogue,
    device: str,
    *,
    previous: Mapping[str, Split] | None = None,
    progress: Progress,
    note: Callable[[str], None],
) -> tuple[Bench, Inputs]:
    """The images of `settings.data`, as the backbones `names` see them; most files are decoded only once.

    `listing`: what was found there. The other arguments are those of `Bench.open`.

    Raises: as `Bench.open`.
    """
    likely = Inputs(catalogue, expected(listing)).firsts(names)
    bench = Bench.open(
        settings.data,
        likely,
        catalogue,
        device,
        seed=settings.seed,
        columns=columns,
        previous=previous,
        near_copies=settings.near_copies,
        metric=settings.metric,
        progress=progress,
        note=note,
    )
    inputs = Inputs(catalogue, bench.dataset.shapes)
    for input in set(inputs.firsts(names)).difference(likely):
        bench.decode(input, progress)
    return bench, inputs
