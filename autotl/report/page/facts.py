"""Everything that a page shows, as plain data."""

from dataclasses import dataclass

from autotl.data import stored
from autotl.report.page import search
from autotl.report.page.answer import Answer, Compared, answer, compared
from autotl.report.page.chart import Chart
from autotl.report.page.made import Made, made
from autotl.report.page.model import Judged, Pictures, pictures
from autotl.report.page.situation import Situated, situated
from autotl.report.page.study import Finished
from autotl.tracking.predictions import read_top


@dataclass(frozen=True)
class Facts:
    """The parts of a page, in its order. A part is None if the study has no records for it."""

    study: str
    answer: Answer
    compared: Compared
    situated: Situated | None
    charts: tuple[Chart, ...]
    validation: Pictures | None
    """The winner before its refit, on the images of `val`."""
    refit: bool
    """Whether the model was refit, on the images of `val` too."""
    averaged: bool
    """Whether the model is an ensemble, of which `validation` shows the winner alone."""
    test: Pictures | None
    made: Made


def facts(study: Finished, test: Judged | None = None) -> Facts:
    """`test`: the model on the test images, if they are to be shown.

    Raises: StudyError or DataError if a record of the study is damaged.
    """
    validation = on_val(study)
    return Facts(
        study=study.definition.name,
        answer=answer(study),
        compared=compared(study),
        situated=situated(study),
        charts=search.charts(study),
        validation=pictures(validation) if validation else None,
        refit="val" in study.result.final.train_on,
        averaged=study.result.ensemble is not None,
        test=pictures(test) if test else None,
        made=made(study),
    )


def on_val(study: Finished) -> Judged | None:
    """The winner's trial on the images of `val`; None if its predictions were not kept."""
    if study.winner is None or study.winner.plan is None or not study.folder.predictions.is_dir():
        return None
    images, classes = stored.labelled(study.folder.path, "val"), study.definition.classes
    result = study.result
    temperature = result.calibration.temperature if result.calibration and not result.ensemble else 1.0
    file = study.folder.predictions_of(study.winner.plan)
    found = read_top(file, len(images.paths), len(classes), temperature)
    return Judged(images, found, classes, study.root, study.winner.plan.input.bits) if found else None
