"""What the probe saw of each cut, as the study folder keeps it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from pydantic import TypeAdapter, ValidationError

from autotl.errors import DamagedFile
from autotl.files import as_json, first_problem, read, write
from autotl.plan import Pooling
from autotl.tracking.folder import StudyFolder


@dataclass(frozen=True)
class ProbeRow:
    """What the probe saw at one cut of one backbone under one pooling."""

    backbone: str
    cut: str
    pooling: Pooling
    accuracy: float


_ROWS = TypeAdapter(list[ProbeRow])


def read_probe(folder: StudyFolder) -> list[ProbeRow]:
    """What the probe of a study has seen so far.

    Raises: DamagedFile.
    """
    if not folder.probe.exists():
        return []
    try:
        return _ROWS.validate_json(read(folder.probe))
    except ValidationError as error:
        raise DamagedFile(folder.probe, f"it holds no rows of the probe: {first_problem(error)}") from None


def write_probe(folder: StudyFolder, rows: Sequence[ProbeRow]) -> None:
    write(folder.probe, as_json([asdict(row) for row in rows]))
