"""What the name of a file or folder tells: whether it is litter, which split it stands for, and how to compare it."""

import re
import unicodedata

from autotl.data.split import Split

LITTER = (
    *("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "picasa.ini", "icon\r"),
    *("__macosx", "__pycache__", "$recycle.bin", "system volume information", "@eadir", "#recycle", "lost+found"),
    *(".ds_store", ".ipynb_checkpoints"),
)
"""Names, in lower case, of what operating systems and programs leave beside a user's files."""
LITTER_BEGINS = ("._", "~$")
LITTER_ENDS = (":zone.identifier",)

_WORDS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "trainval": "train",
    "train_val": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
_BESIDE = "(?:set|data|dataset|images?|split|folder|seg)"
_SPLIT = re.compile(rf"(?:{_BESIDE}_)*({'|'.join(_WORDS)})(?:_?{_BESIDE})*(?:_?\d+)?")
_FOLD = re.compile(r"(?:cv|k)?_?folds?_?\d+|\d{1,2}")


def is_litter(name: str) -> bool:
    """Whether no user means a file or folder of this name, wherever it lies."""
    name = name.casefold()
    return name in LITTER or name.startswith(LITTER_BEGINS) or name.endswith(LITTER_ENDS)


def split_of(name: str) -> Split | None:
    """The split that a folder, or a word in a manifest, stands for: `train`, `Training`, `seg_train`, `test1` …

    `eval` and `holdout` are none: for some they are what chooses, for others what judges.
    """
    found = _SPLIT.fullmatch(_words(name))
    return _WORDS[found[1]] if found else None


def splits_within(name: str) -> set[Split]:
    """Those that words of a longer name stand for, such as those of `asl_alphabet_train` and `stage_2_test_images`."""
    return {split for word in re.split(r"[^a-z]+", name.casefold()) if (split := split_of(word))}


def is_fold(name: str) -> bool:
    """Whether it is a part of a cross-validation, such as `fold_0`, or a small number alone."""
    return _FOLD.fullmatch(_words(name)) is not None


def one_form(text: str) -> str:
    """The text in Unicode's form NFC. macOS writes `é` as two characters, others as one: they are the same name."""
    return unicodedata.normalize("NFC", text)


def _words(name: str) -> str:
    return re.sub(r"[\s_-]+", "_", one_form(name).casefold().strip())
