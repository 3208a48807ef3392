"""Which files there are and how they are labelled. No file is opened here but a manifest.

Data is one of
- a folder with a sub-folder for each class, whatever lies below it;
- a folder of `train/` and, optionally, `val/` and `test/`, each with a sub-folder for each class;
- a manifest: a CSV or Parquet file with the columns `path` and `label`, and optionally `split` and `group`.

What has no split is in train, and missing splits are carved from train.
"""

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from autotl.data.split import Split
from autotl.errors import DataError, one_line

SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "val": "rank",
    "valid": "rank",
    "validation": "rank",
    "dev": "rank",
    "test": "test",
}
_SHAPES = (
    "Give a folder with a sub-folder for each class, a folder of train/, val/ and test/ with such "
    "sub-folders, or a CSV or Parquet manifest with the columns path and label."
)


@dataclass(frozen=True)
class Found:
    """A file and what the user said of it. `path` is relative to the root, with forward slashes."""

    path: str
    label: str
    split: Split = "train"
    group: str | None = None


@dataclass(frozen=True)
class Listing:
    """Every labelled file below `root`, sorted by path, and what was passed over."""

    root: Path
    files: tuple[Found, ...]
    notes: tuple[str, ...] = ()


def find(path: Path) -> Listing:
    """List the labelled files of a folder or a manifest.

    Raises: DataError, in one line.
    """
    path = Path(path).resolve()
    if path.is_dir():
        listing = _read_folder(path)
    elif path.is_file():
        listing = _read_manifest(path)
    else:
        raise DataError(f"There is no file or folder {str(path)!r}. {_SHAPES}")
    _check(listing.files, path)
    return listing


def _check(files: Sequence[Found], path: Path) -> None:
    """What holds for folders and manifests alike."""
    if not files:
        raise DataError(f"{str(path)!r} holds no images. {_SHAPES}")
    train = {file.label for file in files if file.split == "train"}
    if not train:
        raise DataError(f"{str(path)!r} has no train split. Add images to train, or leave all splits out.")
    for file in files:
        if file.label not in train:
            raise DataError(
                f"Class {file.label!r} has no image in train, but {file.path!r} is one in another split of "
                f"{str(path)!r}. Add images of it to train, or leave the class out."
            )
    for label in train:
        if not label.isprintable():
            raise DataError(f"The class name {label!r} of {str(path)!r} cannot be printed. Rename it.")
    if len(train) == 1:
        raise DataError(
            f"{str(path)!r} holds only one class, {train.pop()!r}; a classifier needs two or more. {_SHAPES}"
        )


# Folders


def _read_folder(root: Path) -> Listing:
    files = _files(str(root), _above(root), splits=True)
    paths = sorted(os.path.relpath(file, root).replace(os.sep, "/") for file in files)
    tops = {path.split("/")[0] for path in paths if "/" in path}
    splits = {top for top in tops if top.casefold() in SPLIT_NAMES}
    if not tops and paths:
        raise DataError(f"{str(root)!r} holds {len(paths)} files but no class folders. {_SHAPES}")
    if not splits or (splits != tops and _hold_files_only(splits, paths)):
        return _classes(root, paths)
    if splits != tops:
        raise DataError(
            f"{str(root)!r} is ambiguous: {_some(sorted(splits))} look like splits, "
            f"{_some(sorted(tops - splits))} like classes. Move either elsewhere, or rename it."
        )
    return _splits(root, paths, sorted(splits))


def _hold_files_only(folders: Iterable[str], paths: Iterable[str]) -> bool:
    """Then they are class folders of a `train` beside a `bus`, not splits."""
    return all(path.count("/") == 1 for path in paths if path.split("/")[0] in folders)


def _classes(root: Path, paths: Sequence[str]) -> Listing:
    inside = [path for path in paths if "/" in path]
    return Listing(
        root,
        tuple(Found(path, label=path.split("/")[0]) for path in inside),
        _beside(paths, inside),
    )


def _splits(root: Path, paths: Sequence[str], folders: Sequence[str]) -> Listing:
    split_of = {folder: SPLIT_NAMES[folder.casefold()] for folder in folders}
    if len(set(split_of.values())) < len(folders):
        raise DataError(f"Of {_some(folders)} in {str(root)!r} two are the same split. Merge them, or rename one.")
    if "train" not in split_of.values():
        raise DataError(
            f"{str(root)!r} has {_some(folders)} but no train folder. Add train/, or, if these are classes, "
            f"rename them."
        )
    inside = [path for path in paths if path.count("/") >= 2]
    for folder in folders:
        if not any(path.startswith(f"{folder}/") for path in inside):
            raise DataError(
                f"{str(root / folder)!r} holds files but no class folders, so their labels are unknown. Sort "
                f"them into a sub-folder for each class, or move {folder!r} elsewhere."
            )
    return Listing(
        root,
        tuple(
            Found(path, label=parts[1], split=split_of[parts[0]]) for path in inside if (parts := path.split("/", 2))
        ),
        _beside(paths, inside),
    )


def _beside(paths: Sequence[str], inside: Sequence[str]) -> tuple[str, ...]:
    outside = sorted(set(paths) - set(inside))
    return (f"passed over beside the class folders: {_some(outside)}",) if outside else ()


_Identity = tuple[int, int]
"""Of a folder, by whatever path or link it was come by: its device, and its number there."""


def files_below(folder: Path) -> Iterator[str]:
    """Every file at any depth that is not hidden. Links are followed, but to each folder once.

    Raises: DataError for a folder that cannot be listed.
    """
    return _walk(str(folder), _above(folder))


def _files(folder: str, above: Set[_Identity], *, splits: bool) -> Iterator[str]:
    """Every file of each class. A folder that links of several classes lead to belongs to each of them.

    With `splits`, folders of such names hold classes.
    """
    above = above | {_identity(folder)}
    for entry in _entries(folder):
        if not _is_folder(entry):
            yield entry.path
        elif not splits or entry.name.casefold() not in SPLIT_NAMES:
            yield from _walk(entry.path, above)
        elif _identity(entry.path) not in above:
            yield from _files(entry.path, above, splits=False)


def _walk(folder: str, above: Set[_Identity]) -> Iterator[str]:
    """Every file below a folder, but for what only links back to folders `above` lead to.

    A folder that several paths lead to is listed once: by its own path rather than by one with a link in it.
    """
    seen = set(above)
    folders, links = [folder], deque[str]()  # no recursion, for folders may be nested deeper than Python's calls
    while folders or links:
        folder = folders.pop() if folders else links.popleft()
        identity = _identity(folder)
        if identity in seen:
            continue
        seen.add(identity)
        for entry in _entries(folder):
            if not _is_folder(entry):
                yield entry.path
            elif entry.is_symlink():
                links.append(entry.path)
            else:
                folders.append(entry.path)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Or a link to one. What is neither folder nor file, such as a broken link, is found out when it is read."""
    return entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry.path))


def _entries(folder: str) -> list[os.DirEntry[str]]:
    """What lies in a folder and is not hidden, in order of name."""
    with _listing(folder), os.scandir(folder) as found:
        return sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda entry: entry.name)


def _above(folder: Path) -> Set[_Identity]:
    return {_identity(str(parent)) for parent in folder.resolve().parents}


def _identity(folder: str) -> _Identity:
    with _listing(folder):
        status = os.stat(folder)
    return status.st_dev, status.st_ino


@contextmanager
def _listing(folder: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"The folder {folder[:200]!r} cannot be listed: {error.strerror}. Make it readable, or leave it out."
        ) from None


# Manifests


def _read_manifest(path: Path) -> Listing:
    table = _table(path)
    missing = [name for name in ("path", "label") if name not in table]
    if missing:
        raise DataError(
            f"The manifest {str(path)!r} has no column {' and no column '.join(missing)}; it has "
            f"{', '.join(map(repr, table))}. Columns, separated by commas: path, label, and optionally split "
            f"and group."
        )
    for column in ("path", "label"):
        empty = [str(row) for row, value in enumerate(table[column], 1) if not value]
        if empty:
            raise DataError(
                f"The manifest {str(path)!r} lacks a {column} in rows {_some(empty)}. Fill in or remove them."
            )
    blank = [""] * len(table["path"])
    names = [os.path.relpath(path.parent / name, path.parent).replace(os.sep, "/") for name in table["path"]]
    absent = [name for name in names if not os.path.isfile(path.parent / name)]
    if absent:
        raise DataError(
            f"The manifest {str(path)!r} labels {len(absent)} files that are not there: {_some(absent)}. "
            f"Paths are relative to the manifest's folder, or absolute."
        )
    splits = [_split(word, path) for word in table.get("split", blank)]
    groups = [group or None for group in table.get("group", blank)]
    return Listing(path.parent, tuple(sorted(map(Found, names, table["label"], splits, groups), key=_order)))


def _order(file: Found) -> tuple[str, str, str, str]:
    return file.path, file.label, file.split, file.group or ""


def _split(word: str, path: Path) -> Split:
    if not word:
        return "train"
    try:
        return SPLIT_NAMES[word.casefold()]
    except KeyError:
        raise DataError(
            f"The manifest {str(path)!r} has the split {word!r}. Splits are train, val and test, or nothing "
            f"to have them carved."
        ) from None


def _table(path: Path) -> dict[str, list[str]]:
    """The manifest's columns as text; but for paths, without spaces around."""
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".parquet", ".pq"):
        raise DataError(f"{str(path)!r} is a file, but no manifest. {_SHAPES}")
    import pandas as pd

    try:
        if suffix == ".csv":
            # A class may be called "NA" or "007".
            frame = pd.read_csv(path, dtype=str, keep_default_na=False, index_col=False, encoding="utf-8-sig")
        else:
            # Of whole numbers with gaps numpy would make 7.0.
            frame = pd.read_parquet(path, dtype_backend="numpy_nullable")
    except Exception as error:  # pandas and pyarrow have no error in common.
        reason = one_line(error)
        raise DataError(
            f"The manifest {str(path)!r} cannot be read: {reason}. It must be CSV in UTF-8, or Parquet."
        ) from None
    table = {}
    for column in frame:
        name = str(column).strip()
        values = ["" if pd.isna(value) else str(value) for value in frame[column]]
        table[name] = values if name == "path" else [value.strip() for value in values]
    return table


def _some(names: Sequence[str]) -> str:
    """The first three, and how many there are."""
    shown = ", ".join(map(repr, names[:3]))
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
