"""The predictions of each completed trial for the validation images, in `predictions/<number>.npy`.

Only the most probable class is kept: what a search needs besides is in the log.
"""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autotl.errors import StudyError
from autotl.files import read, write
from autotl.tracking.folder import StudyFolder

ROW = np.dtype([("class", "<u4"), ("probability", "<f4")])


@dataclass(frozen=True)
class Predictions:
    """The most probable class of each image, and its probability."""

    classes: np.ndarray
    """[N] int64, class numbers."""
    probabilities: np.ndarray
    """[N] float64."""


def of(probabilities: np.ndarray) -> Predictions:
    """[N, C] → the most probable classes."""
    return Predictions(probabilities.argmax(1), probabilities.max(1).astype(np.float64))


def write_predictions(folder: StudyFolder, number: int, probabilities: np.ndarray) -> None:
    """Keep the predictions of a trial. probabilities: [N, C] for the images of `val`, in the data set's order."""
    found = of(probabilities)
    rows = np.empty(len(probabilities), ROW)
    rows["class"], rows["probability"] = found.classes, found.probabilities
    data = io.BytesIO()
    np.save(data, rows, allow_pickle=False)
    write(_file(folder, number), data.getvalue())


def read_predictions(folder: StudyFolder, number: int, images: int, classes: int) -> Predictions | None:
    """The predictions of a trial for so many images; None if none were kept.

    Raises: StudyError if they are damaged.
    """
    file = _file(folder, number)
    if not file.exists():
        return None
    try:
        rows = np.load(io.BytesIO(read(file)), allow_pickle=False)
        if rows.dtype != ROW or rows.shape != (images,):
            raise ValueError
        found = Predictions(rows["class"].astype(np.int64), rows["probability"].astype(np.float64))
        if not ((found.classes < classes).all() and ((found.probabilities >= 0) & (found.probabilities <= 1)).all()):
            raise ValueError
    except (ValueError, EOFError, OSError):
        raise StudyError(
            f"{file} is damaged: it does not hold predictions for {images} images. Delete it; the report is then "
            "written without pictures of the model."
        ) from None
    return found


def _file(folder: StudyFolder, number: int) -> Path:
    return folder.predictions / f"{number:05d}.npy"
