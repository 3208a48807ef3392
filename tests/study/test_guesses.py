"""A first guess that cannot be tried as its author wrote it is reported."""

import time

import pytest

from autotl import hookimpl
from autotl.builtin.linear_probe import LinearProbe
from autotl.study.search import Search
from autotl.study.settings import Settings
from autotl.study.watch import Silent


class Recorder(Silent):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


@pytest.mark.parametrize(
    ("guess", "says"),
    [
        ({"cut": 1.5}, "sets 'cut' to 1.5, which is not in FloatDistribution"),
        ({"picky.momentum": 0.9}, "names 'picky.momentum', which its suggest does not ask for."),
        (
            {"augmentation": "flop"},
            "names something unknown, and is tried without it: Unknown augmentation 'flop'. Did you mean 'flip'?",
        ),
        ({"backbone": "autotl:resnet11"}, "Unknown backbone 'autotl:resnet11'. Did you mean 'autotl:resnet10'?"),
        ({"backbone": "autotl:resnet10", "cut": 1.0}, ""),
    ],
)
def test_mistakes_in_a_first_guess_are_reported(host, stripes, guess, says, recwarn):
    class Picky(LinearProbe):
        first_guess = guess

    class Plugin:
        @hookimpl
        def register_strategies(self, register):
            register("picky", Picky, summary="For a test")

    host.add(Plugin(), "picky-plugin")
    watcher = Recorder()
    settings = {"backbones": ("tiny:net",), "strategies": ("picky",), "trials": 2, "reruns": 0, "compare": False}
    Search(Settings(data=stripes, device="cpu", refit=False, **settings), host, watcher, time.monotonic()).run()
    warned = [note for note in watcher.notes if note.startswith("Warning: Strategy 'picky' of plugin 'picky-plugin'")]
    assert any(says in note for note in warned) if says else not warned
    assert not recwarn.list
