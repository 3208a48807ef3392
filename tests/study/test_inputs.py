"""Long images are squashed instead of cropped; integer images are scaled by the range that they use."""

import json

import numpy as np
import optuna
import pytest
from PIL import Image

from autotl.backbones.catalogue import Catalogue
from autotl.builtin import logistic
from autotl.contracts import DataFacts, Shapes
from autotl.data import images
from autotl.engine.precision import Arithmetic
from autotl.export import bundle
from autotl.plan import MODES, DataRef, Head
from autotl.study.inputs import Inputs
from autotl.study.search import Search
from autotl.study.settings import Settings
from autotl.study.space import SearchContext
from autotl.study.watch import Silent

SHIPPED = "autotl:resnet10"


@pytest.fixture
def catalogue(host, tmp_path):
    return Catalogue(host, tmp_path / "cache")


@pytest.mark.parametrize("ratio", [1, 4 / 3, 3 / 2])
def test_ordinary_photos_are_cropped_as_in_pretraining(catalogue, ratio):
    inputs = Inputs(catalogue, Shapes(image_size=300, cut_away=1 - 1 / ratio))
    own = catalogue.card(SHIPPED).input
    assert not inputs.searched and not list(inputs.notes())
    assert inputs.first(SHIPPED) == own
    assert inputs.guess(SHIPPED) == {"input_size": 0.0}
    assert {input.mode for input in inputs.sizes(SHIPPED, own.mode)} == {"crop"}


def test_the_first_guesses_squash_long_images(catalogue):
    inputs = Inputs(catalogue, Shapes(image_size=64, cut_away=2 / 3))
    own, first = catalogue.card(SHIPPED).input, inputs.first(SHIPPED)
    assert inputs.searched and "would remove 67% of an image" in next(inputs.notes())
    assert (first.mode, first.size, first.resize) == ("squash", own.size, own.size)
    assert inputs.guess(SHIPPED) == {"input_size": 0.0, "input_mode": "squash"}
    assert inputs.network(SHIPPED, 0).input == first
    # A larger input shows more of whole images.
    assert len(inputs.sizes(SHIPPED, "pad")) > len(inputs.sizes(SHIPPED, "crop")) == 1


def context(catalogue, trial, cut_away):
    return SearchContext(
        trial,
        catalogue=catalogue,
        backbones=["tiny:net"],
        drawn={},
        data=DataFacts(
            classes=2,
            train_images=50,
            smallest_class=9,
            largest_class=9,
            has_early_stop=True,
            image_size=32,
            cut_away=cut_away,
            bits=12,
        ),
        data_ref=DataRef(fingerprint="f", split_seed=7),
        seed=7,
        arithmetic=lambda name: Arithmetic(),
    )


def test_the_mode_is_drawn_if_a_crop_would_remove_much(catalogue):
    for mode in MODES:
        trial = optuna.trial.FixedTrial({"backbone": "tiny:net", "input_mode": mode})
        assert context(catalogue, trial, 0.6).input().mode == mode
    trial = optuna.trial.FixedTrial({"backbone": "tiny:net"})
    assert context(catalogue, trial, 0.3).input().mode == "crop"
    assert "input_mode" not in trial.params


def test_a_strategy_that_asks_for_no_input_gets_that_of_the_probe(catalogue):
    made = context(catalogue, optuna.trial.FixedTrial({"backbone": "tiny:net"}), 0.6)
    plan = made.plan(cut="1.2", head=Head(pooling="avg"), phases=[logistic.probe("1.2")])
    assert (plan.input.mode, plan.input.bits) == ("squash", 12)


@pytest.fixture
def scans(tmp_path):
    """Two classes of 30 grey images of 96 x 32 px and 12 bits, which differ in a patch near an end."""
    draw = np.random.default_rng(0)
    for name in ("ok", "defect"):
        (tmp_path / "scans" / name).mkdir(parents=True)
        for number in range(30):
            grey = draw.normal(1000, 100, (32, 96))
            if name == "defect":
                x, y = draw.integers(2, 8), draw.integers(2, 14)
                grey[y : y + 14, x : x + 14] = 3900
            Image.fromarray(grey.clip(0, 4095).astype(np.uint16)).save(tmp_path / "scans" / name / f"{number}.png")
    return tmp_path / "scans"


class Noted(Silent):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def test_a_defect_at_the_end_of_a_dark_long_image_is_found_by_the_first_guess(host, scans):
    watcher = Noted()
    settings = Settings(data=scans, trials=1, backbones=("tiny:net",), strategies=("linear-probe",), device="cpu")
    search = Search(settings, host, watcher, began=0.0)
    result = search.run()
    assert result.test.value > 0.9
    assert (result.final.input.mode, result.final.input.bits) == ("squash", 12)
    assert any("Integer images use 12 of 16 bits: values from 0 to 4,095" in note for note in watcher.notes)
    assert any("A square crop would remove 67% of an image" in note for note in watcher.notes)
    written = json.loads((search.folder.bundle / "preprocessing.json").read_text())
    assert (written["mode"], written["bits"]) == ("squash", 12)
    assert "values of integer images are scaled from 12 bits" in (search.folder.bundle / "README.md").read_text()
    # New images are scaled in the same way, even if they use more bits.
    model = bundle.load(search.folder.bundle, search.catalogue)
    brighter = Image.fromarray(np.full((32, 96), 60_000, np.uint16))
    seen = images.fit(images.upright(brighter), model.plan.input)
    assert (seen == 255).all()
