"""The probe results in the study folder: the accuracy of each cut."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from pydantic import TypeAdapter, ValidationError

from autotl.errors import DamagedFile
from autotl.files import as_json, first_problem, read, write
from autotl.plan import Pooling
from autotl.tracking.folder import StudyFolder


@dataclass(frozen=True)
class ProbeRow:
    """The probe accuracy at one cut of one backbone with one pooling."""

    backbone: str
    cut: str
    pooling: Pooling
    accuracy: float
    images: int = 0
    """How many images it was measured on; 0 in a record of an earlier version."""


_ROWS = TypeAdapter(list[ProbeRow])


def read_probe(folder: StudyFolder) -> list[ProbeRow]:
    """The probe results of a study so far.

    Raises: DamagedFile.
    """
    if not folder.probe.exists():
        return []
    try:
        return _ROWS.validate_json(read(folder.probe))
    except ValidationError as error:
        raise DamagedFile(folder.probe, f"it does not hold rows of the probe: {first_problem(error)}") from None


def write_probe(folder: StudyFolder, rows: Sequence[ProbeRow]) -> None:
    write(folder.probe, as_json([asdict(row) for row in rows]))
