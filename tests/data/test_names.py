"""Splits and litter are recognised by names."""

import pytest

from autotl.data.names import is_fold, is_litter, split_of


@pytest.mark.parametrize(
    ("split", "names"),
    [
        (
            "train",
            ["train", "Training", "TRAIN_SET", "seg_train", "train-images", "train_val", "train2017"],
        ),
        ("val", ["val", "valid", "Validation", "dev", "val_set", "validation data"]),
        ("test", ["test", "Testing", "test_set", "seg_test", "testset", "image_test", "test1"]),
        (None, ["eval", "holdout", "trains", "bus", "fold_0", "latest", "contest", "values", "invalid"]),
    ],
)
def test_names_of_splits(split, names):
    assert {name: split_of(name) for name in names} == dict.fromkeys(names, split)


def test_names_of_folds():
    assert all(map(is_fold, ["fold_0", "Fold 1", "fold2", "kfold-3", "4"]))
    assert not any(map(is_fold, ["fold", "folder", "a1", "billfold_1", "8863"]))


def test_names_of_litter():
    names = ["Thumbs.db", "desktop.ini", ".DS_Store", "._photo.jpg", "__MACOSX", ".ipynb_checkpoints", "~$m.xlsx"]
    assert all(map(is_litter, names))
    assert not any(map(is_litter, ["thumbs", "photo.db", "macosx", "_photo.jpg", "cache"]))
