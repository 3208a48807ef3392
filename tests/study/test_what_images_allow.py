"""A search measures once which operations the images allow, and does not draw the others."""

import time

from autotl.engine import operations
from autotl.study.search import Search
from autotl.study.settings import Settings
from autotl.study.watch import Silent


class Notes(Silent):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def search(host, data, trials, watcher):
    values = {
        "data": data,
        "trials": trials,
        "backbones": ("reference:edges", "tiny:net"),
        "strategies": ("full",),
        "augmentations": ("basic",),
        "set": {"recipe.length": 0},
        "reruns": 0,
        "refit": False,
        "compare": False,
        "device": "cpu",
    }
    made = Search(Settings.of(values), host, watcher, time.monotonic())
    made.run()
    return made


def test_what_the_images_do_not_allow_is_not_drawn(host, stripes, monkeypatch):
    """A quarter turn makes stripes down of stripes across."""
    watcher = Notes()
    made = search(host, stripes, 2, watcher)
    (said,) = [note for note in watcher.notes if note.startswith("Not searched, because they make classes harder")]
    assert "quarter turns" in said.split(". ")[0] and "mirroring" in said.split(". ")[1]
    for record in made.folder.log.records():
        params = record.plan.augmentation.params
        assert "mirror" in params and "quarter_turns" not in params

    def again(*words):
        raise AssertionError("it is measured once")

    monkeypatch.setattr(operations, "measured", again)
    resumed = search(host, stripes, 3, Notes())
    assert "quarter_turns" not in list(resumed.folder.log.records())[2].plan.augmentation.params
