"""The advice for a data set as plain data: how many images, how similar to those of the pretraining, what to try first.

A search keeps it as `advice.json`.
"""

from autotl.contracts import Situation
from autotl.files import write
from autotl.plan import Record
from autotl.tracking.folder import StudyFolder, read_record


class AtCut(Record):
    """The held-out accuracy of a linear classifier on one cut's features, with the best pooling."""

    cut: str
    pretrained: float
    random: float
    """With random weights in the same network."""


class Similarity(Record):
    """How much better pretrained features separate the classes than features that nothing was learned for."""

    backbone: str
    images: int
    """How many images were measured."""
    cuts: tuple[AtCut, ...]
    """From the first to the last."""
    references: dict[str, float]
    """The accuracy with fixed features, such as pixels, by the backbone that gives them."""
    chance: float
    """The share of the largest class among these images."""
    neighbours: float | None = None
    """The accuracy of the nearest other images' classes, with pretrained features at the best cut: what can be had
    without fitting anything. None in a record of an earlier version."""

    @property
    def best(self) -> AtCut:
        return max(self.cuts, key=lambda at: at.pretrained)

    @property
    def late(self) -> AtCut:
        """The last cut, whose features are the most specific to the pretraining."""
        return self.cuts[-1]

    @property
    def untrained(self) -> float:
        """The best accuracy without pretraining."""
        return max([*(at.random for at in self.cuts), *self.references.values()])

    @property
    def gain(self) -> float:
        """How much more accurate pretrained features are, as a share of the way from always guessing to no error."""
        return (self.best.pretrained - self.untrained) / (1 - self.chance)

    @property
    def fall(self) -> float:
        """How much less accurate the last cut is than the best one."""
        return self.best.pretrained - self.late.pretrained


class Advice(Record):
    """In which of the four situations of transfer learning a data set is, and what that suggests."""

    per_class: float
    """Images of each class outside the test split, on average."""
    similarity: Similarity
    situations: tuple[Situation, ...]
    """More than one if the images do not decide it."""
    suggested: tuple[str, ...]
    """The strategies that suit one of them, in the order in which they are tried."""
    others: tuple[str, ...]
    """The other strategies of the search, which are tried next."""
    allowed: tuple[str, ...] = ()
    harmful: tuple[str, ...] = ()
    """Operations on images, such as mirroring, that were measured: those that make classes harder to tell apart are
    harmful."""


class AdviceTested(Record):
    """Whether the best plan of a search came from one of the suggested strategies."""

    advice: Advice
    trial: int | None
    """The best trial of the suggested strategies, None if none was completed."""
    value: float | None
    """Its metric on `val`."""
    best: float
    """That of the best trial of all."""
    held: bool
    """Whether it is the winner, or not distinguishable from it on these images."""


def write_advice(folder: StudyFolder, advice: Advice) -> None:
    write(folder.advice, advice.to_json())


def read_advice(folder: StudyFolder) -> Advice | None:
    """Raises: DamagedFile."""
    return read_record(Advice, folder.advice)
