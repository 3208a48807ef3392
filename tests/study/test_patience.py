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
    """Goes on after whatever happens to it, three times."""
    for _ in range(3):
        try:
            time.sleep(30)
        except BaseException:
            continue


@pytest.mark.parametrize("hang", [spin, lambda: time.sleep(30), lambda: threading.Event().wait()])
def test_what_does_not_come_back_is_interrupted_and_named(hang):
    says = "^Strategy 's' of plugin 'p' .* fails: TooLong: it did not return within 0 s"
    began = time.monotonic()
    with pytest.raises(PluginError, match=says), OWNER.answers_for("Strategy 's'"), patience.within(0.1):
        hang()
    assert time.monotonic() - began < 10


def test_code_that_goes_on_is_interrupted_again(monkeypatch):
    monkeypatch.setattr(patience, "AGAIN", 0.1)
    began = time.monotonic()
    with patience.within(0.1):
        insist()
    assert time.monotonic() - began < 10


def test_what_comes_back_in_time_is_left_alone_also_later():
    with patience.within(0.1):
        pass
    time.sleep(0.2)


def test_the_clock_stands_still_while_autotl_itself_works():
    with patience.within(0.3):
        with patience.paused():
            time.sleep(0.5)
        with pytest.raises(TooLong):
            time.sleep(10)
    with patience.paused():  # where no clock runs, none is started
        pass
    time.sleep(0.1)
