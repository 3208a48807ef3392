"""What the name of a file or folder means: litter (system files such as `Thumbs.db`), a split, or a fold."""

import re
import unicodedata

from autotl.data.split import Split

LITTER = (
    *("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "picasa.ini", "icon\r"),
    *("__macosx", "__pycache__", "$recycle.bin", "system volume information", "@eadir", "#recycle", "lost+found"),
    *(".ds_store", ".ipynb_checkpoints"),
)
"""Names, in lower case, of files and folders that operating systems and programs leave beside a user's files."""
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
    """Whether a file or folder of this name is ignored in any place."""
    name = name.casefold()
    return name in LITTER or name.startswith(LITTER_BEGINS) or name.endswith(LITTER_ENDS)


def split_of(name: str) -> Split | None:
    """The split that a folder, or a word in a manifest, names: `train`, `Training`, `seg_train`, `test1` …

    `eval` and `holdout` name none: some use them for validation, others for the test.
    """
    found = _SPLIT.fullmatch(_words(name))
    return _WORDS[found[1]] if found else None


def splits_within(name: str) -> set[Split]:
    """The splits that words of a longer name mean, such as `asl_alphabet_train` and `stage_2_test_images`."""
    return {split for word in re.split(r"[^a-z]+", name.casefold()) if (split := split_of(word))}


def is_fold(name: str) -> bool:
    """Whether it names a fold of a cross-validation, such as `fold_0`, or is a small number."""
    return _FOLD.fullmatch(_words(name)) is not None


def one_form(text: str) -> str:
    """The text in Unicode's form NFC. macOS writes `é` as two characters, other systems as one; both are one name."""
    return unicodedata.normalize("NFC", text)


def _words(name: str) -> str:
    return re.sub(r"[\s_-]+", "_", one_form(name).casefold().strip())
