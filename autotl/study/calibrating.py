"""The temperature of the winner's probabilities, by what its runs before the refit predict for `val`."""

from collections.abc import Iterator, Sequence

from autotl.engine.bench import Bench
from autotl.engine.calibration import Calibration
from autotl.engine.temperature import Predicted, calibrate, has_temperature
from autotl.study.reruns import SeedRun
from autotl.tracking import predictions
from autotl.tracking.folder import StudyFolder


def calibrated(folder: StudyFolder, bench: Bench, runs: Sequence[SeedRun]) -> Calibration | None:
    """The calibration of a plan by all of its runs whose predictions are stored; None if there are none."""
    found = list(_predicted(folder, bench, runs))
    own = any(has_temperature(run.plan, run.metrics) for run in runs)
    return calibrate(found, own) if found else None


def _predicted(folder: StudyFolder, bench: Bench, runs: Sequence[SeedRun]) -> Iterator[Predicted]:
    for run in runs:
        dataset = bench.of_division(run.plan.data.division).dataset
        labels = dataset.labels("val")
        rows = predictions.read_whole(folder.predictions_of(run.plan), len(labels), len(dataset.classes))
        if rows is not None:
            yield Predicted(rows, labels, dataset.units("val"))
