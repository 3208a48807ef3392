"""The predictions of plans for the validation images, each in a file of the study's folder, `predictions/<plan>.npy`.

For the report the most probable class of each image is enough; an ensemble and a temperature are chosen by all
probabilities, which are always kept if they are few.
"""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autotl.engine.temperature import tempered
from autotl.errors import StudyError
from autotl.files import read, write

FEW = 1 << 15
"""This many numbers, of images times classes, take 256 KB."""
TOP = np.dtype([("class", "<u4"), ("probability", "<f4")])


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


def keep(file: Path, probabilities: np.ndarray, *, whole: bool) -> None:
    """Store what a plan predicts. probabilities: [N, C] for the images of `val`, in the data set's order.

    `whole`: all probabilities; otherwise only the most probable classes.
    """
    rows = probabilities
    if not whole:
        found = of(probabilities)
        rows = np.empty(len(probabilities), TOP)
        rows["class"], rows["probability"] = found.classes, found.probabilities
    data = io.BytesIO()
    np.save(data, rows, allow_pickle=False)
    write(file, data.getvalue())


def read_whole(file: Path, images: int, classes: int) -> np.ndarray | None:
    """All stored probabilities, [images, classes]; None if they were not stored, or if the file is damaged."""
    try:
        rows = _rows(file)
    except (OSError, ValueError, EOFError):
        return None
    return rows if _is_whole(rows, images, classes) else None


def read_top(file: Path, images: int, classes: int, temperature: float = 1.0) -> Predictions | None:
    """The most probable class of so many images; None if nothing was stored.

    Its probability has this temperature, unless only the most probable classes were stored.

    Raises: StudyError if the file is damaged.
    """
    try:
        rows = _rows(file)
        if _is_whole(rows, images, classes):
            return of(tempered(rows, temperature))
        if rows.dtype != TOP or rows.shape != (images,):
            raise ValueError
        found = Predictions(rows["class"].astype(np.int64), rows["probability"].astype(np.float64))
        if not ((found.classes < classes).all() and ((found.probabilities >= 0) & (found.probabilities <= 1)).all()):
            raise ValueError
    except FileNotFoundError:
        return None
    except (ValueError, EOFError, OSError):
        raise StudyError(
            f"{file} is damaged: it does not hold predictions for {images} images. Delete it; the report is then "
            "written without pictures of the model."
        ) from None
    return found


def _rows(file: Path) -> np.ndarray:
    rows: np.ndarray = np.load(io.BytesIO(read(file)), allow_pickle=False)
    return rows


def _is_whole(rows: np.ndarray, images: int, classes: int) -> bool:
    return rows.dtype.kind == "f" and rows.shape == (images, classes) and bool(np.isfinite(rows).all())
