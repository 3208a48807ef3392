"""The evaluation of a model on labelled images that came later."""

import json
import shutil
from types import ModuleType

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import autotl
from autotl import hookimpl
from autotl.cli.main import main
from autotl.data.dataset import stored_split
from autotl.errors import DataError
from autotl.report import evaluation
from autotl.testing.lab import write_stripes

SETTINGS = {"backbones": "reference:edges", "strategies": ["linear-probe"], "mlflow": False, "compare": False}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("evaluation")


@pytest.fixture(scope="module")
def found(place):
    """A search that all tests read: none may change its study or its images."""
    data = write_stripes(place / "stripes")
    home, cache = place / "studies", place / "cache"
    return autotl.search(data, trials=2, reruns=0, verbose=False, home=home, cache_dir=cache, **SETTINGS)


@pytest.fixture
def later(tmp_path):
    """Images that the study has not seen: four of each class."""
    draw = np.random.default_rng(7)
    for source in write_stripes(tmp_path / "drawn").glob("*/1[0-3].png"):
        pixels = np.asarray(Image.open(source)).astype(int) + draw.integers(-60, 60, (32, 32, 3))
        target = tmp_path / "later" / source.parent.name / source.name
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(target)
    shutil.rmtree(tmp_path / "drawn")
    return tmp_path / "later"


def evaluate(found, data, place):
    return found.evaluate(data, cache_dir=place / "cache")


def test_the_figures_are_those_of_the_predictions(found, later, place):
    wrong = later / "across" / "is down.png"
    (later / "down" / "10.png").rename(wrong)
    made = evaluate(found, later, place)
    files = sorted(later.glob("*/*.png"))
    rows, labels = found.predict_proba(files), [file.parent.name for file in files]
    numbers = np.array([found.classes.index(label) for label in labels])
    right = rows.argmax(1) == numbers
    accuracy = made.metrics[0]
    assert accuracy.metric == "accuracy" and accuracy.value == pytest.approx(right.mean()) and right.mean() < 1
    assert accuracy.low < accuracy.value <= accuracy.high and made.images == accuracy.images == 12
    loss = next(each for each in made.metrics if each.metric == "log-loss")
    assert loss.value == pytest.approx(-np.log(rows[np.arange(12), numbers]).mean(), rel=1e-4)
    for number, name in enumerate(found.classes):
        own = numbers == number
        recall = made.classes[name]
        assert (recall.images, recall.right) == (own.sum(), right[own].sum())
        assert recall.low <= recall.recall <= recall.high
    assert made.wrong == (~right).sum() == len(made.mistakes)
    sure = sorted(rows[~right].max(1).tolist(), reverse=True)
    assert [each.probability for each in made.mistakes] == pytest.approx(sure)
    (mistake,) = [each for each in made.mistakes if each.path == "across/is down.png"]
    assert (mistake.true, mistake.given) == ("across", "down")
    assert any((pair.true, pair.given, pair.images) == ("across", "down", 5) for pair in made.confused)
    assert made.copies == () and made.without_copies is None
    assert made.tested.value == found.test.value
    assert evaluation.Evaluation.from_json(made.to_json()) == made


def test_copies_of_images_of_the_study_are_named(found, later, place):
    rows = {row["path"]: row["split"] for row in stored_split(place / "studies" / "stripes")}
    same, saved_again, nearly = "across/0.png", "down/1.png", "checks/2.png"
    shutil.copy(place / "stripes" / same, later / "across" / "same.png")
    Image.open(place / "stripes" / saved_again).save(later / "down" / "saved.bmp")
    Image.open(place / "stripes" / nearly).resize((64, 64)).save(later / "checks" / "larger.png")
    made = evaluate(found, later, place)
    copies = {copy.path: (copy.of, copy.split, copy.near) for copy in made.copies}
    assert copies == {
        "across/same.png": (same, rows[same], False),
        "down/saved.bmp": (saved_again, rows[saved_again], False),
        "checks/larger.png": (nearly, rows[nearly], True),
    }
    assert made.images == 15 and made.without_copies.images == 12
    (line,) = [line for line in evaluation.lines(made) if "3 of 15 images are copies of images of the study" in line]
    assert f"across/same.png ({same} in {rows[same]})" in line and f"Without them: {made.without_copies}." in line


def test_an_identical_file_is_recognised_without_the_image_and_its_stored_picture(found, later, place, tmp_path):
    shutil.copy(place / "stripes" / "across" / "0.png", later / "across" / "same.png")
    (place / "stripes").rename(place / "elsewhere")
    try:
        made = found.evaluate(later, cache_dir=tmp_path / "empty")
    finally:
        (place / "elsewhere").rename(place / "stripes")
    assert [(copy.path, copy.of) for copy in made.copies] == [("across/same.png", "across/0.png")]


def test_an_unknown_class_is_one_error(found, later, place):
    (later / "down").rename(later / "zigzag")
    known = "4 images of classes that the model does not know: 'zigzag'. It knows 'across'"
    with pytest.raises(DataError, match=known) as raised:
        evaluate(found, later, place)
    assert "\n" not in str(raised.value)


def test_without_its_study_nothing_is_said_about_copies(found, later, place, tmp_path):
    shutil.copytree(found.folder, tmp_path / "model")
    model = autotl.load(tmp_path / "model", cache_dir=place / "cache")
    made = evaluate(model, later, place)
    assert made.copies is None and made.metrics == evaluate(found, later, place).metrics
    assert any(line.startswith("The study of this model is not known") for line in evaluation.lines(made))


def test_the_command_names_files_that_it_cannot_read_and_changes_no_study(found, later, place):
    (later / "down" / "broken.png").write_bytes((later / "down" / "10.png").read_bytes()[:100])
    study = place / "studies" / "stripes"
    before = {file: file.read_bytes() for file in study.rglob("*") if file.is_file()}
    words = ["evaluate", "stripes", str(later), "--home", str(place / "studies"), "--cache-dir", str(place / "cache")]
    text = CliRunner().invoke(main, words)
    assert text.exit_code == 0, text.output
    plain = " ".join(text.stdout.split())
    assert "Files that were not evaluated, 1: down/broken.png: " in plain and "no part of that sealed test" in plain
    printed = CliRunner().invoke(main, [*words, "--json"])
    made = json.loads(printed.stdout)
    assert made["images"] == 12 and [each["path"] for each in made["unreadable"]] == ["down/broken.png"]
    assert {file: file.read_bytes() for file in study.rglob("*") if file.is_file()} == before
    (later / "down").rename(later / "zigzag")
    failed = CliRunner().invoke(main, [*words, "--json"])
    assert failed.exit_code == 2 and "zigzag" in json.loads(failed.stdout)["error"]


def test_images_of_some_of_the_classes_are_enough(found, later, place):
    shutil.rmtree(later / "checks")
    made = evaluate(found, later, place)
    assert made.metrics[0].images == made.images == 8 and list(made.classes) == ["across", "down"]


def test_a_metric_that_is_not_defined_for_the_images_is_skipped(found, later, place, monkeypatch):
    def undefined(labels, probabilities):
        raise ValueError("there are too few images")

    undefined.greater_is_better = True
    plugin = ModuleType("undefined")
    plugin.register_metrics = hookimpl(lambda register: register("nonsense", lambda: undefined, summary="For a test"))
    monkeypatch.setattr(evaluation, "METRICS", ("accuracy", "nonsense"))
    made = found.evaluate(later, cache_dir=place / "cache", plugins=[plugin])
    assert [each.metric for each in made.metrics] == ["accuracy"]
