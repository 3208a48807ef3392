"""How long the code of a plugin may take that does not come back by itself."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from autotl.registry import TooLong

ANSWER = 60.0
"""Seconds in which a plugin has to answer that has nothing to compute: it suggests a plan, or parameters."""
LEAST = 5.0
"""Seconds that it gets when less is left of a budget."""
GRACE = 30.0
"""Seconds after the end of a budget in which a training has to notice it; between two batches it looks."""
AGAIN = 1.0
"""Seconds between two interruptions of code that goes on after the first."""


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Interrupts what is still running in here after so many seconds: loops, sleeping, waiting for a lock or a server.

    Signals do it, so it works in the main thread alone, and not on code in C that never returns to Python.

    Raises: TooLong, from wherever it is by then.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: object) -> None:
        raise TooLong(f"it had not come back after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def paused() -> Iterator[None]:
    """Within, the clock of `within` stands still: autotl itself is at work."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    left, _ = signal.setitimer(signal.ITIMER_REAL, 0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, left, AGAIN if left else 0)
