"""A first guess that cannot be tried as its author wrote it is reported."""

import time
from typing import ClassVar

import pytest

from autotl import hookimpl
from autotl.builtin.linear_probe import LinearProbe
from autotl.errors import StudyError
from autotl.study.search import Search
from autotl.study.settings import Settings
from autotl.study.watch import Silent
from autotl.testing.lab import sgd


class Recorder(Silent):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def search(host, stripes, watcher, **values):
    settings = {"backbones": ("tiny:net",), "reruns": 0, "compare": False, "refit": False, "prune": False, **values}
    made = Search(Settings(data=stripes, device="cpu", **settings), host, watcher, time.monotonic())
    made.run()
    return made.folder.log.records()


@pytest.mark.parametrize("heads", [("mlp", "cosine"), ("conv",)])
def test_the_first_guess_has_the_first_head(host, stripes, heads):
    """Also of a strategy that names a head which the study does not have."""

    class Own:
        first_guess: ClassVar = {"cut": 1.0, "head": "linear"}

        def suggest(self, trial, context):
            cut = context.cut()
            return context.plan(cut=cut, head=context.head(cut), phases=[sgd(cut, ())], input=context.input())

    class Plugin:
        @hookimpl
        def register_strategies(self, register):
            register("own", Own, summary="For a test")

    host.add(Plugin(), "own-plugin")
    watcher = Recorder()
    found = search(host, stripes, watcher, strategies=("own",), heads=heads, trials=1)
    (plan,) = [record.plan for record in found]
    assert (plan.head.kind, plan.head.width) == (heads[0], 256)
    assert not [note for note in watcher.notes if note.startswith("Warning")]


def test_a_convolution_alone_is_refused_for_backbones_with_tokens(host, stripes):
    """Before any image goes through a backbone."""
    watcher = Recorder()
    name = "timm:deit_tiny_patch16_224.fb_in1k@random"
    with pytest.raises(StudyError, match=f"--heads conv needs cuts with height and width, but '{name}' has some"):
        search(host, stripes, watcher, backbones=(name,), heads=("conv",))


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
    search(host, stripes, watcher, strategies=("picky",), trials=2)
    warned = [note for note in watcher.notes if note.startswith("Warning: Strategy 'picky' of plugin 'picky-plugin'")]
    assert any(says in note for note in warned) if says else not warned
    assert not recwarn.list
