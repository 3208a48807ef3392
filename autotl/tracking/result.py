"""The result of a study as plain data: what `--json` prints and `result.json` keeps."""

from typing import Annotated

from pydantic import AfterValidator, Field

from autotl.engine.calibration import Calibration
from autotl.engine.scale import Scale
from autotl.plan import Ensemble, Made, Record, TransferPlan
from autotl.tracking.advice import AdviceTested
from autotl.tracking.folder import StudyFolder, read_record
from autotl.tracking.log import MEASURED


def _whole(metrics: dict[str, float]) -> dict[str, float]:
    if missing := [name for name in MEASURED if name not in metrics]:
        raise ValueError(f"{missing[0]} is missing")
    return metrics


class Run(Record):
    """One training of a plan: its seed, and the study's metric on `val` of its division of the images."""

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


class Picked(Record):
    """How the winner was picked if not as the best plan, and what the best one would have cost."""

    how: str
    """`knee` or `within=POINTS`, as the user wrote it."""
    cost: str
    """The metric of the cost: `parameters`, `flops`."""
    best: int
    """The trial of the best plan."""
    value: float
    costs: float


class Simplest(Record):
    """The simplest plan that is at most one standard error worse than the best one, and that one."""

    trial: int
    value: float
    best: int
    """The trial of the best plan."""
    value_of_best: float
    noise: float
    """One standard error of the difference between two of the plans that were compared."""
    runs: int
    """How many runs of each plan were compared."""


class Averaged(Record):
    """The ensemble in the bundle, which was tested."""

    trials: tuple[int, ...]
    """The trials of its members, the winner first."""
    plan: Ensemble
    validation: float
    metrics: dict[str, float]
    """Of the ensemble on `val`; parameters, FLOPs and latency are sums over its members."""


class OfClass(Record):
    """How many test images a class has, and how many of them the winner recognised."""

    images: int
    right: int

    @property
    def recall(self) -> float:
        return self.right / self.images


class Test(Record):
    """The winner on the test split, with the 95 % confidence interval of its metric."""

    metric: str
    scale: Scale = Field(default=Scale())
    value: float
    low: float | None
    """None, as `high` is, if the images do not give an interval."""
    high: float | None
    images: int
    units: int
    """Number of independent units: images that share a group or a picture count once."""
    near_apart: int = 0
    """Number of images with a near-copy in another split."""
    most_frequent: float
    """The metric of always predicting the most frequent class of these images."""
    classes: dict[str, OfClass]
    """The results of each class, in order; without classes that have no test image."""


class Comparison(Record):
    """A baseline on the same test images: its metric, and the gain in accuracy of the winner over it.

    `low` and `high` are the 95 % confidence interval of the difference, paired over the images and over their units.
    """

    plan: TransferPlan
    value: float
    difference: float
    low: float
    high: float


class Result(Record):
    """The result of a search."""

    study: str
    trials: dict[str, int]
    """The number of trials in each state."""
    plans: int
    """The number of different plans compared on `val`."""
    best: Best
    picked: Picked | None = None
    simplest: Simplest | None = None
    """None if the best plan is the simplest one within the noise, and if the winner was picked by its cost."""
    ensemble: Averaged | None = None
    """None if the winner alone is in the bundle; with it `test` and the gains of `comparisons` are those of the
    ensemble."""
    calibration: Calibration | None = None
    """Of the model in the bundle; None if no predictions for `val` were stored."""
    test: Test
    comparisons: dict[str, Comparison]
    advice: AdviceTested | None = None
    """None if the search had no time to compare pretrained features with others."""
    skipped: tuple[str, ...]
    """Steps that were skipped because time ran out, or that failed."""
    final: TransferPlan
    """The plan of the model in the bundle, which was tested: the best plan, refit on more images if requested. Of an
    ensemble its first member."""
    made_from: str
    """A hash of the trials, images and settings that this result depends on."""
    imbalance: float
    """Train images of the largest class, as a multiple of those of the smallest."""
    test_opened: int
    """The number of plans for which the test split was opened in this study; only the first is unbiased."""
    seconds: float
    bundle: str

    @property
    def made(self) -> Made:
        """What the model in the bundle was made by."""
        return self.ensemble.plan if self.ensemble else self.final


def load(folder: StudyFolder) -> Result | None:
    """The result of the study's last finished search, None if there is none yet.

    Raises: DamagedFile.
    """
    return read_record(Result, folder.result)
