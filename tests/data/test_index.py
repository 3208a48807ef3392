"""Folders and manifests that a user may name, and the one-line errors for bad ones."""

import os
import unicodedata
from pathlib import Path

import pandas as pd
import pyarrow.parquet
import pytest

from autotl.data.index import find
from autotl.data.listing import BY_NAME, Columns, Found
from autotl.errors import DataError


def tree(root, *paths):
    """Empty files: their contents do not matter here."""
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")
    return root


def refused(path, *said, columns=BY_NAME):
    """Opening this folder is a DataError in one line with all of these parts."""
    with pytest.raises(DataError) as caught:
        find(path, columns)
    message = str(caught.value)
    assert "\n" not in message
    for part in said:
        assert part in message
    return message


# Folders


def test_a_folder_for_each_class(tmp_path):
    tree(tmp_path, "dog/1.jpg", "cat/deep/er/2.PNG", "cat/no suffix")
    listing = find(tmp_path)
    assert listing.files == (
        Found("cat/deep/er/2.PNG", "cat"),
        Found("cat/no suffix", "cat"),
        Found("dog/1.jpg", "dog"),
    )
    assert listing.root == tmp_path and listing.notes == ()


def test_class_names_are_plain_text(tmp_path):
    tree(tmp_path, "10/a", "9/a", "NaN/a", "ä ö/a", "1e3/a")
    assert [file.label for file in find(tmp_path).files] == ["10", "1e3", "9", "NaN", "ä ö"]


def test_splits_of_class_folders(tmp_path):
    tree(tmp_path, "train/a/1", "train/b/x/2", "val/a/3", "test/b/4")
    assert [(f.path, f.label, f.split) for f in find(tmp_path).files] == [
        ("test/b/4", "b", "test"),
        ("train/a/1", "a", "train"),
        ("train/b/x/2", "b", "train"),
        ("val/a/3", "a", "val"),
    ]


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("train", "Val", "TEST"),
        ("Training", "valid", "Testing"),
        ("train_set", "validation-set", "test set"),
        ("seg_train/seg_train", "dev", "seg_test/seg_test"),
        ("train/Train", "VALIDATION", "test_images"),
    ],
)
def test_folders_of_splits_by_their_usual_names(tmp_path, train, val, test):
    tree(tmp_path, f"{train}/a/1", f"{train}/b/2", f"{val}/a/3", f"{test}/b/4")
    listing = find(tmp_path)
    assert {(file.path, file.label, file.split) for file in listing.files} == {
        (f"{train}/a/1", "a", "train"),
        (f"{train}/b/2", "b", "train"),
        (f"{val}/a/3", "a", "val"),
        (f"{test}/b/4", "b", "test"),
    }
    assert listing.layout == "split folders"
    assert dict(listing.read_as) == {train: "train", val: "val", test: "test"} and listing.notes == ()


@pytest.mark.parametrize(
    ("folders", "advice"),
    [
        (("fold_0", "fold_1"), "Folds are not splits: put one into test/"),
        (("images", "masks"), "search only one of them"),
        (("eval", "first half"), "rename the folders to train, val and test"),
        (("amazon/images", "dslr/images"), "rename the folders to train, val and test"),
        (("8863", "8864"), "groups such as patients"),
    ],
)
def test_folders_that_share_sub_folders_may_be_splits_or_classes(tmp_path, folders, advice):
    one, other = folders
    tree(tmp_path, f"{one}/a/1", f"{one}/b/2", f"{one}/c/3", f"{other}/A/4", f"{other}/b/5", f"{other}/notes.txt")
    one, other = one.split("/")[0], other.split("/")[0]
    refused(tmp_path, "ambiguous", f"{one!r}, {other!r} have no images of their own", "'a', 'b'", advice, "in a CSV")


def test_folders_within_a_split_may_be_ambiguous_too(tmp_path):
    tree(tmp_path, *(f"{split}/{kind}/{name}/1" for split in ("train", "test") for kind in "ix" for name in "ab"))
    refused(tmp_path, f"{str(tmp_path / 'test')!r} is ambiguous: 'i', 'x'", "'a', 'b'")


def test_splits_below_the_classes_are_not_merged(tmp_path):
    tree(tmp_path, "a/train/1", "a/test/2", "b/train/3", "b/test/4")
    refused(tmp_path, "ambiguous", "'test', 'train'", "move them to the top, as train/CLASS")


@pytest.mark.parametrize(
    "paths",
    [
        ("animal/cat/1", "animal/dog/2", "vehicle/car/3", "vehicle/bus/4"),  # nothing is shared
        ("animal/cat/1", "animal/dog/2", "animal/misc/3", "vehicle/car/4", "vehicle/bus/5", "vehicle/misc/6"),
        ("animal/images/1", "vehicle/images/2"),  # by the sub-folders there would be one class
        ("animal/1.jpg", "animal/old/2", "animal/new/3", "vehicle/4.jpg", "vehicle/old/5", "vehicle/new/6"),
        ("animal/old/1", "animal/new/2", "vehicle/old/3", "vehicle/new/4", "a/5", "b/6", "c/7"),
    ],
)
def test_classes_may_have_sub_folders(tmp_path, paths):
    listing = find(tree(tmp_path, *paths))
    assert [file.path for file in listing.files] == sorted(paths) and listing.layout == "class folders"
    assert all(file.label == file.path.split("/")[0] for file in listing.files)


def test_train_alone(tmp_path):
    tree(tmp_path, "train/a/1", "train/b/2")
    assert [(file.label, file.split) for file in find(tmp_path).files] == [("a", "train"), ("b", "train")]


def test_split_names_may_be_classes_beside_others(tmp_path):
    tree(tmp_path, "train/1", "train/2", "bus/3")
    assert [(file.label, file.split) for file in find(tmp_path).files] == [
        ("bus", "train"),
        ("train", "train"),
        ("train", "train"),
    ]


@pytest.mark.parametrize("name", ["test", "Test1", "Training", "val2017"])
def test_a_split_without_class_folders_is_no_class_beside_others(tmp_path, name):
    tree(tmp_path, "cat/1", "dog/2", f"{name}/3")
    refused(tmp_path, "ambiguous", f"names of splits ({name!r})", "other names ('cat', 'dog')")


def test_folders_named_by_data_set_and_split_are_no_classes(tmp_path):
    tree(tmp_path, "asl_train/asl_train/a/1", "asl_train/asl_train/b/2", "asl_test/asl_test/3")
    refused(tmp_path, "ambiguous", "'asl_test', 'asl_train' look like splits", "rename them to train, val and test")


def test_sub_folders_of_classes_are_reported(tmp_path):
    tree(tmp_path, "cub/images/gull/1.jpg", "cub/images/wren/2.jpg", "masks/3.png", "cub/parts/parts.txt", "cub/README")
    (note,) = find(tmp_path).notes
    assert "'cub' have images in sub-folders such as 'gull', which count neither as classes nor as groups" in note


def test_hidden_files_and_litter_are_ignored(tmp_path):
    litter = ("a/.DS_Store", ".git/x", "a/.thumbs/3", ".hidden", "a/Thumbs.db", "b/Desktop.ini", "b/deep/._2.jpg")
    tree(tmp_path, "a/1", "b/2", *litter, "__MACOSX/a/._1", "b/__pycache__/x.pyc", "a/1.jpg:Zone.Identifier")
    listing = find(tmp_path)
    assert [file.path for file in listing.files] == ["a/1", "b/2"] and listing.notes == ()
    assert listing.litter == tuple(
        sorted(
            {path.replace("/x", "").replace("/3", "") for path in litter}
            | {"__MACOSX", "b/__pycache__", "a/1.jpg:Zone.Identifier"}
        )
    )


def test_class_folders_without_images_are_named(tmp_path):
    tree(tmp_path, "train/a/1", "train/b/2", "train/c/Thumbs.db", "val/a/3")
    (tmp_path / "val/d").mkdir()
    (tmp_path / "test").mkdir()
    listing = find(tmp_path)
    assert {file.label for file in listing.files} == {"a", "b"} and listing.empty == ("test", "train/c", "val/d")
    assert listing.notes == ("folders without images, ignored: 'test', 'train/c', 'val/d'",)


def test_the_error_about_one_class_names_empty_class_folders(tmp_path):
    tree(tmp_path, "a/1", "b/Thumbs.db", "c/__pycache__/x")
    refused(tmp_path, "only one class, 'a'", "No images are in 'b', 'c'.")


def test_the_error_about_missing_images_names_an_empty_train_folder(tmp_path):
    tree(tmp_path, "train/a/Thumbs.db", "test/a/1")
    refused(tmp_path, "has 'test' but no train folder with images")


def test_labels_of_one_name_in_two_unicode_forms_are_one(tmp_path):
    one, two = unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é")
    tree(tmp_path, f"train/{two}/1", "train/b/2", f"val/{one}/3")
    listing = find(tmp_path)
    assert [(file.label, file.split) for file in listing.files if file.label != "b"] == [
        (one, "train"),
        (one, "val"),
    ]
    assert all((tmp_path / file.path).is_file() for file in listing.files)


@pytest.mark.parametrize("other", ["dog ", " dog", "dog\u00a0"])
def test_labels_that_differ_in_spaces_are_one_line(tmp_path, other):
    tree(tmp_path, "cat/1", "dog/2", f"{other}/3")
    refused(tmp_path, repr(other), "'dog'", "differ only in spaces", "Give them one name")


def test_a_label_with_a_space_in_one_split_alone_is_one_line(tmp_path):
    tree(tmp_path, "train/cat/1", "train/dog /2", "val/dog/3")
    refused(tmp_path, "'dog' and 'dog '", "differ only in spaces")


def test_labels_that_differ_in_case_are_mentioned(tmp_path):
    tree(tmp_path, "Dog/1", "cat/2", "dog/3")
    assert find(tmp_path).notes == ("classes whose names differ only in upper and lower case: 'Dog', 'dog'",)


def test_files_beside_the_class_folders_are_mentioned(tmp_path):
    tree(tmp_path, "train/a/1", "train/b/2", "README.md", "train/stray.jpg")
    listing = find(tmp_path)
    assert [file.path for file in listing.files] == ["train/a/1", "train/b/2"]
    assert listing.notes == ("files beside the class folders, ignored: 'README.md', 'train/stray.jpg'",)


def test_odd_names(tmp_path):
    names = [
        "with space.jpg",
        "new\nline.jpg",
        "ünï😀.jpg",
        "semi;comma,\"quote'.jpg",
        os.fsdecode(b"\xff.jpg"),
    ]
    tree(tmp_path, *(f"a/{name}" for name in names), "b/1")
    assert {file.path for file in find(tmp_path).files if file.label == "a"} == {f"a/{name}" for name in names}


def test_links_are_followed_but_not_in_circles(tmp_path):
    tree(tmp_path, "data/a/1", "data/b/2", "elsewhere/3", "mutual/4")
    root = tmp_path / "data"
    (root / "a/all").symlink_to(root)
    (root / "a/self").symlink_to("self")
    (root / "a/above").symlink_to(tmp_path)
    (root / "b/more").symlink_to(tmp_path / "elsewhere")
    (root / "b/mutual").symlink_to(tmp_path / "mutual")
    (tmp_path / "mutual/back").symlink_to(root / "b")
    (root / "b/broken").symlink_to(tmp_path / "nothing")
    paths = {file.path for file in find(root).files}
    assert {"a/1", "b/2", "b/more/3", "b/mutual/4", "b/broken", "a/self"} <= paths
    assert not any(path.startswith("a/all/") for path in paths)
    assert not any("back/" in path for path in paths)


def test_folders_that_link_to_one_another_are_listed_once_in_each_class(tmp_path):
    tree(tmp_path, *(f"a/f{n}/{n}.png" for n in range(9)), "b/1")
    for one in range(9):
        for other in range(9):
            (tmp_path / f"a/f{one}/l{other}").symlink_to(f"../f{other}")
    (tmp_path / "b/twice").symlink_to(tmp_path / "a/f3")
    found = [file.path for file in find(tmp_path).files]
    assert [path for path in found if path.startswith("a/")] == [f"a/f{n}/{n}.png" for n in range(9)]
    assert len([path for path in found if path.startswith("b/")]) == 1 + 9


def test_links_within_splits(tmp_path):
    tree(tmp_path, "train/a/1", "train/b/2", "test/a/3", "test/b/4", ".more/5")
    (tmp_path / "train/a/all").symlink_to(tmp_path / "train")
    (tmp_path / "val").symlink_to(tmp_path)
    for folder in ("train/a", "train/b", "test/a"):
        (tmp_path / folder / "more").symlink_to(tmp_path / ".more")
    assert [file.path for file in find(tmp_path).files] == [
        "test/a/3", "test/a/more/5", "test/b/4", "train/a/1", "train/a/more/5", "train/b/2", "train/b/more/5",
    ]  # fmt: skip


@pytest.fixture
def nest(monkeypatch):
    """`nest(folder, name, depth)` makes folders in folders, with a file in the last; pytest could not remove them."""
    made = []

    def nest(folder, name, depth):
        monkeypatch.chdir(folder)
        for _ in range(depth):
            os.mkdir(name)
            os.chdir(name)
            made.append(name)
        Path("file").touch()

    yield nest
    Path("file").unlink()
    for name in made:
        os.chdir("..")
        os.rmdir(name)


def test_folders_may_be_nested_deeper_than_calls(tmp_path, nest):
    tree(tmp_path, "a/1", "b/2")
    nest(tmp_path / "b", "d", 1200)
    assert [file.path for file in find(tmp_path).files] == ["a/1", "b/2", f"b/{'d/' * 1200}file"]


def test_folders_nested_deeper_than_a_path_are_an_error_in_one_line(tmp_path, nest):
    tree(tmp_path, "a/1", "b/2")
    nest(tmp_path / "b", "d" * 250, 20)
    assert len(refused(tmp_path, "cannot be listed: File name too long")) < 400


def test_the_root_may_be_a_link(tmp_path):
    tree(tmp_path / "data", "a/1", "b/2")
    (tmp_path / "link").symlink_to(tmp_path / "data")
    assert find(tmp_path / "link") == find(tmp_path / "data")


def test_no_such_folder(tmp_path):
    refused(tmp_path / "nowhere", "does not exist", str(tmp_path / "nowhere"), "manifest")


def test_no_images(tmp_path):
    (tmp_path / "a").mkdir()
    refused(tmp_path, "has no images", "a sub-folder for each class")


def test_a_flat_folder(tmp_path):
    refused(tree(tmp_path, "1.jpg", "2.jpg"), "has 2 files but no class folders")


def test_only_one_class(tmp_path):
    refused(
        tree(tmp_path, "data/a/1", "data/b/2"),
        "only one class, 'data'",
        "two or more",
        f"If the classes are in it, use {str(tmp_path / 'data')!r}",
    )


def test_splits_without_train(tmp_path):
    refused(tree(tmp_path, "val/a/1", "test/b/2"), "has 'test', 'val' but no train folder", "Add train/")


def test_a_class_without_train_images(tmp_path):
    tree(tmp_path, "train/a/1", "train/b/2", "test/c/3")
    refused(tmp_path, "Class 'c' has no image in train", "'test/c/3'", "Add images")


def test_splits_beside_classes(tmp_path):
    tree(tmp_path, "train/a/1", "train/b/2", "cat/3", "dog/4")
    refused(tmp_path, "ambiguous", "names of splits ('train')", "other names ('cat', 'dog')", "rename")


def test_two_folders_for_one_split(tmp_path):
    tree(tmp_path, "train/a/1", "train/b/2", "val/a/3", "valid/b/4")
    refused(tmp_path, "are the same split", "'val', 'valid'", "Merge")


@pytest.mark.parametrize("folder", ["train", "test"])
def test_a_split_without_class_folders(tmp_path, folder):
    tree(tmp_path, "train/a/1", "train/b/2", "test/a/3")
    for file in list((tmp_path / folder).rglob("*/*")):
        file.unlink()
    tree(tmp_path, f"{folder}/5.jpg")
    refused(tmp_path, f"{str(tmp_path / folder)!r} has files but no class folders", "labels are unknown")


def test_a_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    tree(tmp_path, "a/1", "b/2")
    scandir = os.scandir

    def denied(path):
        if str(path).endswith("b"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    refused(tmp_path, str(tmp_path / "b"), "cannot be listed: Permission denied")


# Manifests


def manifest(root, text, name="m.csv"):
    path = root / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_csv_manifest(tmp_path):
    tree(tmp_path, "in/1.jpg", "in/2.jpg", "3.jpg", "4")
    path = manifest(
        tmp_path,
        f"path,label,split,group,more\nin/1.jpg,cat,train,p1,x\n./in/2.jpg,dog,Valid,,x\n"
        f"{tmp_path}/3.jpg,cat,test,p2,x\n4,dog,,p2,x\n",
    )
    listing = find(path)
    assert listing.root == tmp_path
    assert listing.files == (
        Found("3.jpg", "cat", "test", "p2"),
        Found("4", "dog", "train", "p2"),
        Found("in/1.jpg", "cat", "train", "p1"),
        Found("in/2.jpg", "dog", "val", None),
    )


def test_a_manifest_beside_its_images(tmp_path):
    tree(tmp_path, "images/1", "images/2", "lists/x")
    path = manifest(tmp_path / "lists", "path,label\n../images/1,a\n../images/2,b\n")
    listing = find(path)
    assert [(listing.root / file.path).resolve() for file in listing.files] == [
        tmp_path / "images/1",
        tmp_path / "images/2",
    ]


@pytest.mark.parametrize("labels", [["NA", "null", "True"], ["007", "1.0", "1e3"], ["nan", "2020-01-01", "-"]])
def test_labels_that_pandas_would_change(tmp_path, labels):
    tree(tmp_path, *"123")
    path = manifest(tmp_path, "path,label\n" + "".join(f"{n},{label}\n" for n, label in enumerate(labels, 1)))
    assert [file.label for file in find(path).files] == labels


def test_spaces_and_a_byte_order_mark_around_columns(tmp_path):
    tree(tmp_path, "1", "2")
    path = manifest(tmp_path, "\ufeffpath, label , split\n1, a b , train\n2,c,\n")
    assert find(path).files == (Found("1", "a b"), Found("2", "c"))


def test_odd_names_in_a_csv(tmp_path):
    names = ["with space", "new\nline", "ünï😀", 'semi;comma,"quote', " leading"]
    tree(tmp_path, *names)
    path = tmp_path / "m.csv"
    pd.DataFrame({"path": names, "label": list("aabbb")}).to_csv(path, index=False)
    assert {file.path for file in find(path).files} == set(names)


@pytest.mark.parametrize("name", ["m.parquet", "m.PQ"])
def test_a_parquet_manifest(tmp_path, name):
    tree(tmp_path, "1", "2", "3")
    columns = {
        "path": ["1", "2", "3"],
        "label": [7, 8, 7],
        "split": ["train", None, "test"],
        "group": [5, None, 6],
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / name)
    assert find(tmp_path / name).files == (
        Found("1", "7", "train", "5"),
        Found("2", "8"),
        Found("3", "7", "test", "6"),
    )


def test_a_parquet_manifest_of_categories(tmp_path):
    tree(tmp_path, "1", "2")
    frame = pd.DataFrame({"path": ["1", "2"], "label": pd.Categorical(["a", "b"])})
    frame.to_parquet(tmp_path / "m.parquet")
    assert [file.label for file in find(tmp_path / "m.parquet").files] == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("id,kind\n1,a\n", ["no column path and no column label", "'id', 'kind'", "--path-column", "--label-column"]),
        ("path label\n1 a\n", ["no column path", "'path label'", "by commas, semicolons or tabs"]),
        ("1,a\n2,b\n", ["no column path", "first line names a file", "path,label"]),
        ("file,image,label\n1,1,a\n", ["several columns that may be the path: 'file', 'image'", "--path-column"]),
        ("path,class,category\n1,a,b\n", ["several columns that may be the label", "--label-column"]),
        ("path,label;x\n1,a\n", ["divided by commas and by semicolons"]),
        ("path,label,split\n1,a,0\n2,b,1\n", ["split '0'", "Folds are not splits"]),
        ("path,label\nC:\\me\\3,a\n2,b\n", ["do not exist", "Windows", "relative to the manifest"]),
        ("path,label\n", ["has no images"]),
        ("", ["cannot be read"]),
        ("path,label\n1,a\n2,\n1,\n", ["has no label in rows '2', '3'"]),
        ("path,label\n,a\n", ["has no path in rows '1'"]),
        ("path,label\n1,a\n2,a\n", ["only one class, 'a'"]),
        ("path,label,split\n1,a,train\n2,b,holdout\n", ["split 'holdout'", "train, val and test"]),
        ("path,label,split\n1,a,val\n2,b,test\n", ["no train split"]),
        ("path,label,split\n1,a,train\n2,b,train\n1,c,val\n", ["Class 'c' has no image in train"]),
        (
            "path,label\n1,a\nx,b\ny,b\nz,b\nw,b\n",
            ["4 files of the manifest", "do not exist", "'x', 'y', 'z' and 1 more"],
        ),
        ('path,label\n"1,a\n', ["cannot be read"]),
        ("path,label\n1,a,big\n2,b,small\n", ["more values in its rows than names", "in quotes"]),
        ("path,label,label\n1,a,b\n2,b,a\n", ["two columns 'label'"]),
    ],
)
def test_manifests_that_are_refused(tmp_path, text, said):
    tree(tmp_path, "1", "2")
    refused(manifest(tmp_path, text), *said)


ROWS = [("in/1.jpg", "Gänse"), ("in/2.jpg", "b")]


def excel(root, encoding="utf-8", delimiter=",", header="path,label", rows=ROWS, before="", name="m.csv"):
    """A manifest as Windows writes it, of two existing files."""
    tree(root, "in/1.jpg", "in/2.jpg")
    lines = [header.replace(",", delimiter), *(delimiter.join(row) for row in rows)]
    (root / name).write_bytes((before + "".join(f"{line}\r\n" for line in lines)).encode(encoding))
    return root / name


@pytest.mark.parametrize(
    "said",
    [
        {"delimiter": ";"},
        {"delimiter": "\t"},
        {"delimiter": "\t", "name": "m.tsv"},
        {"delimiter": ";", "before": "sep=;\r\n"},
        {"encoding": "utf-16"},
        {"encoding": "utf-16", "delimiter": "\t"},
        {"encoding": "utf-8-sig", "header": "Path,Label"},
        {"header": "filename,class"},
        {"header": "Image Path,CATEGORY"},
        {"header": "file_name,label"},
        {"rows": [(path.replace("/", "\\"), label) for path, label in ROWS]},
        {"rows": [*ROWS, ("", "")]},
        {"rows": [(path, unicodedata.normalize("NFD", label)) for path, label in ROWS]},
    ],
)
def test_manifests_as_windows_and_excel_write_them(tmp_path, said):
    listing = find(excel(tmp_path, **said))
    assert listing.files == (Found("in/1.jpg", "Gänse"), Found("in/2.jpg", "b"))
    assert listing.layout == "manifest" and listing.notes == ()
    assert [meant for _, meant in listing.read_as] == ["path", "label"]


def test_a_csv_of_windows_is_read_with_a_note(tmp_path):
    listing = find(excel(tmp_path, "cp1252"))
    assert listing.files[0].label == "Gänse"
    assert listing.notes == ("m.csv is not UTF-8 and was read as Windows-1252: check the names of the classes",)


@pytest.mark.parametrize(
    ("encoding", "label"), [("mac-roman", "Gänse"), ("cp850", "Gänse"), ("cp1251", "кошка"), ("gbk", "小狗")]
)
def test_a_csv_of_unknown_encoding_is_refused(tmp_path, encoding, label):
    path = excel(tmp_path, encoding, rows=[("in/1.jpg", label), ("in/2.jpg", "b")])
    refused(path, "cannot be read", "not UTF-8", "Save it as CSV in UTF-8")


def test_columns_that_the_user_names(tmp_path):
    path = excel(tmp_path, header="where,what,file,label", rows=[(*row, "x", "y") for row in ROWS])
    named = Columns("where", "what")
    assert find(path, named).files == (Found("in/1.jpg", "Gänse"), Found("in/2.jpg", "b"))
    refused(path, "no column 'wher'", "'where', 'what', 'file', 'label'", "--path-column", columns=Columns("wher"))
    refused(tmp_path, "has no columns", "--path-column", columns=named)


@pytest.mark.parametrize("column", ["split", "Split", "data set", "phase"])
def test_a_column_of_splits_is_recognised_by_its_name_and_values(tmp_path, column):
    tree(tmp_path, "3")
    path = excel(
        tmp_path,
        header=f"path,label,{column}",
        rows=[("in/1.jpg", "a", "Training"), ("in/2.jpg", "b", "train_set"), ("3", "a", "Test Set")],
    )
    assert [file.split for file in find(path).files] == ["test", "train", "train"]


def test_a_column_named_set_with_other_values_is_no_column_of_splits(tmp_path):
    path = excel(tmp_path, header="path,label,set", rows=[("in/1.jpg", "a", "red"), ("in/2.jpg", "b", "blue")])
    assert [file.split for file in find(path).files] == ["train", "train"]


@pytest.mark.parametrize(("written", "there"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_manifest_finds_files_whose_names_have_the_other_unicode_form(tmp_path, written, there):
    on_disk = unicodedata.normalize(there, "für/é 1")
    tree(tmp_path, on_disk, "2")
    path = manifest(tmp_path, f"path,label\n{unicodedata.normalize(written, 'für/é 1')},a\n2,b\n")
    assert [file.path for file in find(path).files] == ["2", on_disk]


def test_litter_in_a_manifest_is_ignored(tmp_path):
    tree(tmp_path, "1", "2", "Thumbs.db")
    listing = find(manifest(tmp_path, "path,label\n1,a\n2,b\nThumbs.db,a\n"))
    assert [file.path for file in listing.files] == ["1", "2"] and listing.litter == ("Thumbs.db",)


@pytest.mark.parametrize("written", ["photo.jpg", "photo", r"C:\me\photo.jpg", "/mnt/Photo.JPG"])
def test_a_file_that_is_in_another_folder_is_named(tmp_path, written):
    tree(tmp_path, "in/photo.jpg", "2")
    refused(manifest(tmp_path, f"path,label\n{written},a\n2,b\n"), f"{written!r} may be 'in/photo.jpg'")


def test_columns_that_are_not_used_are_reported(tmp_path):
    path = excel(tmp_path, header=",path,label,is_train", rows=[("0", *ROWS[0], "1"), ("1", *ROWS[1], "0")])
    (note,) = find(path).notes
    assert note.startswith("unused columns: 'is_train'; a column of splits must be named split")


def test_a_csv_whose_lines_end_as_on_an_old_mac(tmp_path):
    tree(tmp_path, "1", "2")
    assert [file.label for file in find(manifest(tmp_path, "path,label\r1,a\r2,b\r")).files] == ["a", "b"]


def test_a_workbook_is_refused_with_what_to_do(tmp_path):
    refused(manifest(tmp_path, "PK", "m.xlsx"), "workbook", "Save its table as a CSV")


def test_a_parquet_file_that_is_none(tmp_path):
    refused(manifest(tmp_path, "PAR1 no", "m.parquet"), "cannot be read")


@pytest.mark.parametrize("name", ["m.txt", "photo.jpg", "data.rar"])
def test_a_file_that_is_no_manifest(tmp_path, name):
    refused(manifest(tmp_path, "path,label\n", name), "is a file, but not a manifest")
