"""autotl from Python."""

import json
import pydoc
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import autotl
from autotl.errors import AutotlError
from autotl.testing.lab import write_stripes

PROBE = {"backbones": "reference:edges,reference:pixels", "strategies": ["linear-probe"], "mlflow": False}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("api")


@pytest.fixture(scope="module")
def found(place):
    """A search that all tests read: none may change its study."""
    data = write_stripes(place / "stripes")
    return autotl.search(data, trials=4, verbose=False, home=place / "studies", cache_dir=place / "cache", **PROBE)


def test_a_search_gives_what_the_command_gives(found, place, tmp_path):
    words = [
        "search",
        place / "stripes",
        "--trials",
        "4",
        "--backbones",
        PROBE["backbones"],
        "--strategies",
        "linear-probe",
    ]
    words += ["--no-mlflow", "--study", "other", "--json"]
    output = json.loads(subprocess.check_output([sys.executable, "-m", "autotl", *map(str, words)], cwd=tmp_path))
    assert found.best.model_dump(mode="json") == output["best"]["plan"]
    assert found.test.model_dump() == output["test"]
    assert found.plan == found.bundle.plan
    assert found.classes == ("across", "checks", "down")


def test_the_leaderboard_is_a_table_of_the_plans(found):
    board = found.leaderboard
    assert isinstance(board, pd.DataFrame)
    assert board.index.name == "trial" and board.index[0] == found.result.best.trial
    assert board["accuracy"].is_monotonic_decreasing
    assert {"strategy", "backbone", "cut", "frozen", "pooling", "parameters", "flops", "seconds"} <= set(board)
    assert len(board) == len(set(board.index)) <= 4


def test_predictions_are_the_likeliest_classes(found, stripes):
    files = [stripes / name / f"{number}.png" for name in found.classes for number in range(3)]
    shares = found.predict_proba(files)
    assert shares.shape == (9, 3)
    np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-5)
    assert found.predict(files) == [found.classes[at] for at in shares.argmax(1)]
    assert found.predict(str(files[0])) == found.predict(files)[:1]
    assert len(found.predict(stripes / "down")) == 30
    assert found.predict([]) == []
    broken = stripes / "down" / "broken.png"
    broken.write_bytes(b"no image")
    (stripes / "down" / "gone.png").symlink_to("nowhere.png")
    litter = stripes / "down" / "Thumbs.db"
    litter.write_bytes(b"no image")
    with pytest.warns(UserWarning, match=r"(broken|gone)\.png is skipped: ") as output:
        assert len(found.predict(stripes / "down")) == 30
    assert len(output) == 2
    for file in (broken, litter, stripes / "nothing.png"):
        with pytest.raises(AutotlError, match=rf"{file.name} cannot be read: "):
            found.predict([*files, file])


def test_images_in_memory_are_classified_as_their_files_are(found, stripes):
    files = [stripes / "down" / f"{number}.png" for number in range(3)]
    wanted = found.predict_proba(files)
    opened = [Image.open(file) for file in files]
    pixels = np.stack([np.asarray(image.convert("RGB")) for image in opened])
    for images in (opened, pixels, list(pixels), iter(opened), [files[0], opened[1], pixels[2]]):
        np.testing.assert_array_equal(found.predict_proba(images), wanted)
    np.testing.assert_allclose(found.predict_proba(pixels[1]), wanted[1:2], rtol=1e-5)
    np.testing.assert_allclose(found.predict_proba(opened[2]), wanted[2:], rtol=1e-5)
    for image, says in (
        (pixels / 255, r"Image 0 is an array of float64 \[32, 32, 3\]; give uint8"),
        (pixels[0, :, :, 0], r"Image 0 is an array of uint8 \[32, 32\]; give uint8 \[H, W, 3\]"),
        ([opened[0], 5], r"Image 1 is int\. Give a path"),
        (Image.new("F", (9, 9)), "Image 0 cannot be read: its pixels are floating-point"),
    ):
        with pytest.raises(AutotlError, match=says):
            found.predict(image)


def test_a_study_and_a_bundle_on_disk_are_loaded(found, place, stripes, tmp_path, monkeypatch):
    monkeypatch.setenv("AUTOTL_HOME", str(place / "studies"))
    files = [stripes / "down" / f"{number}.png" for number in range(5)]
    wanted = found.predict_proba(files)
    by_name, by_folder, bundle = (
        autotl.load(path) for path in ("stripes", place / "studies" / "stripes", found.folder)
    )
    for model in (by_name, by_folder, bundle):
        np.testing.assert_array_equal(model.predict_proba(files), wanted)
    assert isinstance(by_name, autotl.Study) and by_name.result == found.result == by_folder.result
    assert not isinstance(bundle, autotl.Study)
    found.export("bundle", tmp_path / "copy")
    np.testing.assert_array_equal(autotl.load(tmp_path / "copy").predict_proba(files), wanted)
    with pytest.raises(AutotlError, match="Unknown study 'stripe'. Did you mean 'stripes'"):
        autotl.load("stripe")


def test_an_export_from_python(found, tmp_path):
    made = found.export("torch-export", tmp_path / "made")
    assert made.file.exists() and made.images == 32


def test_the_same_study_resumes(stripes):
    found = autotl.search(str(stripes), trials=4, verbose=False, **PROBE)
    more = autotl.search(str(stripes), trials=6, verbose=False, **PROBE)
    assert sum(more.result.trials.values()) == 6
    assert list(more.result.trials) == list(found.result.trials)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"trails": 5}, "Unknown option 'trails'. Did you mean 'trials'"),
        ({"trials": 0}, "trials=0: Input should be greater than or equal to 1"),
        ({"trials": "many"}, "trials='many': "),
        ({"budget": "soon"}, "budget='soon': 'soon' is not a duration; allowed are 90s, 30m, 1.5h, 1h30m and the like"),
        ({"metric": "accurancy"}, "Unknown metric 'accurancy'. Did you mean 'accuracy'?"),
        ({"backbones": ["timm:resnet5"]}, "Did you mean 'timm:resnet50"),
    ],
)
def test_bad_options_are_one_line(stripes, options, says):
    with pytest.raises(AutotlError) as caught:
        autotl.search(stripes, verbose=False, **options)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_signature_names_every_option():
    import inspect

    from autotl.study.settings import Settings

    parameters = inspect.signature(autotl.search).parameters
    assert next(iter(parameters)) == "data"
    assert set(parameters) == {*Settings.model_fields, "verbose"}
    assert parameters["trials"].default == 50
    output = pydoc.plain(pydoc.render_doc(autotl.search))
    assert "Annotated" not in output and "pydantic" not in output.lower()
    for name in list(Settings.model_fields)[1:]:
        assert re.search(rf"^ +{name}: [A-Z`].*\.$", output, re.MULTILINE), f"help does not explain {name}"


def test_dir_shows_only_public_names():
    assert {*dir(autotl)} == {*autotl.__all__, "__version__"}
    assert {"search", "load", "Model", "hookimpl"} <= {*dir(autotl)}


def test_a_notebook_shows_text_and_table(found):
    html = found._repr_html_()
    assert "Winner: reference:" in html and "<table" in html


def test_importing_autotl_is_light():
    code = "import sys, autotl; autotl.search, autotl.load\n"
    code += (
        "heavy = {'torch', 'timm', 'mlflow', 'optuna', 'pandas', 'sklearn'}; print(sorted(heavy & set(sys.modules)))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_a_notebook_shows_one_output_that_grows(monkeypatch):
    shown = []

    class Output:
        def update(self, data, raw):
            shown.append(data)

    display = pytest.importorskip("IPython.display")
    monkeypatch.setattr(display, "display", lambda *args, **options: Output())
    from autotl.report import notebook

    console = notebook.console()
    console.print("one <b>")
    console.print("two")
    assert shown[-1]["text/plain"] == "one <b>\ntwo\n"
    assert "one &lt;b&gt;\ntwo" in shown[-1]["text/html"]
    assert not notebook.is_here()
