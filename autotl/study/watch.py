"""The interface through which a search reports progress to a terminal, a log file or a notebook."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from autotl.engine.scale import Scale
from autotl.tracking.advice import Advice
from autotl.tracking.log import TrialRecord
from autotl.tracking.probe import ProbeRow

if TYPE_CHECKING:
    from autotl.data.dataset import Dataset


@dataclass(frozen=True)
class Estimate:
    """Estimated durations in seconds, from short measurements."""

    features: float
    """The remaining feature passes of all backbones together."""
    linear_probe: float
    """A linear classifier on stored features."""


class Watcher(Protocol):
    """Called by the search from its own thread; only `note` may be called from another thread.

    Several trials may run at the same time.
    """

    def note(self, text: str) -> None:
        """One line that the user should read."""

    def budget(self, left: Callable[[], float]) -> None:
        """`left()`: seconds until the search has to end; infinite without a budget."""

    def dataset(self, dataset: "Dataset") -> None: ...

    def scale(self, scale: Scale) -> None:
        """That of the metric by which the search selects."""

    def estimate(self, estimate: Estimate) -> None: ...

    def progress(self, task: str, done: int, total: int) -> None:
        """A task such as `reading images`; `done == total` ends it."""

    def probed(self, rows: Sequence[ProbeRow]) -> None: ...

    def advised(self, advice: Advice) -> None: ...

    def confirm(self, question: str) -> None:
        """Raises: StudyError unless the user agrees."""

    def trial_planned(self, number: int, what: str, done: int, total: int) -> None:
        """A trial starts: `what` names strategy, backbone and cut; `done` of `total` trials have ended."""

    def trial_epoch(self, number: int, place: str) -> None:
        """An epoch of a trial has ended; `place` is its phase, its number and the trial's progress."""

    def trial_ended(self, record: TrialRecord, best: TrialRecord | None, done: int, total: int) -> None:
        """`done` of the study's `total` trials have ended, this one included; `best` is the best of them."""


class Silent:
    """A watcher that shows nothing."""

    def note(self, text: str) -> None: ...
    def budget(self, left: Callable[[], float]) -> None: ...
    def dataset(self, dataset: "Dataset") -> None: ...
    def scale(self, scale: Scale) -> None: ...
    def estimate(self, estimate: Estimate) -> None: ...
    def progress(self, task: str, done: int, total: int) -> None: ...
    def probed(self, rows: Sequence[ProbeRow]) -> None: ...
    def advised(self, advice: Advice) -> None: ...
    def confirm(self, question: str) -> None: ...
    def trial_planned(self, number: int, what: str, done: int, total: int) -> None: ...
    def trial_epoch(self, number: int, place: str) -> None: ...
    def trial_ended(self, record: TrialRecord, best: TrialRecord | None, done: int, total: int) -> None: ...
