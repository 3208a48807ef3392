"""Timeouts for the code of plugins."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from autotl.registry import TooLong

ANSWER = 60.0
"""Seconds that a plugin has to suggest a plan or parameters."""
LEAST = 5.0
"""Seconds that it gets if less is left of the budget."""
GRACE = 30.0
"""Seconds after the end of a budget in which training has to stop; it checks the budget between batches."""
AGAIN = 1.0
"""Seconds between two interruptions of code that continues after the first."""


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Interrupts code that runs longer than this: loops, sleeping, waiting for a lock or a server.

    It uses signals, so it works only in the main thread, and not on C code that never returns to Python.

    Raises: TooLong, at the interrupted place.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: object) -> None:
        raise TooLong(f"it did not return within {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def paused() -> Iterator[None]:
    """Pauses the timeout of `within` while autotl's own code runs."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    left, _ = signal.setitimer(signal.ITIMER_REAL, 0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, left, AGAIN if left else 0)
