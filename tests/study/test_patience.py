import threading
import time

import pytest

from autotl.errors import PluginError
from autotl.registry import Owner, TooLong
from autotl.study import patience

OWNER = Owner("p", "autotl-p", "1", "autotl_p")


def spin():
    while True:
        pass


def insist():
    """Ignores three exceptions of any kind."""
    for _ in range(3):
        try:
            time.sleep(30)
        except BaseException:
            continue


@pytest.mark.parametrize("hang", [spin, lambda: time.sleep(30), lambda: threading.Event().wait()])
def test_code_that_does_not_return_is_interrupted_and_named(hang):
    says = "^Strategy 's' of plugin 'p' .* fails: TooLong: it did not return within 0 s"
    began = time.monotonic()
    with pytest.raises(PluginError, match=says), OWNER.answers_for("Strategy 's'"), patience.within(0.1):
        hang()
    assert time.monotonic() - began < 10


def test_code_that_ignores_an_interrupt_is_interrupted_again(monkeypatch):
    monkeypatch.setattr(patience, "AGAIN", 0.1)
    began = time.monotonic()
    with patience.within(0.1):
        insist()
    assert time.monotonic() - began < 10


def test_code_that_returns_in_time_is_not_interrupted_later():
    with patience.within(0.1):
        pass
    time.sleep(0.2)


def test_the_clock_is_paused_while_autotl_itself_works():
    with patience.within(0.3):
        with patience.paused():
            time.sleep(0.5)
        with pytest.raises(TooLong):
            time.sleep(10)
    with patience.paused():  # without a running clock, none is started
        pass
    time.sleep(0.1)
