"""The time budget of a search, from its first second to the tested bundle."""

import math
import time
from collections.abc import Callable

from autotl.study.watch import Watcher

MARGIN = 1.5
"""Seconds reserved for writing the result."""
END_SHARE = 0.3
"""The largest share of the budget that is reserved for what comes after the trials."""
TEST_SHARE = 0.5
"""The largest share of the budget that is reserved for the test."""


class OutOfTime(Exception):
    """The budget is used up, or the search is over: the current work is stopped, and finished work counts."""


class Budget:
    """Counts down from `began`, a value of `time.monotonic()`. Without `seconds` there is no limit."""

    def __init__(self, seconds: float | None, began: float) -> None:
        self.seconds = math.inf if seconds is None else seconds
        self.began = began
        self.kept_for_the_end = MARGIN
        self._margin = MARGIN

    @property
    def limited(self) -> bool:
        return math.isfinite(self.seconds)

    @property
    def used(self) -> float:
        return time.monotonic() - self.began

    def until_the_end(self) -> float:
        """Seconds until the user should have the result."""
        return max(0.0, self.seconds - self.used)

    def left(self) -> float:
        """Seconds until all work must stop."""
        return self.seconds - self.used - self._margin

    def left_to_search(self) -> float:
        """Seconds until all trials must stop."""
        return self.seconds - self.used - self.kept_for_the_end

    def keep(self, seconds: float) -> None:
        """Reserve this many seconds for what comes after the trials, up to `END_SHARE` of the budget."""
        self.kept_for_the_end = min(MARGIN + seconds, END_SHARE * self.seconds)

    def keep_at_last(self, seconds: float) -> None:
        """Reserve this many seconds for the last step, the test."""
        self._margin = MARGIN + min(seconds, TEST_SHARE * self.seconds)

    def check_search(self) -> None:
        """Raises: OutOfTime if only the time reserved for the end is left."""
        if self.left_to_search() < 0:
            raise OutOfTime

    def check(self) -> None:
        """Raises: OutOfTime if no time is left."""
        if self.left() < 0:
            raise OutOfTime

    def watched(self, watcher: Watcher, task: str) -> Callable[[int, int], None]:
        """`progress(done, total)` of a task that ends with the budget."""

        def progress(done: int, total: int) -> None:
            watcher.progress(task, done, total)
            self.check()

        return progress
