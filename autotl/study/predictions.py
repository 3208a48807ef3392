"""The predictions of plans for `val`, stored in the study's folder: an ensemble is chosen by them."""

from io import BytesIO
from pathlib import Path

import numpy as np

from autotl.files import write


def keep(file: Path, probabilities: np.ndarray) -> None:
    """Store the probabilities of a plan for the images of `val`, [N, classes]."""
    content = BytesIO()
    np.save(content, probabilities)
    write(file, content.getvalue())


def read(file: Path, shape: tuple[int, int]) -> np.ndarray | None:
    """What `keep` stored, [images, classes]; None if there is nothing, or if it is damaged."""
    try:
        found: np.ndarray = np.load(file)
    except (OSError, ValueError, EOFError):
        return None
    return found if found.shape == shape and np.isfinite(found).all() else None
