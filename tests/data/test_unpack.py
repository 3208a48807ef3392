"""Tiny data sets of other libraries and archives, unpacked to class folders."""

import hashlib
import io
import json
import pickle
import struct
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image

from autotl.cli.main import main
from autotl.data import index
from autotl.data.foreign import archives, unpack, vision
from autotl.data.foreign.recognize import foreign
from autotl.errors import DataError


def encoded(number, kind="jpeg"):
    """A small picture, different for each number, as the bytes of a file."""
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)).save(out, kind)
    return out.getvalue()


JPEGS = [encoded(number) for number in range(6)]
TREE = {f"{label}/{number}.jpg": JPEGS[number] for number, label in enumerate(["cat", "cat", "dog", "dog"])}


def zipped(file, members):
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as out:
        for name, content in members.items():
            out.writestr(name, content)
    return file


def tarred(file, members, mode="w"):
    with tarfile.open(file, mode) as out:
        for name, content in members.items():
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(content)
            out.addfile(info, io.BytesIO(content))
    return file


def written(folder):
    """Every file of a folder with its content."""
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def unpacked(tmp_path):
    """`unpacked(source, …)`: the files that it writes; `unpacked.notes` is what the user reads."""

    def run(*sources, **options):
        folder = tmp_path / "out"
        source = unpack.open_source(list(map(str, sources)), tell=run.notes.append, **options)
        unpack.write(source, folder, lambda done, total: None)
        return written(folder)

    run.notes = []
    return run


@pytest.fixture
def refused(unpacked, tmp_path):
    """Unpacking is a DataError in one line with all of these parts, and leaves no files."""

    def run(*sources, said, **options):
        before = set(tmp_path.iterdir())
        with pytest.raises(DataError) as caught:
            unpacked(*sources, **options)
        for part in said:
            assert part in str(caught.value)
        assert "\n" not in str(caught.value)
        assert set(tmp_path.iterdir()) == before

    return run


# Archives


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.tgz", "a.tar.xz", "a.tar.bz2"])
def test_the_tree_of_an_archive_keeps_its_bytes_without_litter_and_the_top_folder(unpacked, tmp_path, name):
    litter = {"__MACOSX/pets/cat/._0.jpg": b"x", "pets/.DS_Store": b"x", "pets/cat/Thumbs.db": b"x"}
    members = {**litter, **{f"pets/{path}": content for path, content in TREE.items()}}
    mode = {"gz": "w:gz", "tgz": "w:gz", "xz": "w:xz", "bz2": "w:bz2"}.get(name.rpartition(".")[2], "w")
    file = zipped(tmp_path / name, members) if name == "a.zip" else tarred(tmp_path / name, members, mode)
    assert unpacked(file) == TREE


def test_a_top_folder_that_is_the_only_class_stays(unpacked, tmp_path):
    assert list(unpacked(zipped(tmp_path / "a.zip", {"cat/0.jpg": JPEGS[0]}))) == ["cat/0.jpg"]


def test_backslashes_in_a_zip_are_folders(unpacked, tmp_path):
    assert unpacked(zipped(tmp_path / "a.zip", {path.replace("/", "\\"): c for path, c in TREE.items()})) == TREE


@pytest.mark.parametrize("name", ["../x.jpg", "/tmp/x.jpg", "cat/../../x.jpg", "..\\x.jpg"])
def test_a_path_that_leads_out_of_the_folder_is_refused(refused, tmp_path, name):
    refused(zipped(tmp_path / "a.zip", {**TREE, name: JPEGS[0]}), said=["leads out of the folder"])
    if "\\" not in name:
        refused(tarred(tmp_path / "a.tar", {**TREE, name: JPEGS[0]}), said=["leads out of the folder"])


@pytest.mark.parametrize("name", ["cat/0.jpg", "cat", f"cat/{'x' * 300}.jpg"])
def test_a_name_that_no_file_can_have_is_refused(refused, tmp_path, name):
    source = tarred(tmp_path / "a.tar", {**TREE, tarfile.TarInfo(name): b"x"})
    refused(source, said=[f"a.tar has '{name[:20]}", "cannot be written", "without that file"])


def test_links_and_devices_are_skipped(unpacked, tmp_path):
    others = {}
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
        info = tarfile.TarInfo(f"cat/special{kind.decode()}.jpg")
        info.type, info.linkname = kind, "/etc/passwd"
        others[info] = b""
    assert unpacked(tarred(tmp_path / "a.tar", {**others, **TREE})) == TREE
    assert unpacked.notes == ["skipped: 4 links or devices"]


def test_a_link_in_a_zip_is_skipped(unpacked, tmp_path):
    file = zipped(tmp_path / "a.zip", TREE)
    link = zipfile.ZipInfo("cat/link.jpg")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(file, "a") as out:
        out.writestr(link, "/etc/passwd")
    assert unpacked(file) == TREE


@pytest.mark.parametrize("made", [zipped, lambda file, members: tarred(file.with_suffix(".tgz"), members, "w:gz")])
def test_an_archive_that_grows_too_large_is_refused(refused, tmp_path, monkeypatch, made):
    monkeypatch.setattr(archives, "FREE", 1000)
    refused(made(tmp_path / "a.zip", {**TREE, "cat/bomb.jpg": bytes(2_000_000)}), said=["more than 200 times"])


def test_a_damaged_archive_leaves_nothing(refused, tmp_path):
    whole = tarred(tmp_path / "a.tar", TREE).read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[:1500])
    refused(tmp_path / "a.tar", said=["cannot be read"])
    content = bytearray(zipped(tmp_path / "a.zip", TREE).read_bytes())
    content[200] ^= 255  # within the first image
    (tmp_path / "a.zip").write_bytes(content)
    refused(tmp_path / "a.zip", said=["cannot be read"])
    (tmp_path / "a.zip").write_bytes(b"no archive")
    refused(tmp_path / "a.zip", said=["cannot be read"])


def test_an_archive_with_a_password_is_refused(refused, tmp_path):
    content = bytearray(zipped(tmp_path / "a.zip", TREE).read_bytes())
    content[6] |= 1  # the flag for it, in the header of the first member and in the directory
    content[content.index(b"PK\1\2") + 8] |= 1
    (tmp_path / "a.zip").write_bytes(content)
    refused(tmp_path / "a.zip", said=["encrypted"])


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="this Python reads zstd")
def test_an_archive_by_zstd_says_what_to_do(refused, tmp_path):
    (tmp_path / "a.tar.zst").write_bytes(b"\x28\xb5\x2f\xfd" + bytes(600))
    refused(tmp_path / "a.tar.zst", said=["Decompress it first: unzstd"])


def test_an_archive_without_images_is_refused(refused, tmp_path):
    refused(zipped(tmp_path / "a.zip", {"code/a.py": b"1", "b.py": b""}), said=["no image files", "2 of '.py'"])
    refused(zipped(tmp_path / "b.zip", {"train.zip": b"1"}), said=["It has 'train.zip': extract that"])


# WebDataset


def shard(file, first, labels, *, suffix="cls", mode="w"):
    """Samples with consecutive numbers and these labels."""
    members = {}
    for number, label in enumerate(labels, first):
        members[f"{number:04}.jpg"] = JPEGS[number]
        members[f"{number:04}.{suffix}"] = label if isinstance(label, bytes) else label.encode()
    return tarred(file, members, mode)


def test_one_shard_is_read_by_its_labels(unpacked, tmp_path):
    assert unpacked(shard(tmp_path / "a.tar.gz", 0, ["3", "5\n", "3"], mode="w:gz")) == {
        "3/0000000.jpg": JPEGS[0],
        "5/0000001.jpg": JPEGS[1],
        "3/0000002.jpg": JPEGS[2],
    }


def test_shards_are_split_by_their_names(unpacked, tmp_path):
    folder = tmp_path / "shards"
    (folder / "val").mkdir(parents=True)
    shard(folder / "pets-train-0000.tar", 0, ["cat", "dog"])
    shard(folder / "pets-train-0001.tar", 2, ["cat"])
    shard(folder / "val" / "0.tar", 3, ["dog"])
    expected = {
        "train/cat/0000000.jpg": JPEGS[0],
        "train/dog/0000001.jpg": JPEGS[1],
        "train/cat/0000002.jpg": JPEGS[2],
        "val/dog/0000003.jpg": JPEGS[3],
    }
    assert unpacked(folder) == expected


def test_several_shards_may_be_named(unpacked, tmp_path):
    files = [shard(tmp_path / f"{number}.tar", number, ["cat"]) for number in range(2)]
    assert list(unpacked(*files)) == ["cat/0000000.jpg", "cat/0000001.jpg"]


def test_json_labels_are_found_or_named(unpacked, tmp_path):
    file = shard(tmp_path / "a.tar", 0, [json.dumps({"label": "cat", "breed": 7}).encode()] * 2, suffix="json")
    assert list(unpacked(file)) == ["cat/0000000.jpg", "cat/0000001.jpg"]
    (tmp_path / "out").rename(tmp_path / "first")
    assert list(unpacked(file, label_column="breed")) == ["7/0000000.jpg", "7/0000001.jpg"]


def test_samples_without_image_or_label_are_counted(unpacked, tmp_path):
    members = {"0.jpg": JPEGS[0], "0.cls": b"cat", "1.jpg": JPEGS[1], "2.cls": b"cat"}
    assert list(unpacked(tarred(tmp_path / "a.tar", members))) == ["cat/0000000.jpg"]
    assert unpacked.notes == ["skipped: 1 without a label", "skipped: 1 without an image"]


def test_an_annotation_beside_each_image_makes_no_shard(unpacked, tmp_path):
    tree = {**TREE, "cat/0.json": b'{"shapes": []}', "dog/2.json": b"{}"}
    assert unpacked(tarred(tmp_path / "a.tar", tree)) == tree


def test_shards_of_which_some_name_no_split_are_refused(refused, tmp_path):
    files = [shard(tmp_path / name, 0, ["cat"]) for name in ("train-0.tar", "test-0.tar", "more-0.tar")]
    refused(*files, said=["2 of 3 files name their split", "more-0.tar"])


# Hugging Face


@pytest.fixture(scope="module")
def datasets():
    return pytest.importorskip("datasets")


def rows(datasets, labels, names=("cat", "dog"), first=0, **more):
    """A data set with an image for each label."""
    table = {"image": [{"bytes": JPEGS[first + n], "path": None} for n in range(len(labels))], "label": labels, **more}
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names))}
    features |= {name: datasets.Value("string") for name in more}
    return datasets.Dataset.from_dict(table, features=datasets.Features(features))


def test_a_saved_data_set_becomes_folders_of_its_class_names(datasets, unpacked, tmp_path):
    rows(datasets, [1, 0, 1]).save_to_disk(tmp_path / "saved")
    assert unpacked(tmp_path / "saved") == {
        "dog/0000000.jpeg": JPEGS[0],
        "cat/0000001.jpeg": JPEGS[1],
        "dog/0000002.jpeg": JPEGS[2],
    }


def test_the_splits_of_a_saved_data_set_are_kept(datasets, unpacked, tmp_path):
    splits = {
        "train": rows(datasets, [0, 1]),
        "validation": rows(datasets, [1], first=2),
        "test": rows(datasets, [0, -1], first=3),
        "unsupervised": rows(datasets, [-1], first=5),
    }
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "saved")
    assert sorted(unpacked(tmp_path / "saved")) == [
        "test/cat/0000003.jpeg",
        "train/cat/0000000.jpeg",
        "train/dog/0000001.jpeg",
        "val/dog/0000002.jpeg",
    ]
    assert any("'unsupervised'" in note for note in unpacked.notes)
    assert "skipped: 1 without a label" in unpacked.notes


def test_parquet_files_are_read_as_the_hub_stores_them(datasets, unpacked, tmp_path):
    data = tmp_path / "beans" / "data"
    data.mkdir(parents=True)
    rows(datasets, [0, 1]).to_parquet(data / "train-00000-of-00001.parquet")
    rows(datasets, [1], first=2).to_parquet(data / "test-00000-of-00001.parquet")
    out = unpacked(tmp_path / "beans")
    assert out["train/cat/0000001.jpeg"] in JPEGS
    assert sorted(Path(name).parent.as_posix() for name in out) == ["test/dog", "train/cat", "train/dog"]


def test_arrow_files_of_a_cache_are_read(datasets, unpacked, tmp_path):
    rows(datasets, [0, 1]).save_to_disk(tmp_path / "saved")
    (tmp_path / "saved" / "state.json").unlink()
    assert len(unpacked(tmp_path / "saved")) == 2


def test_the_label_column_has_to_be_named_if_several_are_possible(datasets, unpacked, refused, tmp_path):
    rows(datasets, [0, 1], kind=["x", "y"]).rename_column("label", "species").to_parquet(tmp_path / "a.parquet")
    assert "cat/0000000.jpeg" in unpacked(tmp_path / "a.parquet")
    (tmp_path / "out").rename(tmp_path / "first")
    assert "y/0000001.jpeg" in unpacked(tmp_path / "a.parquet", label_column="kind")
    (tmp_path / "out").rename(tmp_path / "second")
    rows(datasets, [0, 1], kind=["x", "y"]).rename_columns({"label": "species", "kind": "labels"}).to_parquet(
        tmp_path / "b.parquet"
    )
    refused(tmp_path / "b.parquet", said=["Which column", "'species', 'labels'", "--label-column"])
    refused(tmp_path / "b.parquet", label_column="breed", said=["There is no column 'breed'"])


def test_a_table_of_plain_bytes_is_read_without_the_features_of_a_hub(datasets, unpacked, tmp_path):
    pq.write_table(pa.table({"image": JPEGS[:2], "label": ["cat", "dog"]}), tmp_path / "a.parquet")
    assert unpacked(tmp_path / "a.parquet") == {"cat/0000000.jpeg": JPEGS[0], "dog/0000001.jpeg": JPEGS[1]}


def test_a_table_can_name_images_of_this_machine_and_no_other_files(datasets, unpacked, tmp_path):
    (tmp_path / "photo.jpg").write_bytes(JPEGS[0])
    (tmp_path / "key.jpg").write_bytes(b"-----BEGIN PRIVATE KEY-----")
    paths = [str(tmp_path / "photo.jpg"), str(tmp_path / "key.jpg"), "https://example.org/a.jpg"]
    cells = [{"bytes": None, "path": path} for path in paths]
    pq.write_table(pa.table({"image": cells, "label": ["cat"] * 3}), tmp_path / "a.parquet")
    assert unpacked(tmp_path / "a.parquet") == {"cat/0000000.jpg": JPEGS[0]}
    assert unpacked.notes == ["skipped: 2 without an image"]


def test_without_the_library_the_message_says_how_to_get_it(refused, tmp_path, monkeypatch):
    pq.write_table(pa.table({"image": JPEGS[:1], "label": ["cat"]}), tmp_path / "a.parquet")
    monkeypatch.setitem(sys.modules, "datasets", None)
    refused(tmp_path / "a.parquet", said=["pip install datasets"])


# Class names


def labelled(tmp_path, *labels):
    return shard(tmp_path / "a.tar", 0, labels)


def test_characters_that_no_folder_name_can_have_become_underscores(unpacked, tmp_path):
    out = unpacked(labelled(tmp_path, "T-shirt/top", ".net", "a\0b", "..", "  ", "lost+found"))
    assert [name.rpartition("/")[0] for name in sorted(out, key=lambda name: name[-8:])] == [
        "T-shirt_top",
        "_net",
        "a_b",
        "_.",
        "_lost+found",
    ]
    assert "The folder of class 'T-shirt/top' is 'T-shirt_top'." in unpacked.notes


def test_two_classes_never_share_a_folder(refused, tmp_path):
    refused(labelled(tmp_path, "a/b", "a_b"), said=["'a/b'", "'a_b'", "would share the folder"])


def test_long_texts_are_no_classes(refused, tmp_path):
    refused(labelled(tmp_path, "a photo of a cat " * 20), said=["too long", "--label-column"])


# torchvision


@pytest.fixture(scope="module")
def torchvision():
    import torchvision

    return torchvision


def idx(array):
    """An array in the format of MNIST's files."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def test_arrays_become_png_with_the_names_that_torchvision_has(torchvision, unpacked, tmp_path):
    raw = tmp_path / "root" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 28, 28), np.uint8)
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx(pixels))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(np.array([0, 9, 0], np.uint8)))
    out = unpacked("torchvision:FashionMNIST", root=tmp_path / "root")
    assert len(out) == 6
    kept = np.asarray(Image.open(io.BytesIO(out["train/Ankle boot/0000001.png"])))
    assert np.array_equal(kept, pixels[1])
    assert "test/T-shirt_top/0000003.png" in out


def test_files_of_torchvision_keep_their_bytes(torchvision, unpacked, tmp_path):
    dtd = tmp_path / "dtd" / "dtd"
    for number, (split, label) in enumerate(
        [("train", "dotted"), ("train", "woven"), ("val", "woven"), ("test", "dotted")]
    ):
        (dtd / "images" / label).mkdir(parents=True, exist_ok=True)
        (dtd / "labels").mkdir(exist_ok=True)
        (dtd / "images" / label / f"{number}.jpg").write_bytes(JPEGS[number])
        with open(dtd / "labels" / f"{split}1.txt", "a") as out:
            out.write(f"{label}/{number}.jpg\n")
    assert sorted(unpacked("torchvision:DTD", root=tmp_path).values()) == sorted(JPEGS[:4])


def test_files_that_torchvision_decodes_itself_keep_their_bytes(torchvision, unpacked, tmp_path):
    folder = tmp_path / "oxford-iiit-pet"
    for name in ("images", "annotations"):
        (folder / name).mkdir(parents=True)
    for part, number in (("trainval", 0), ("test", 1)):
        (folder / "annotations" / f"{part}.txt").write_text(f"pug_{number} 1 2 1\n")
        (folder / "images" / f"pug_{number}.jpg").write_bytes(JPEGS[number])
    out = unpacked("torchvision:OxfordIIITPet", root=tmp_path)
    assert out == {"train/Pug/0000000.jpg": JPEGS[0], "test/Pug/0000001.jpg": JPEGS[1]}


@pytest.mark.parametrize("known", vision.KNOWN, ids=lambda known: known.mark)
def test_torchvision_has_each_data_set_and_its_splits(torchvision, tmp_path, known):
    for arguments in known.splits.values():
        with pytest.raises((RuntimeError, OSError)):  # the data set is missing; a wrong split would be a ValueError
            vision._open(known, tmp_path, arguments)


class Evil:
    def __reduce__(self):
        return exec, ("raise SystemExit('a pickle was read')",)


def test_a_pickle_is_read_only_with_its_checksum(torchvision, unpacked, refused, tmp_path, monkeypatch):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()

    def save(name, value):
        (folder / name).write_bytes(pickle.dumps(value))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    made = torchvision.datasets.CIFAR10
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3072), np.uint8)
    for part in ("train", "test"):
        monkeypatch.setattr(made, f"{part}_list", [save(part, {"data": pixels, "labels": [1, 0]})])
    meta = save("meta", {"label_names": ["airplane", "bird"]})
    monkeypatch.setattr(made, "meta", {"filename": "meta", "key": "label_names", "md5": meta[1]})
    out = unpacked("torchvision:CIFAR10", root=tmp_path)
    assert np.array_equal(
        np.asarray(Image.open(io.BytesIO(out["train/bird/0000000.png"]))),
        pixels[0].reshape(3, 32, 32).transpose(1, 2, 0),
    )
    assert len(out) == 4
    (tmp_path / "out").rename(tmp_path / "first")
    save("train", Evil())
    refused("torchvision:CIFAR10", root=tmp_path, said=["torchvision cannot read CIFAR10", "corrupted"])


def test_missing_files_of_torchvision_are_named(refused, tmp_path):
    refused("torchvision:CIFAR10", root=tmp_path, said=["There is no 'cifar-10-batches-py'"])
    refused("torchvision:CIFAR11", root=tmp_path, said=["Did you mean 'CIFAR10'?"])
    refused("torchvision:LSUN", root=tmp_path, said=["Unknown torchvision data set 'LSUN'"])
    refused("torchvision:CIFAR10", said=["needs --root"])


# The folder


def test_an_existing_folder_is_not_changed(unpacked, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="is not new"):
        unpacked(zipped(tmp_path / "a.zip", TREE))
    assert written(tmp_path / "out") == {"mine.txt": b"mine"}


def test_an_interrupted_conversion_leaves_nothing(tmp_path):
    source = unpack.open_source([str(zipped(tmp_path / "a.zip", TREE))], tell=print)

    def interrupt(done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unpack.write(source, tmp_path / "out", interrupt)
    assert [file.name for file in tmp_path.iterdir()] == ["a.zip"]


# The command, and a search of such a source


def test_the_command_counts_and_says_what_to_do_next(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    zipped(tmp_path / "a.zip", {f"train/{path}": content for path, content in TREE.items()})
    done = CliRunner().invoke(main, ["unpack", "a.zip", "my pets"])
    assert done.exit_code == 0, done.output
    assert "unpacking a.zip: 4 in " in done.output
    assert done.output.endswith("train: 4 images in 2 classes: cat 2, dog 2\nNext: autotl search 'my pets'\n")


def test_of_many_classes_the_smallest_and_the_largest_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    zipped(tmp_path / "a.zip", {f"{n:02}/{m}.jpg": b"x" for n in range(40) for m in range(2 + (n == 7) - (n == 9))})
    done = CliRunner().invoke(main, ["unpack", "a.zip", "many"])
    assert "train: 80 images in 40 classes: from 1 (09) to 3 (07) each\n" in done.output


def test_a_stopped_conversion_reports_that_nothing_is_written(tmp_path, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(unpack, "write", stopped)
    done = CliRunner().invoke(main, ["unpack", str(zipped(tmp_path / "a.zip", TREE)), str(tmp_path / "out")])
    assert done.exit_code == 130
    assert "Stopped: nothing was written." in done.output


def test_errors_about_sources_that_a_search_cannot_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    zipped(tmp_path / "a.zip", {"0.jpg": JPEGS[0], "labels.csv": b"path,label\n0.jpg,cat\n"})
    done = CliRunner().invoke(main, ["unpack", "a.zip", "pets"])
    assert done.exit_code == 0, done.output
    assert "Written: pets. A search cannot read it as it is: " in done.output


def test_the_error_of_a_search_says_what_a_source_is_and_how_to_convert_it(datasets, tmp_path):
    zipped(tmp_path / "pets.zip", TREE)
    tarred(tmp_path / "pets.tar.gz", TREE, "w:gz")
    rows(datasets, [0, 1]).to_parquet(tmp_path / "a.parquet")
    datasets.DatasetDict({"train": rows(datasets, [0]), "test": rows(datasets, [1])}).save_to_disk(tmp_path / "saved")
    (tmp_path / "hub" / "data").mkdir(parents=True)
    rows(datasets, [0, 1]).to_parquet(tmp_path / "hub" / "data" / "train-00000.parquet")
    for name in ("shards", "shards/train"):
        (tmp_path / name).mkdir()
    shard(tmp_path / "shards" / "train" / "0.tar", 0, ["cat"])
    (tmp_path / "root" / "cifar-10-batches-py").mkdir(parents=True)
    (tmp_path / "root" / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"")

    def says(name, what, source=None):
        path = tmp_path / name
        with pytest.raises(DataError) as caught:
            index.find(path)
        assert f"{str(path)!r} is {what}; " in str(caught.value)
        assert f": autotl unpack {source or path} " in str(caught.value)

    says("pets.zip", "a zip archive")
    says("pets.tar.gz", "a tar archive")
    says("a.parquet", "a Hugging Face data set in Parquet files")
    says("saved", "a Hugging Face data set")
    says("hub", "a Hugging Face data set in Parquet files")
    says("shards", "a folder of tar archives")
    says("root", "torchvision's CIFAR10", "torchvision:CIFAR10")
    says("root/cifar-10-batches-py", "torchvision's CIFAR10", "torchvision:CIFAR10")


def test_a_folder_or_manifest_with_an_error_keeps_its_own_message(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "0.jpg").write_bytes(JPEGS[0])
    pq.write_table(pa.table({"file": ["0.jpg"], "kind": ["cat"]}), tmp_path / "manifest.parquet")
    tarred(tmp_path / "cat" / "backup.tar", TREE)
    assert foreign(tmp_path / "cat") is None
    assert foreign(tmp_path / "manifest.parquet") is None
