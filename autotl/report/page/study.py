"""What a page is made from: the records of a finished study, each read once."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from autotl.data.dataset import root_of
from autotl.engine.scale import Scale
from autotl.errors import StudyError
from autotl.report import words
from autotl.study import select
from autotl.tracking import result as results
from autotl.tracking.advice import Advice, read_advice
from autotl.tracking.folder import Definition, StudyFolder
from autotl.tracking.log import TrialRecord
from autotl.tracking.probe import ProbeRow, read_probe
from autotl.tracking.result import Result


@dataclass(frozen=True)
class Finished:
    """A finished study. Records that an older version did not keep are None or empty."""

    folder: StudyFolder
    definition: Definition
    result: Result
    records: tuple[TrialRecord, ...]
    """The trials on the current images."""
    probe: tuple[ProbeRow, ...]
    advice: Advice | None

    @property
    def metric(self) -> str:
        return self.definition.metric

    @property
    def scale(self) -> Scale:
        return self.definition.scale

    @property
    def root(self) -> Path:
        """The folder that the paths of the images are relative to."""
        return root_of(Path(self.definition.data))

    @cached_property
    def board(self) -> Sequence[TrialRecord]:
        """The different plans that were trained, best first."""
        return select.leaderboard(self.records, self.scale, self.definition.fingerprint)

    @cached_property
    def winner(self) -> TrialRecord | None:
        """The trial of the winner; None if its log is gone."""
        return next((record for record in self.board if record.number == self.result.best.trial), None)

    def stages(self, backbone: str) -> list[str]:
        """The stages of a backbone in order, as far as the probe scored them."""
        return list(dict.fromkeys(row.cut for row in self.probe if row.backbone == backbone))


def read(folder: StudyFolder) -> Finished:
    """Raises: StudyError if the study has no result yet, or one of its files is damaged."""
    definition, result = folder.require_definition(), results.load(folder)
    if result is None:
        raise StudyError(f"Study '{folder.name}' has no result yet; resume it: {words.go_on(folder, definition)}")
    records = [
        record
        for record in folder.log.records()
        if not record.plan or record.plan.data.fingerprint == definition.fingerprint
    ]
    return Finished(
        folder=folder,
        definition=definition,
        result=result,
        records=tuple(records),
        probe=tuple(read_probe(folder)),
        advice=result.advice.advice if result.advice else read_advice(folder),
    )
