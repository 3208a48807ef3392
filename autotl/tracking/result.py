"""The result of a study as plain data: what `--json` prints and `result.json` keeps."""

from typing import Annotated

from pydantic import AfterValidator

from autotl.plan import Record, TransferPlan
from autotl.tracking.folder import StudyFolder, read_record
from autotl.tracking.log import MEASURED


def _whole(metrics: dict[str, float]) -> dict[str, float]:
    if missing := [name for name in MEASURED if name not in metrics]:
        raise ValueError(f"{missing[0]} is missing")
    return metrics


class Run(Record):
    """One training of a plan: its seed, and the study's metric on `val`."""

    seed: int
    value: float


class Best(Record):
    """The winning trial; `validation` is the mean of its runs, `plan` and `metrics` are those of the median one."""

    trial: int
    strategy: str
    plan: TransferPlan
    validation: float
    metrics: Annotated[dict[str, float], AfterValidator(_whole)]
    runs: tuple[Run, ...]


class OfClass(Record):
    """How many test images a class has, and how many of them the winner recognised."""

    images: int
    right: int

    @property
    def recall(self) -> float:
        return self.right / self.images


class Test(Record):
    """The winner on the sealed test split, with the 95 % interval of its metric."""

    metric: str
    value: float
    low: float
    high: float
    images: int
    units: int
    """Of images that tell no more than one of them would, being of one group or copies of one another."""
    near_apart: int = 0
    """How many of the images show nearly the same picture as one in another split."""
    most_frequent: float
    """The metric of a model that always names the class that most of these images have."""
    classes: dict[str, OfClass]
    """What each class got, in their order; without those of which there is no test image."""


class Comparison(Record):
    """A control on the same test images: its metric, and by how much the winner's accuracy is higher.

    `low` and `high` bound the difference with 95 % confidence, paired over the images, and over their units.
    """

    plan: TransferPlan
    value: float
    difference: float
    low: float
    high: float


class Result(Record):
    """What a search found."""

    study: str
    trials: dict[str, int]
    """How many there are in each state."""
    plans: int
    """How many different plans were compared on `val`; the best of them won."""
    best: Best
    test: Test
    comparisons: dict[str, Comparison]
    left_out: tuple[str, ...]
    """What there was no time for, or what broke down, after the trials."""
    final: TransferPlan
    """What was trained last, tested, and lies in the bundle: the best plan, on more images if so wished."""
    made_from: str
    """A hash of the trials, images and settings that this result depends on."""
    imbalance: float
    """How many times the train images of the smallest class the largest has."""
    test_opened: int
    """For how many plans the test split was opened in this study; the first time is the honest one."""
    seconds: float
    bundle: str


def load(folder: StudyFolder) -> Result | None:
    """The result of the study's last finished search, None when there is none yet.

    Raises: DamagedFile.
    """
    return read_record(Result, folder.result)
