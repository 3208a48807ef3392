"""The model on the test images, for a page that shows them: a use of their labels, which is recorded."""

from typing import TYPE_CHECKING

import numpy as np

from autotl.data import stored
from autotl.errors import DataError
from autotl.report.page.model import Judged
from autotl.report.page.study import Finished
from autotl.tracking import predictions

if TYPE_CHECKING:
    from autotl.export.bundle import Bundle

USE = "shown in a report"


def on_test(study: Finished, bundle: "Bundle") -> Judged:
    """The predictions of a study's model for its test images; only then are their labels opened.

    Raises: DataError if a test image cannot be read any more.
    """
    folder, place = study.folder.path, study.root
    files = [place / path for path in stored.paths(folder, "test")]
    rows = []
    for file, answer in zip(files, bundle.predict(files), strict=True):
        if isinstance(answer, str):
            raise DataError(f"The test images cannot be shown: {file} {answer}. Restore it, or leave --show-test away.")
        rows.append(answer)
    images = stored.open_test(
        folder,
        study.folder.test_openings,
        plan=bundle.plan.hash,
        trials=len(study.records),
        fingerprint=study.definition.fingerprint,
        use=USE,
    )
    return Judged(images, predictions.of(np.stack(rows)), bundle.classes, place, bundle.plan.members[0].input.bits)
