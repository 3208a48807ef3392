"""What the probe saw of each cut, as the study folder keeps it."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from autotl.files import as_json, write
from autotl.plan import Pooling
from autotl.tracking.folder import StudyFolder


@dataclass(frozen=True)
class ProbeRow:
    """What the probe saw at one cut of one backbone under one pooling."""

    backbone: str
    cut: str
    pooling: Pooling
    accuracy: float


def read_probe(folder: StudyFolder) -> list[ProbeRow]:
    """What the probe of a study has seen so far."""
    if not folder.probe.exists():
        return []
    return [ProbeRow(**row) for row in json.loads(folder.probe.read_text())]


def write_probe(folder: StudyFolder, rows: Sequence[ProbeRow]) -> None:
    write(folder.probe, as_json([asdict(row) for row in rows]))
