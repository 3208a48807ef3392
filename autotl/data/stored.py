"""The labelled images of a study, as its stored split lists them: no image is read.

The labels of the test split are returned only by `open_test`, which records it.
"""

import csv
import io
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autotl.data.copies import units
from autotl.data.dataset import PROBLEM_TABLE, Problem, SealedTest, record_opening, stored_split
from autotl.data.split import SPLITS, Split
from autotl.errors import DataError
from autotl.files import read


@dataclass(frozen=True)
class Labelled:
    """The images of a split with their classes, in the order of the data set."""

    paths: tuple[str, ...]
    """Relative to the root of the data set."""
    labels: tuple[str, ...]
    units: np.ndarray
    """[N] the same number for copies of an image and for images of a group."""


def paths(folder: Path, split: Split) -> list[str]:
    """The paths of the images of a split, relative to the root of the data set.

    Raises: DataError if the stored split below the study's folder is missing or damaged.
    """
    return [row["path"] for row in stored_split(folder) if row["split"] == split]


def labelled(folder: Path, split: Split) -> Labelled:
    """Raises: DataError as `paths`; SealedTest for the test split."""
    if split == "test":
        raise SealedTest("The labels of the test split are sealed; `open_test` opens them and logs the opening.")
    return _labelled(folder, split)


def open_test(folder: Path, log: Path, *, plan: str, trials: int, fingerprint: str, use: str) -> Labelled:
    """The test split with its labels; first the opening is recorded as a line of `log`, with its `use`.

    Raises: DataError as `paths`.
    """
    found = _labelled(folder, "test")
    record_opening(log, plan=plan, trials=trials, fingerprint=fingerprint, images=len(found.paths), use=use)
    return found


def _labelled(folder: Path, split: Split) -> Labelled:
    rows = [row for row in stored_split(folder) if row["split"] == split]
    if any(not row.get("label") for row in rows):
        raise DataError(f"The stored split of {str(folder)!r} lacks labels. Rerun the search to write it again.")
    return Labelled(
        paths=tuple(row["path"] for row in rows),
        labels=tuple(row["label"] for row in rows),
        units=units([row["sha"] for row in rows], (row.get("group") or None for row in rows)),
    )


def sizes(folder: Path) -> dict[Split, int]:
    """How many images each split has; only splits that have any.

    Raises: DataError as `paths`.
    """
    counted = Counter(row["split"] for row in stored_split(folder))
    return {split: counted[split] for split in SPLITS if counted[split]}


def problems(folder: Path) -> list[Problem]:
    """The files that were excluded; none if the table of them is missing."""
    file = folder / PROBLEM_TABLE
    text = read(file).decode(errors="surrogateescape") if file.is_file() else ""
    rows = csv.DictReader(io.StringIO(text, newline=""))
    return [Problem(row["path"], row["reason"]) for row in rows if row.get("path") and row.get("reason")]
