"""How similar the images are to those that a backbone was trained on: what its features are worth at each depth."""

from collections.abc import Callable, Iterable, Sequence

from autotl.backbones.catalogue import Catalogue
from autotl.engine import probe
from autotl.engine.bench import Bench
from autotl.engine.sample import Sample
from autotl.plan import Network
from autotl.study import controls, probing, select
from autotl.study.inputs import Inputs
from autotl.tracking.advice import AtCut, Similarity
from autotl.tracking.probe import ProbeRow

IMAGES = 300
"""How many images are enough: the standard error of an accuracy is then below 3 points."""
PER_CLASS = 5
"""The fewest images of each class that are needed."""
See = Callable[[Network, Sequence[str]], None]
"""Computes the features of images that are missing."""
Watched = Callable[[str], Callable[[int, int], None]]
"""`progress(done, total)` of a task."""


def images_needed(classes: int) -> int:
    return max(IMAGES, PER_CLASS * classes)


def references(catalogue: Catalogue) -> list[str]:
    """The backbones that pretrained features are compared with: all of the families that have baselines."""
    families = dict.fromkeys(name.partition(":")[0] for name in controls.baselines(catalogue))
    return catalogue.expand(f"{family}:*" for family in families)


def measure(
    bench: Bench,
    network: Network,
    rows: Sequence[ProbeRow],
    fixed: Iterable[str],
    *,
    sample: Sample,
    seed: int,
    see: See,
    watched: Watched,
) -> Similarity:
    """Compare a pretrained network with the same one at random and with the backbones `fixed`, on a sample.

    `rows`: the probe of the network on this sample.

    Raises: PluginError if one of them fails.
    """
    catalogue = bench.catalogue
    inputs = Inputs(catalogue, bench.dataset.shapes)

    def probed(network: Network) -> list[ProbeRow]:
        see(network, sample.shas)
        return probing.rows(bench, network, sample, watched(f"comparing with {network.backbone}"))

    pretrained, at_random = select.by_cut(rows), select.by_cut(probed(catalogue.at_random(network, seed)))
    best = max(rows, key=lambda row: row.accuracy)
    features = bench.features.read(network, best.cut, best.pooling, sample.shas)
    return Similarity(
        backbone=network.backbone,
        images=len(sample.shas),
        cuts=tuple(AtCut(cut=cut, pretrained=value, random=at_random[cut]) for cut, value in pretrained.items()),
        references={name: max(row.accuracy for row in probed(inputs.network(name, seed))) for name in fixed},
        chance=sample.labels.bincount().max().item() / len(sample.shas),
        neighbours=probe.neighbour_accuracy(features, sample.labels, len(bench.dataset.classes), sample.units),
    )
