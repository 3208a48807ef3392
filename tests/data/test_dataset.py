"""From a folder to a data set: excluded files, records, and a test split that stays sealed."""

import dataclasses
import itertools
import json
import os
import shutil
import struct
import unicodedata
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from autotl.data.dataset import Problem, SealedTest, open_dataset, read_split
from autotl.data.images import FORMATS
from autotl.data.pixels import PixelStore
from autotl.data.split import SPLITS
from autotl.errors import DataError
from autotl.plan import Input

INPUT = Input(size=8, resize=8, interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))


def picture(path, number):
    """An image file, different for each number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 9), (number % 256, number // 256, 7)).save(path, "PNG")


def folder(root, start=0, **classes):
    """Class folders with the given numbers of different images."""
    number = start
    for label, count in classes.items():
        for n in range(count):
            picture(root / label.replace("__", "/") / f"{n}.png", number)
            number += 1
    return root


@pytest.fixture
def opened(tmp_path):
    def open_(path, seed=0, **options):
        return open_dataset(path, seed=seed, inputs=[INPUT], pixels=PixelStore(tmp_path / "cache"), **options)

    return open_


def splits(dataset):
    return {image.path: image.split for image in dataset.images}


def labels(dataset, log):
    """The label of each image by path, test included."""
    kept = [dataset.labels("train", "early_stop", "val"), dataset.open_test(log, plan="p", trials=0)]
    images = [*dataset.of("train", "early_stop", "val"), *dataset.of("test")]
    return {image.path: dataset.classes[number] for image, number in zip(images, np.concatenate(kept), strict=True)}


def test_a_whole_folder(opened, tmp_path):
    dataset = opened(folder(tmp_path / "data", cat=50, dog=100))
    assert dataset.classes == ("cat", "dog") and dataset.root == tmp_path / "data"
    assert dataset.problems == () and dataset.notes == ()
    assert dataset.counts() == {
        "cat": {"train": 27, "early_stop": 5, "val": 8, "test": 10},
        "dog": {"train": 54, "early_stop": 10, "val": 16, "test": 20},
    }
    assert [image.path for image in dataset.images] == sorted(image.path for image in dataset.images)
    assert {(image.width, image.height, image.group) for image in dataset.images} == {(12, 9, None)}
    found = labels(dataset, tmp_path / "log")
    assert len(found) == 150 and all(path.startswith(label) for path, label in found.items())


def test_images_shas_labels_and_files_have_one_order(opened, tmp_path):
    dataset = opened(folder(tmp_path / "data", cat=40, dog=40))
    some = dataset.of("val", "train")
    assert {image.split for image in some} == {"val", "train"}
    assert dataset.shas("train", "val") == [image.sha for image in some]
    assert dataset.files("train", "val") == [(i.sha, tmp_path / "data" / i.path) for i in some]
    numbers = dataset.labels("train", "val")
    assert numbers.dtype == np.int64 and numbers.tolist() == [i.path.startswith("dog") for i in some]
    with pytest.raises(ValueError, match="validation"):
        dataset.of("validation")
    with pytest.raises(ValueError, match="one or more"):
        dataset.of()


def test_every_image_has_pixels_and_is_decoded_once(tmp_path):
    data, pixels = folder(tmp_path / "data", cat=10, dog=10), PixelStore(tmp_path / "cache")
    dataset = open_dataset(data, seed=0, inputs=[INPUT], pixels=pixels)
    assert pixels.decoded == 20
    assert pixels.rows(INPUT).missing(dataset.shas("train", "val", "test")) == []
    open_dataset(data, seed=0, inputs=[INPUT], pixels=pixels)
    assert pixels.decoded == 20


def test_the_split_depends_on_the_seed_and_the_images_alone(opened, tmp_path):
    data = folder(tmp_path / "data", cat=40, dog=40)
    first = opened(data)
    assert splits(opened(data, seed=1)) != splits(first)
    os.rename(data, tmp_path / "moved")
    again = opened(tmp_path / "moved")
    assert splits(again) == splits(first) and again.fingerprint == first.fingerprint


def test_the_unicode_form_of_names_makes_no_other_data(opened, tmp_path):
    names = [unicodedata.normalize(form, "é") for form in ("NFC", "NFD")]
    one, other = (opened(folder(tmp_path / form, **{form: 9, "b": 9})) for form in names)
    assert one.classes == other.classes == ("b", names[0])
    assert one.fingerprint == other.fingerprint
    assert one.locate(one.shas("train")).keys() == other.locate(one.shas("train")).keys()


def test_the_fingerprint_covers_path_contents_label_and_split(opened, tmp_path):
    def fingerprint(change=lambda root: None, seed=0):
        root = folder(tmp_path / str(len(list(tmp_path.iterdir()))), cat=20, dog=20)
        change(root)
        return opened(root, seed=seed).fingerprint

    same = fingerprint()
    assert fingerprint() == same and len(same) == 64
    others = [
        fingerprint(seed=1),
        fingerprint(lambda root: os.rename(root / "cat/0.png", root / "cat/zero.png")),
        fingerprint(lambda root: picture(root / "cat/0.png", 9999)),
        fingerprint(lambda root: os.rename(root / "cat", root / "lynx")),
        fingerprint(lambda root: (root / "cat/0.png").unlink()),
    ]
    assert len({same, *others}) == 6


# Excluded files


def test_unreadable_files(opened, tmp_path):
    data = folder(tmp_path / "data", cat=30, dog=30)
    (data / "cat/notes.txt").write_text("no image")
    (data / "cat/torn.png").write_bytes((data / "cat/0.png").read_bytes()[:40])
    (data / "dog/gone.png").symlink_to("nothing")
    dataset = opened(data)
    assert [problem.path for problem in dataset.problems] == ["cat/notes.txt", "cat/torn.png", "dog/gone.png"]
    assert dataset.problems[0] == Problem("cat/notes.txt", f"not an image in a supported format: {', '.join(FORMATS)}")
    assert len(dataset.images) == 60
    assert dataset.notes == ("3 of 63 files could not be read",)


def test_copies_within_a_class_stay_together(opened, tmp_path):
    data = folder(tmp_path / "data", cat=30, dog=30)
    for n in range(30):
        picture(data / f"cat/copy {n}.png", n)
    dataset = opened(data)
    found = splits(dataset)
    assert len(found) == 90 and dataset.problems == ()
    assert all(found[f"cat/{n}.png"] == found[f"cat/copy {n}.png"] for n in range(30))
    assert dataset.notes == ("30 of 90 files are copies of another image in the same split",)


def photo(number):
    """An uneven picture, different for each number, [48, 64, 3]."""
    coarse = np.random.default_rng(number).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(coarse).resize((64, 48), Image.Resampling.BICUBIC)


def photos(root, start=0, **classes):
    """As `folder`, of photos."""
    number = start
    for label, count in classes.items():
        place = root / label.replace("__", "/")
        place.mkdir(parents=True)
        for n in range(count):
            photo(number).save(place / f"{n}.png")
            number += 1
    return root


def test_the_same_pixels_in_other_files_stay_together(opened, tmp_path):
    data = photos(tmp_path / "data", cat=30, dog=30)
    for n in range(30):
        photo(n).save(data / f"cat/{n}.bmp")
    found = splits(opened(data))
    assert all(found[f"cat/{n}.png"] == found[f"cat/{n}.bmp"] for n in range(30))


def test_the_same_pixels_under_two_labels_are_excluded(opened, tmp_path):
    data = photos(tmp_path / "data", cat=10, dog=10)
    photo(3).save(data / "dog/too.bmp")
    assert [problem.path for problem in opened(data).problems] == ["cat/3.png", "dog/too.bmp"]


def near_copies(root):
    """Photos of cats, each beside a worse copy of itself, and dogs."""
    data = photos(root, cat=30, dog=30)
    for n in range(30):
        photo(n).save(data / f"cat/{n}.jpg", quality=80)
    return data


def test_near_copies_stay_together(opened, tmp_path):
    dataset = opened(near_copies(tmp_path / "data"))
    found = splits(dataset)
    assert all(found[f"cat/{n}.png"] == found[f"cat/{n}.jpg"] for n in range(30))
    assert dataset.notes == ("60 of 90 files are nearly the same as another one in the same split",)
    assert len(set(dataset.units(*SPLITS).tolist())) == 60


def test_near_copies_may_be_divided_on_request(opened, tmp_path):
    dataset = opened(near_copies(tmp_path / "data"), near_copies="apart")
    found = splits(dataset)
    divided = sum(found[f"cat/{n}.png"] != found[f"cat/{n}.jpg"] for n in range(30))
    assert divided and f"{2 * divided} of 90 files are nearly the same as one in another split" in dataset.notes[0]


def test_near_copies_in_given_splits(opened, tmp_path):
    data = photos(tmp_path / "data", train__cat=20, train__dog=20, test__cat=5, test__dog=5)
    photo(40).save(data / "train/cat/in test.jpg", quality=80)
    dataset = opened(data)
    assert dataset.problems == (
        Problem("train/cat/in test.jpg", "nearly the same picture is in test as 'test/cat/0.png'"),
    )
    assert dataset.notes[0] == "1 of 51 files excluded: nearly the same picture is in val or test"
    again = opened(data, previous={image.sha: image.split for image in dataset.images})
    assert again.fingerprint == dataset.fingerprint and again.problems == dataset.problems


def test_a_near_copy_joins_the_split_that_a_study_has_stored(opened, tmp_path):
    data = photos(tmp_path / "data", cat=30, dog=30)
    before = opened(data)
    at = next(image.path for image in before.images if image.split == "test" and image.path.startswith("cat"))
    photo(int(at.removeprefix("cat/").removesuffix(".png"))).save(data / "cat/again.jpg", quality=80)
    after = opened(data, previous={image.sha: image.split for image in before.images})
    assert splits(after) == splits(before) | {"cat/again.jpg": "test"}


def test_one_picture_under_two_labels(opened, tmp_path):
    data = folder(tmp_path / "data", cat=30, dog=30)
    picture(data / "dog/really.png", 4)
    picture(data / "cat/again.png", 4)
    dataset = opened(data)
    assert dataset.problems == (
        Problem("cat/4.png", "the same picture is labelled 'dog' as 'dog/really.png'"),
        Problem("cat/again.png", "the same picture is labelled 'dog' as 'dog/really.png'"),
        Problem("dog/really.png", "the same picture is labelled 'cat' as 'cat/4.png'"),
    )
    assert not {"cat/4.png", "cat/again.png", "dog/really.png"} & splits(dataset).keys()
    assert dataset.notes == ("3 of 62 files excluded: the same picture has another label elsewhere",)


def test_leaks_between_given_splits(opened, tmp_path):
    data = folder(tmp_path / "data", train__cat=30, train__dog=30, val__cat=5, val__dog=5, test__cat=5)
    first_val, first_test = 60, 70
    picture(data / "train/cat/in val.png", first_val)
    picture(data / "train/cat/in test.png", first_test)
    picture(data / "val/cat/in test.png", first_test + 1)
    picture(data / "test/cat/twice.png", first_test + 2)
    dataset = opened(data)
    assert dataset.problems == (
        Problem("train/cat/in test.png", "the same picture is in test as 'test/cat/0.png'"),
        Problem("train/cat/in val.png", "the same picture is in val as 'val/cat/0.png'"),
        Problem("val/cat/in test.png", "the same picture is in test as 'test/cat/1.png'"),
    )
    assert dataset.notes == (
        "3 of 79 files excluded: the same picture is in val or test",
        "1 of 79 files are copies of another image in the same split",
        "test has no image of 1 classes, such as 'dog'",
    )
    homes = {}
    for image in dataset.images:
        assert homes.setdefault(image.sha, image.split) == image.split


def test_given_splits_are_kept(opened, tmp_path):
    dataset = opened(folder(tmp_path / "data", train__cat=30, train__dog=30, valid__cat=5, valid__dog=4))
    assert dataset.counts() == {
        "cat": {"train": 20, "early_stop": 4, "val": 5, "test": 6},
        "dog": {"train": 20, "early_stop": 4, "val": 4, "test": 6},
    }
    assert all((image.split == "val") == image.path.startswith("valid") for image in dataset.images)
    assert not dataset.divisible


def test_a_manifest_with_groups(opened, tmp_path):
    data = folder(tmp_path / "data", pictures=60)
    rows = [f"pictures/{n}.png,{'cat' if n % 2 else 'dog'},patient {n // 4}" for n in range(60)]
    (data / "m.csv").write_text("\n".join(["path,label,group", *rows]))
    dataset = opened(data / "m.csv")
    homes = Counter((image.group, image.split) for image in dataset.images)
    assert len(homes) == 15 and set(homes.values()) == {4}
    assert dataset.root == data


def test_copies_and_groups_are_units(opened, tmp_path):
    data = folder(tmp_path / "data", a=15, b=15)
    shutil.copy(data / "a" / "0.png", data / "a" / "copy.png")
    rows = [f"a/{n}.png,a,{'one' if n < 5 else ''}" for n in range(15)] + ["a/copy.png,a,"]
    rows += [f"b/{n}.png,b,{'two' if n < 5 else ''}" for n in range(15)]
    (data / "m.csv").write_text("\n".join(["path,label,group", *rows]))
    dataset = opened(data / "m.csv")
    every = dict(zip([image.path for image in dataset.images], dataset.units(*SPLITS), strict=True))
    assert len({every[f"a/{n}.png"] for n in range(5)} | {every["a/copy.png"]}) == 1
    assert len(set(every.values())) == 2 + 20
    assert len(dataset.units("test")) == len(dataset.of("test"))


def test_a_missing_early_stop_split_is_reported(opened, tmp_path):
    dataset = opened(folder(tmp_path / "data", cat=10, dog=100))
    assert dataset.notes == ("no early_stop split: it needs 3 images of every class",)
    assert dataset.of("early_stop") == [] and dataset.labels("early_stop").shape == (0,)


def test_files_beside_the_class_folders_are_reported(opened, tmp_path):
    data = folder(tmp_path / "data", cat=30, dog=30)
    (data / "README").write_text("hello")
    assert opened(data).notes == ("files beside the class folders, ignored: 'README'",)


@pytest.mark.parametrize(
    ("classes", "damage", "said"),
    [
        ({"cat": 9, "dog": 9}, "dog", "No image of train in class 'dog'.*'dog/0.png': the file is empty"),
        (
            {"train__cat": 9, "train__dog": 9, "val__cat": 2},
            "val/cat",
            "No image of val in class 'cat'.*'val/cat/0.png': the file is empty",
        ),
    ],
)
def test_a_class_or_split_without_a_readable_image(opened, tmp_path, classes, damage, said):
    data = folder(tmp_path / "data", **classes)
    for file in (data / damage).iterdir():
        file.write_bytes(b"")
    with pytest.raises(DataError, match=said) as caught:
        opened(data)
    assert "\n" not in str(caught.value)


def test_a_class_whose_images_are_all_test_images_too(opened, tmp_path):
    data = folder(tmp_path / "data", train__cat=9, train__dog=2)
    folder(data, start=9, test__dog=2)
    with pytest.raises(DataError, match=r"No image of train in class 'dog'.*is in test as 'test/dog/0.png'"):
        opened(data)


def test_a_class_that_is_too_small(opened, tmp_path):
    with pytest.raises(DataError, match="'dog' is too small to be split: it has 2 of at least 3"):
        opened(folder(tmp_path / "data", cat=9, dog=2))


def test_a_header_with_too_many_pixels_counts_as_damage(opened, tmp_path):
    data = folder(tmp_path / "data", cat=9, dog=9)
    Image.new("RGB", (8, 8)).save(data / "cat/bad.bmp")
    header = bytearray((data / "cat/bad.bmp").read_bytes())
    header[18:26] = struct.pack("<ii", 20_000, 20_000)
    (data / "cat/bad.bmp").write_bytes(header)
    dataset = opened(data)
    assert [problem.path for problem in dataset.problems] == ["cat/bad.bmp"]
    assert "too many to decode safely" in dataset.problems[0].reason
    assert len(dataset.images) == 18


def test_progress(opened, tmp_path):
    reported = []
    opened(folder(tmp_path / "data", cat=5, dog=5), progress=lambda done, total: reported.append((done, total)))
    assert reported == [(n, 10) for n in range(1, 11)]


# The seal


def test_labels_of_test_are_sealed(opened, tmp_path):
    dataset = opened(folder(tmp_path / "data", cat=20, dog=20))
    for asked in (["test"], ["train", "test"]):
        with pytest.raises(SealedTest, match="open_test"):
            dataset.labels(*asked)
    assert len(dataset.shas("test")) == 8
    assert "label" not in {field.name for field in dataclasses.fields(dataset.of("test")[0])}
    assert "_labels=" not in repr(dataset)


def test_opening_the_test_is_recorded_first(opened, tmp_path):
    dataset = opened(folder(tmp_path / "data", cat=20, dog=20))
    log = tmp_path / "study/test_openings.jsonl"
    numbers = dataset.open_test(log, plan="abc", trials=50)
    assert numbers.dtype == np.int64
    assert numbers.tolist() == [image.path.startswith("dog") for image in dataset.of("test")]
    dataset.open_test(log, plan="def", trials=80)
    first, second = map(json.loads, log.read_text().splitlines())
    assert first.pop("time").endswith("+00:00")
    assert first == {"plan": "abc", "trials": 50, "fingerprint": dataset.fingerprint, "images": 8}
    assert (second["plan"], second["trials"]) == ("def", 80)


def test_without_a_record_there_are_no_labels(opened, tmp_path):
    dataset = opened(folder(tmp_path / "data", cat=20, dog=20))
    (tmp_path / "log").mkdir()
    with pytest.raises(IsADirectoryError):
        dataset.open_test(tmp_path / "log", plan="abc", trials=50)


def test_nobody_can_change_the_labels(opened, tmp_path):
    dataset = opened(folder(tmp_path / "data", cat=20, dog=20))
    dataset.labels("train")[:] = 7
    assert set(dataset.labels("train").tolist()) == {0, 1}
    with pytest.raises(dataclasses.FrozenInstanceError):
        dataset.seed = 3


# The tables of a study


def test_the_split_is_written_and_read(opened, tmp_path):
    data = folder(tmp_path / "data", cat=30, dog=30)
    (data / "cat/bad,\n'file\".png").write_bytes(b"")
    odd = ["new\nline.png", "ünï 😀.png", 'a,"b".png', os.fsdecode(b"\xff.png")]
    for number, name in enumerate(odd, 1000):
        picture(data / "dog" / name, number)
    dataset = opened(data)
    dataset.write(tmp_path / "study")
    assert read_split(tmp_path / "study") == {image.sha: image.split for image in dataset.images}
    again = opened(data, seed=5, previous=read_split(tmp_path / "study"))
    assert splits(again) == splits(dataset) and again.fingerprint == dataset.fingerprint
    written = (tmp_path / "study/data/split.csv").read_text(errors="surrogateescape")
    assert written.startswith("path,sha,label,split,group\n") and "ünï 😀.png" in written
    assert "the file is empty" in (tmp_path / "study/data/problems.csv").read_text()
    assert sorted(os.listdir(tmp_path / "study/data")) == ["problems.csv", "split.csv"]


def test_new_images_join_train(opened, tmp_path):
    data = folder(tmp_path / "data", cat=40, dog=40)
    before = opened(data)
    before.write(tmp_path / "study")
    folder(data / "new", start=5000, cat=10)
    os.rename(data / "new/cat", data / "cat/more")
    os.rmdir(data / "new")
    after = opened(data, previous=read_split(tmp_path / "study"))
    assert splits(after).items() >= splits(before).items()
    assert {split for path, split in splits(after).items() if "more" in path} == {"train"}
    assert after.fingerprint != before.fingerprint


def test_images_moved_to_another_split_are_reported(opened, tmp_path):
    data = folder(tmp_path / "data", train__cat=40, train__dog=40, test__cat=5, test__dog=5)
    before = opened(data)
    before.write(tmp_path / "study")
    moved = before.of("train")[0]
    os.rename(data / moved.path, data / "test/cat/moved.png")
    after = opened(data, previous=read_split(tmp_path / "study"))
    assert splits(after)["test/cat/moved.png"] == "train"
    assert after.notes == (
        "1 of 90 files stay in the study's stored split, although they are now in another folder or split",
    )


@pytest.mark.parametrize("text", [None, "path,label\n1,a\n", "path,sha,label,split,group\n1,ab,a,validation,\n"])
def test_a_stored_split_that_cannot_be_read(tmp_path, text):
    if text:
        (tmp_path / "data").mkdir()
        (tmp_path / "data/split.csv").write_text(text)
    with pytest.raises(DataError, match=r"split\.csv' cannot be read.*Start a new study") as caught:
        read_split(tmp_path)
    assert "\n" not in str(caught.value)


def test_further_divisions_are_of_the_same_images_and_keep_the_test_split_sealed(opened, tmp_path):
    dataset = opened(folder(tmp_path / "data", cat=30, dog=30))
    first, second = itertools.islice(dataset.divisions(), 2)
    assert dataset.divisible and first.shas("val") != dataset.shas("val") != second.shas("val")
    for other in (first, second):
        assert other.counts() == dataset.counts() and other.shas("test") == dataset.shas("test")
        assert [image.path for image in other.images] == [image.path for image in dataset.images]
        with pytest.raises(SealedTest):
            other.labels("test")
    again = opened(tmp_path / "data")
    assert [splits(other) for other in itertools.islice(again.divisions(), 2)] == [splits(first), splits(second)]
