"""The scripts of `studies/` run on small data, and resume where they stopped."""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from autotl.builtin import shipped

STUDIES = Path(__file__).parent.parent / "studies"
RECIPE = """
seed = 1
teacher = "resnet10"
epochs = {epochs}
batch_size = 64
optimizer = "adamw"
lr = 0.001
warm_up = 0.1
weight_decay = 0.05
label_smoothing = 0.1
min_area = 0.5
cutmix = 0.5
clip = 1.0
ema = 0.9
bf16 = false

[model]
class = "timm.models.resnet.ResNet"
block = "BasicBlock"
layers = [1, 1, 1, 1]
channels = [8, 8, 8, 8]
"""


def script(name, monkeypatch):
    """The script as a module; it imports the modules beside it as it does from the command line."""
    monkeypatch.syspath_prepend(STUDIES)
    spec = importlib.util.spec_from_file_location("script", STUDIES / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(command, *words):
    done = CliRunner().invoke(command, list(map(str, words)), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output.splitlines()


@pytest.fixture
def tiny_imagenet(tmp_path):
    """A folder like Tiny ImageNet's: 200 classes with one image each."""
    draw = np.random.default_rng(0)
    wnids = [f"n{number:03}" for number in range(200)]
    root = tmp_path / "tiny-imagenet-200"
    (root / "val" / "images").mkdir(parents=True)
    (root / "wnids.txt").write_text("\n".join(wnids))
    (root / "val" / "val_annotations.txt").write_text("".join(f"{name}.JPEG\t{name}\t0\t0\n" for name in wnids))
    for name in wnids:
        (root / "train" / name / "images").mkdir(parents=True)
        image = Image.fromarray(draw.integers(256, size=(64, 64, 3), dtype=np.uint8))
        for file in (root / "train" / name / "images" / f"{name}.JPEG", root / "val" / "images" / f"{name}.JPEG"):
            image.save(file)
    return root


def test_a_backbone_is_trained_by_its_recipe_and_loads_as_one_that_ships(tiny_imagenet, tmp_path, monkeypatch):
    train = script("backbones/train.py", monkeypatch).main
    recipe = tmp_path / "small.toml"
    words = (recipe, "--data", tiny_imagenet, "--work", tmp_path / "work", "--device", "cpu")
    recipe.write_text(RECIPE.format(epochs=1))
    assert [line.split()[1] for line in run(train, *words)] == ["1/1"]
    shutil.rmtree(tiny_imagenet / "train")  # decoded once
    recipe.write_text(RECIPE.format(epochs=2))
    (tiny_imagenet / "train").mkdir()
    assert [line.split()[1] for line in run(train, *words)] == ["2/2"]

    facts = json.loads((tmp_path / "work" / "small.json").read_text())
    low, high = facts["top1_interval"]
    assert low <= facts["top1"] <= high and facts["top1_images"] == 100 and facts["epoch"] in (1, 2)
    monkeypatch.setattr(shipped, "WEIGHTS", tmp_path / "work")
    shipped._facts.cache_clear()
    try:
        card = shipped.Shipped().card("small")
        model = shipped.Shipped().build("small", card.weights.file).eval()
    finally:
        shipped._facts.cache_clear()
    assert "distilled from autotl:resnet10" in card.note
    with torch.no_grad():
        assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 200)


def test_arms_are_compared_over_seeds(stripes, tmp_path, monkeypatch):
    compare = script("compare.py", monkeypatch)
    monkeypatch.setattr(compare.sets, "TEST", 6)
    out, picture = tmp_path / "results.json", tmp_path / "cuts.png"
    arms = ("--arm", "one=linear-probe", "--arm", "same=linear-probe")
    sizes = ("--images", 20, "--trials", 1, "--backbone", "reference:edges")
    words = (tmp_path / "work", "--digits", stripes, *arms, *sizes, "--out", out, "--picture", picture)
    assert len(run(compare.main, *words, "--seeds", 1)) == 2 + 1  # one seed is no comparison yet
    assert len(run(compare.main, *words, "--seeds", 2)) == 2 + 1 + 1
    assert len(run(compare.main, *words, "--seeds", 2)) == 1 + 1
    printed = json.loads(out.read_text())
    (row,) = printed["summary"]
    assert row["n"] == 2 and row["one"] == row["same"] > 0.5
    assert row["one - same"] == [0.0, 0.0, 0.0]
    assert [sum(cell["won"].values()) for cell in printed["cuts"]] == [4]
    assert len(printed["runs"]) == 4
    assert picture.stat().st_size > 0


@pytest.mark.parametrize("study", ["pretraining", "freeze-cut-rates"])
def test_the_tables_agree_with_the_results(study):
    printed = (STUDIES / "README.md").read_text()
    for row in json.loads((STUDIES / study / "results.json").read_text())["summary"]:
        for name, value in row.items():
            if isinstance(value, float):
                assert f"| {100 * value:.1f} |" in printed, (name, row)
            elif isinstance(value, list):
                mean, low, high = (f"{100 * each:+.1f}".replace("-", "−") for each in value)
                assert f"{mean} ({low} to {high})" in printed, (name, row)
