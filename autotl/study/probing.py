"""Probing a backbone: how well a linear classifier on its frozen features does at every cut."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from autotl.data.split import Split
from autotl.engine import probe
from autotl.engine.bench import Bench
from autotl.plan import Network
from autotl.tracking.probe import ProbeRow

SEEN: tuple[Split, ...] = ("train", "early_stop")


@dataclass(frozen=True)
class Sample:
    """The images that a probe uses: some of those that trials may learn from, with classes as balanced as possible."""

    shas: list[str]
    labels: Tensor
    """[N] int64."""
    units: Tensor
    """[N] int64, as in `Bench.units`."""

    @classmethod
    def of(cls, bench: Bench, seed: int, most: int = probe.MOST) -> "Sample":
        """At most `most` images, the same for every backbone."""
        shas, labels = bench.shas(*SEEN), bench.labels(*SEEN).cpu()
        chosen = probe.subset(labels, seed, most)
        return cls([shas[at] for at in chosen], labels[chosen], bench.units(*SEEN)[chosen])


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
        found.append(ProbeRow(network.backbone, cut, pooling, accuracy))
        progress(done, len(cells))
    return found
