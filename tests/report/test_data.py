"""The report on a data set before a search."""

import numpy as np
import pytest
from PIL import Image

from autotl.data.listing import BY_NAME, Columns
from autotl.report.data import DataReport, checks, report


def photo(number, size=(96, 64)):
    """An uneven picture, different for each number."""
    coarse = np.random.default_rng(number).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def data(tmp_path):
    """Forty cats, ten dogs, and one of everything that the report mentions."""
    root = tmp_path / "pets"
    for label, count, start in (("cat", 40, 0), ("dog", 10, 100)):
        (root / label).mkdir(parents=True)
        for n in range(count):
            photo(start + n).save(root / label / f"{n:02d}.png")
    photo(0).save(root / "cat" / "same.bmp")
    photo(1).save(root / "cat" / "near.jpg", quality=80)
    (root / "cat" / "broken.png").write_bytes(b"no image")
    (root / "cat" / "Thumbs.db").write_bytes(b"x")
    (root / "bird").mkdir()
    (root / "notes.txt").write_text("by hand")
    deep = np.arange(64 * 96, dtype=np.uint16).reshape(64, 96) % 4096
    Image.fromarray(deep).save(root / "dog" / "deep.png")
    return root


def reported(data, tmp_path, columns=BY_NAME):
    return report(data, columns, "together", tmp_path / "cache")


def test_everything_is_known_as_data(data, tmp_path):
    made = reported(data, tmp_path)
    assert made.error is None and DataReport.from_json(made.to_json()) == made
    found, contents = made.found, made.contents
    assert found.layout == "class folders" and found.files == 54
    assert found.unlabelled == ("notes.txt",) and found.empty == ("bird",) and found.litter == ("cat/Thumbs.db",)
    assert contents.images == 53 and [problem.path for problem in contents.problems] == ["cat/broken.png"]
    assert sum(contents.classes["cat"].values()) == 42 and sum(contents.classes["dog"].values()) == 11
    assert sum(contents.splits.values()) == 53 and contents.splits["test"]
    assert contents.width == (96, 96, 96) and contents.height == (64, 64, 64)
    assert contents.cut_away == pytest.approx(1 / 3)
    assert (contents.deep, contents.bits) in ((1, 12), (1, 16))  # the bits of the train images only
    assert contents.same == (("cat/00.png", "cat/same.bmp"),) and contents.near == (("cat/01.png", "cat/near.jpg"),)
    assert contents.groups == 0 and contents.units == 51


def test_every_fact_has_a_line(data, tmp_path):
    lines = {check.what: f"{check.found} {check.advice}" for check in checks(reported(data, tmp_path))}
    for what, said in {
        "layout": "class folders",
        "files": "54",
        "without a label": "notes.txt",
        "empty folders": "bird",
        "ignored": "Thumbs.db",
        "images": "53 can be used",
        "excluded": "cat/broken.png",
        "classes": "'cat' 42, 'dog' 11",
        "imbalanced classes": "3.82 times the images of 'dog'",
        "width": "96 px",
        "cropping": "33%",
        "bit depth": "1 grey images",
        "same picture": "cat/same.bmp",
        "near-copies": "cat/near.jpg",
        "independent": "51 of 53",
        "splits": "train ",
    }.items():
        assert said in lines[what], what
    assert not any(check.wrong for check in checks(reported(data, tmp_path)))


def test_bright_images_that_make_the_others_dark_are_reported(data, tmp_path):
    for number in range(30):
        deep = np.random.default_rng(number).integers(0, 1024 if number % 5 else 4096, (16, 16)).astype(np.uint16)
        Image.fromarray(deep).save(data / "dog" / f"deep{number}.png")
    (line,) = [check for check in checks(reported(data, tmp_path)) if check.what == "bit depth"]
    assert "their values use 12, those of the median one 10" in line.found and "brightest" in line.advice


def test_excluded_images_are_counted_for_every_reason(data, tmp_path):
    for number in range(7):
        Image.new("I", (8, 8), -1 - number).save(data / "dog" / f"signed{number}.tif")
    counted = [check.found for check in checks(reported(data, tmp_path)) if check.what == "excluded"]
    assert sum(int(found.split()[0].rstrip(":")) for found in counted) == 8 and counted[-1] == "3 for other reasons"


def test_near_copies_in_several_splits_are_reported(data, tmp_path):
    for number in range(40):
        photo(number).save(data / "cat" / f"{number:02d}.jpg", quality=80)
    for near_copies, lines in (("apart", 1), ("together", 0)):
        made = report(data, BY_NAME, near_copies, tmp_path / "cache")
        assert (made.contents.near_apart > 0) == lines
        assert sum(check.what == "near-copies apart" for check in checks(made)) == lines


def test_names_of_classes_that_differ_in_case_are_reported(data, tmp_path):
    (data / "bird").rename(data / "Cat")
    for number in range(3):
        photo(200 + number).save(data / "Cat" / f"{number}.png")
    assert any("upper and lower case: 'Cat', 'cat'" in note for note in reported(data, tmp_path).contents.notes)


def test_groups_and_columns_of_a_manifest(data, tmp_path):
    rows = [
        f"{path.relative_to(data)};{path.parent.name};{path.parent.name}{path.stem[1]}"
        for path in sorted(data.glob("*/[0-9]*.png"))
    ]
    (data / "list.csv").write_text("\n".join(["file;what;group", *rows]))
    made = reported(data / "list.csv", tmp_path, Columns("file", "what"))
    assert made.found.layout == "manifest" and made.found.read_as["what"] == "label"
    assert made.contents.groups == 20 and made.contents.units == 20


def test_what_prevents_a_search_is_an_error_beside_the_other_facts(data, tmp_path):
    for path in sorted(data.glob("dog/*"))[2:]:
        path.unlink()
    made = reported(data, tmp_path)
    assert made.found.files == 45 and made.contents is None and "'dog' is too small" in made.error
    (wrong,) = [check for check in checks(made) if check.wrong]
    assert wrong.found == made.error
    (tmp_path / "nothing").mkdir()
    nothing = reported(tmp_path / "nothing", tmp_path)
    assert nothing.found is None and nothing.error
