"""Of stripes across, stripes down and a chessboard, a quarter turn makes the first the second."""

import pytest
import torch
from tiny import make_bench

from autotl import Mixed, hookimpl
from autotl.engine import operations
from autotl.engine.operations import Effect, measured, operations_of, said
from autotl.errors import PluginError

OPERATIONS = {
    "mirroring": lambda images, draw: images.flip(3),
    "quarter turns": lambda images, draw: images.rot90(1, (2, 3)),
    "black": lambda images, draw: torch.zeros_like(images),
}


HARMFUL = "Not searched, because they make classes harder to tell apart:"


@pytest.fixture
def bench(host, stripes, tmp_path):
    return make_bench(host, stripes, tmp_path / "cache", backbones=("reference:edges",))


@pytest.fixture
def found(bench):
    network = bench.catalogue.network("reference:edges", 0)
    done = []
    cut = bench.catalogue.info("reference:edges").names[-1]
    changes = measured(bench, network, cut, "avg", OPERATIONS, 0, lambda *place: done.append(place))
    assert done == [(1, 3), (2, 3), (3, 3)]
    return {change.operation: change for change in changes}


def test_a_turn_changes_the_classes_of_stripes(found):
    turned, mirrored = found["quarter turns"], found["mirroring"]
    assert turned.harmful and turned.apart > 0.8 > turned.together
    assert set(turned.confused) == {"across", "down"}
    assert not mirrored.harmful and mirrored.together > 0.8
    # Black images are recognised by no classifier, so one for both loses nothing by them.
    assert found["black"].apart < 0.7 and not found["black"].harmful


class Wanting:
    def __init__(self, **operations):
        self._operations = operations

    def operations(self):
        return self._operations

    def suggest(self, trial, context):
        return {}

    def build(self, params):
        return lambda images, draw: images


def test_the_operations_of_all_augmentations_are_measured_once(host):
    class Plugin:
        @hookimpl
        def register_augmentations(self, register):
            register(
                "one", lambda: Wanting(black=OPERATIONS["black"], half=lambda images, draw: images[:1]), summary=""
            )
            register("two", lambda: Wanting(black=OPERATIONS["mirroring"], mixed=mixed), summary="")

    def mixed(images, draw):
        return Mixed(images, torch.arange(len(images)), torch.ones(len(images)))

    def half(images, draw):
        return images[: len(images) // 2]

    host.add(Plugin(), "wanting")
    found = operations_of([host.augmentations["one"], host.augmentations["two"], host.augmentations["none"]])
    assert set(found) == {"black", "half", "mixed"}
    images = torch.full((2, 3, 8, 8), 9, dtype=torch.uint8)
    assert not found["black"](images, None).any()
    for name, owner in (("half", "one"), ("mixed", "two")):
        with pytest.raises(PluginError, match=f"Operation '{name}' of augmentation '{owner}' of plugin 'wanting'"):
            found[name](images, None)


def test_few_images_are_enough(bench, monkeypatch):
    monkeypatch.setattr(operations, "MOST", 9)
    network = bench.catalogue.network("reference:edges", 0)
    cut = bench.catalogue.info("reference:edges").names[-1]
    (change,) = measured(bench, network, cut, "max", {"mirroring": OPERATIONS["mirroring"]}, 0)
    assert change.low <= change.together - change.apart <= change.high


@pytest.mark.parametrize(
    ("highs", "says"),
    [
        ((0.1, 0.2), "The images allow one, two."),
        (
            (-0.1, 0.2),
            "Not searched, because they make classes harder to tell apart: one ('6' as '9'). The images allow two.",
        ),
        ((-0.1, -0.2), "Not searched, because they make classes harder to tell apart: one ('6' as '9'), two."),
    ],
)
def test_what_the_images_allow_is_said_in_one_line(highs, says):
    pairs = (("6", "9"), None)
    names = ("one", "two")
    found = [Effect(name, 0.9, 0.8, -0.3, high, pair) for name, high, pair in zip(names, highs, pairs, strict=True)]
    assert said(found) == says
