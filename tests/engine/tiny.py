"""Plans for the network `tiny:net` and the striped images, and the bench that they are trained with."""

from autotl.backbones.catalogue import Catalogue
from autotl.engine.bench import Bench
from autotl.engine.observe import Nobody
from autotl.plan import NO_AUGMENTATION, DataRef, Head, Teacher, TransferPlan

NAMES = ("0.2", "1.2", "2.1")
"""The stages of `tiny:net`."""
TIMES = {"seconds": 0, "val.seconds": 0}
"""What differs between two trainings of a plan."""


def make_bench(host, stripes, cache, device="cpu", backbones=("tiny:net",)):
    """The images with stores, decoded for these backbones."""
    catalogue = Catalogue(host, cache)
    return Bench.open(stripes, [catalogue.card(name).input for name in backbones], catalogue, device, seed=0)


def after(frozen):
    """The stages that are trained if these are frozen."""
    return NAMES[NAMES.index(frozen) + 1 if frozen else 0 :]


def plan(bench, *phases, backbone="tiny:net@random", **changes):
    """A plan for the whole network; `changes` are other fields."""
    network = bench.catalogue.network(backbone, seed=0)
    return TransferPlan(
        **{
            "backbone": network.backbone,
            "weights": network.weights,
            "input": network.input,
            "cut": NAMES[-1],
            "head": Head(pooling="avg"),
            "augmentation": NO_AUGMENTATION,
            "data": DataRef(fingerprint=bench.dataset.fingerprint, split_seed=0),
            "seed": 0,
            "requires": {},
            "phases": phases,
            **changes,
        }
    )


def taught(bench, backbone="reference:pixels", **changes):
    """A teacher."""
    network = bench.catalogue.network(backbone, 0)
    cut = bench.catalogue.info(backbone).names[-1]
    values = {"backbone": network.backbone, "weights": network.weights, "input": network.input, "cut": cut}
    return Teacher(**{**values, "pooling": "avg", "share": 0.4, "temperature": 2.0, **changes})


class Between(Nobody):
    """Calls `switch(True)` after the first step of each phase's second epoch, and `switch(False)` after its last."""

    def __init__(self, steps, switch):
        """`steps` of an epoch."""
        self._steps, self._switch, self._done = steps, switch, None

    def epoch(self, phase, epoch, facts):
        self._done = 0 if epoch == 1 else None

    def step(self):
        if self._done is not None:
            self._done += 1
            self._switch(self._done < self._steps)
