"""Lets the time limits of a program count processor time, so that other work on the machine does not shorten them.

`import cpu_clock` before any other module, or `python cpu_clock.py MODULE ARGUMENTS` instead of `python -m MODULE …`:
from then on the clocks of the module `time` and the timer of the module `signal` advance with the processor time of
this process. On a machine that does nothing else and with one thread, both kinds of second are the same.
"""

import runpy
import signal
import sys
import time

for clock in ("time", "monotonic", "perf_counter"):
    zero = getattr(time, clock)() - time.process_time()
    setattr(time, clock, lambda zero=zero: zero + time.process_time())
signal.ITIMER_REAL, signal.SIGALRM = signal.ITIMER_PROF, signal.SIGPROF

if __name__ == "__main__":
    del sys.path[0], sys.argv[0]  # as `python -m` has them
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
