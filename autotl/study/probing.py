"""Probing a backbone: how well a linear classifier on its frozen features does at every cut."""

from collections.abc import Callable, Sequence

from autotl.engine import probe
from autotl.engine.bench import Bench
from autotl.engine.sample import Sample
from autotl.plan import Network
from autotl.tracking.probe import ProbeRow


def rows(
    bench: Bench,
    network: Network,
    sample: Sample,
    progress: Callable[[int, int], None],
    cuts: Sequence[str] | None = None,
) -> list[ProbeRow]:
    """The accuracy of a linear classifier at these cuts of a backbone, by default all, with every pooling.

    Its features are stored already.
    """
    info = bench.catalogue.info(network.backbone)
    cells = [(cut, pooling) for cut in cuts or info.names for pooling in info.stage(cut).poolings]
    found = []
    for done, (cut, pooling) in enumerate(cells, 1):
        features = bench.features.read(network, cut, pooling, sample.shas)
        accuracy = probe.ridge_accuracy(features, sample.labels, len(bench.dataset.classes), sample.units)
        found.append(ProbeRow(network.backbone, cut, pooling, accuracy, len(sample.shas)))
        progress(done, len(cells))
    return found
