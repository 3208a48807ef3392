"""Reading a manifest: a CSV or Parquet table of files and their labels, as people and programs write it."""

import codecs
import csv
import io
import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from itertools import islice
from pathlib import Path, PurePosixPath

from autotl.data.folders import SHAPES
from autotl.data.listing import Columns, Found, Listing, some
from autotl.data.names import is_fold, is_litter, one_form, split_of
from autotl.data.split import Split
from autotl.data.walk import Walk
from autotl.errors import DataError, one_line

_USUAL = {
    "path": (
        *("path", "file", "filename", "file_name", "filepath", "file_path", "image", "images", "image_path"),
        *("imagepath", "image_name", "image_file", "image_filename", "img", "img_path", "img_name"),
    ),
    "label": ("label", "labels", "class", "class_name", "class_label", "classname", "category", "target"),
    "split": ("split", "set", "subset", "data_set", "dataset", "partition", "phase", "usage"),
    "group": ("group",),
}
"""The usual names of columns, compared without case, spaces, `-` and `_`; the first name takes precedence."""
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}
_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_NOT_WESTERN = re.compile(rb"[\x80-\x9f]|[\xa0-\xff]{3}")
"""Rare signs, or three accented letters in a row, in cp1252; other encodings have common letters there."""
_UNNAMED = "Unnamed: "
"""The start of pandas' name for a column without one, such as the row numbers that it writes itself."""
_LOOKED_AT = 100_000
"""How many files are searched for a missing one."""
_ON_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")


def read_manifest(path: Path, columns: Columns) -> Listing:
    """The files that a manifest labels.

    Raises: DataError for a manifest that cannot be read, or is ambiguous.
    """
    remarks: list[str] = []
    table = _table(path, columns, remarks.append)
    taken = _taken(table, columns, path)
    unused = [name for name in table if name not in taken.values() and not name.startswith(_UNNAMED)]
    if unused:
        remarks.append(
            f"unused columns: {some(unused)}; a column of splits must be named split, a column of patients or similar "
            f"groups group"
        )
    rows = [row for row in zip(*(table[name] for name in taken.values()), strict=True) if any(map(str.strip, row))]
    cells = {meant: [row[at] for row in rows] for at, meant in enumerate(taken)}
    for meant in cells.keys() - {"path"}:  # a file name may start with a space
        cells[meant] = [one_form(value).strip() for value in cells[meant]]
    for meant in ("path", "label"):
        empty = [str(number) for number, value in enumerate(cells[meant], 1) if not value]
        if empty:
            raise DataError(f"The manifest {str(path)!r} has no {meant} in rows {some(empty)}. Fill in or remove them.")
    blank = [""] * len(rows)
    splits = [_split(word, path) for word in cells.get("split", blank)]
    groups = [group or None for group in cells.get("group", blank)]
    found = map(Found, _on_disk(path, cells["path"]), cells["label"], splits, groups)
    files = sorted(found, key=lambda file: (file.path, file.label, file.split, file.group or ""))
    litter = {file.path for file in files if is_litter(file.path.rpartition("/")[2])}
    return Listing(
        path.parent,
        tuple(file for file in files if file.path not in litter),
        layout="manifest",
        read_as=tuple((name, meant) for meant, name in taken.items()),
        litter=tuple(sorted(litter)),
        remarks=tuple(remarks),
    )


# Columns


def _taken(table: Mapping[str, Sequence[str]], columns: Columns, path: Path) -> dict[str, str]:
    """The columns of `path`, `label` and, if they exist, `split` and `group`.

    Raises: DataError if one is missing or ambiguous.
    """
    names = list(table)
    splits = [name for name in names if _plain(name) == "split" or any(map(split_of, table[name]))]
    found = {
        "path": _column(names, "path", columns, path),
        "label": _column(names, "label", columns, path),
        "split": _column(splits, "split", columns, path),  # a column `set` may mean something else
        "group": _column(names, "group", columns, path),
    }
    missing = [meant for meant in ("path", "label") if not found[meant]]
    if missing:
        raise DataError(_without(path, missing, names))
    return {meant: name for meant, name in found.items() if name}


def _column(names: Sequence[str], meant: str, columns: Columns, path: Path) -> str | None:
    """Raises: DataError if the column that the user named is missing, or several columns match."""
    said = columns.said().get(meant)
    if said and said not in names:
        raise DataError(
            f"The manifest {str(path)!r} has no column {said!r}; it has {', '.join(map(repr, names))}. "
            f"Use --{meant}-column NAME."
        )
    found = _candidates(names, meant, said)
    if len(found) > 1:
        raise DataError(
            f"The manifest {str(path)!r} has several columns that may be the {meant}: {some(found)}. "
            f"Name one of them {meant}{_or_say([meant])}."
        )
    return found[0] if found else None


def _candidates(names: Sequence[str], meant: str, said: str | None) -> list[str]:
    """The columns that match best: the user's, else by exact name, by plain name, by usual name."""
    if (exact := said or meant) in names:
        return [exact]
    if said:
        return []
    usual = set(map(_plain, _USUAL[meant]))
    return [name for name in names if _plain(name) == meant] or [name for name in names if _plain(name) in usual]


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name).casefold()


def _or_say(meant: Sequence[str]) -> str:
    options = " ".join(f"--{each}-column NAME" for each in meant if each in ("path", "label"))
    return options and f", or use {options}"


def _without(path: Path, missing: Sequence[str], names: Sequence[str]) -> str:
    said = (
        f"The manifest {str(path)!r} has no column {' and no column '.join(missing)}; it has "
        f"{', '.join(map(repr, names))}."
    )
    if any(os.path.isfile(path.parent / name) for name in names):
        return f"{said} Its first line names a file: add a line with column names above it, such as path,label."
    return (
        f"{said} Name columns {' and '.join(missing)}{_or_say(missing)}. Separate the columns of a CSV by commas, "
        f"semicolons or tabs."
    )


def _split(word: str, path: Path) -> Split:
    if not word:
        return "train"
    split = split_of(word)
    if split is None:
        folds = " Folds are not splits: write test for one of them and train for the others." * is_fold(word)
        raise DataError(
            f"The manifest {str(path)!r} has the unknown split {word!r}. Allowed are train, val and test; empty cells "
            f"are split automatically.{folds}"
        )
    return split


# Files


def _on_disk(path: Path, names: Sequence[str]) -> list[str]:
    """The paths of the files, relative to the manifest's folder.

    Raises: DataError for files that do not exist.
    """
    locate = _locator(str(path.parent))
    places = [locate(name) for name in names]
    absent = [name for name, place in zip(names, places, strict=True) if place is None]
    if absent:
        advice = "Paths are relative to the manifest's folder, or absolute."
        if any(map(_ON_WINDOWS.match, absent)):
            advice = "These are Windows paths: write them relative to the manifest's folder."
        if meant := _elsewhere(path.parent, absent[0]):
            advice = f"Paths are relative to the manifest's folder: {absent[0]!r} may be {meant!r}."
        raise DataError(f"{len(absent)} files of the manifest {str(path)!r} do not exist: {some(absent)}. {advice}")
    return [place for place in places if place is not None]


def _elsewhere(folder: Path, name: str) -> str | None:
    """A file below the folder with the same name, except for its folders or its suffix."""
    wanted = PurePosixPath(name.replace("\\", "/")).name.casefold()
    with suppress(DataError):
        for place in islice(Walk(folder).files(), _LOOKED_AT):
            file = PurePosixPath(place)
            if wanted in (file.name.casefold(), file.stem.casefold()):
                return place
    return None


def _locator(folder: str) -> Callable[[str], str | None]:
    """Maps a name in a manifest to the path of its file, relative to the folder: it may have backslashes, and the disk
    may have the other Unicode form of accented letters."""

    @cache
    def listed(place: str) -> dict[str, list[str]]:
        """The entries of a folder, by their Unicode form NFC."""
        forms: dict[str, list[str]] = {}
        with suppress(OSError):
            for name in os.listdir(place):
                forms.setdefault(one_form(name), []).append(name)
        return forms

    def in_other_form(name: str) -> str | None:
        place = "/" if name.startswith("/") else folder
        for part in name.split("/"):
            if os.path.lexists(os.path.join(place, part)):
                place = os.path.join(place, part)
                continue
            fitting = listed(place).get(one_form(part), [])
            if len(fitting) != 1:
                return None
            place = os.path.join(place, fitting[0])
        return place

    def locate(name: str) -> str | None:
        for spelled in (name, name.replace("\\", "/")):
            place = os.path.join(folder, spelled)
            if not os.path.isfile(place) and not spelled.isascii():
                place = in_other_form(spelled) or place
            if os.path.isfile(place):
                return os.path.relpath(place, folder).replace(os.sep, "/")
        return None

    return locate


# Tables


def _table(path: Path, columns: Columns, remark: Callable[[str], None]) -> dict[str, list[str]]:
    """The manifest's columns as text; their names are stripped of spaces."""
    suffix = path.suffix.lower()
    if suffix in (".xlsx", ".xls", ".ods"):
        raise DataError(f"{str(path)!r} is a workbook, not a manifest. Save its table as a CSV in UTF-8.")
    if suffix not in (".csv", ".tsv", ".parquet", ".pq"):
        raise DataError(f"{str(path)!r} is a file, but not a manifest. {SHAPES}")
    import pandas as pd

    try:
        if suffix in (".csv", ".tsv"):
            # A class may be called "NA" or "007".
            text, delimiter = _divided(_text(path, remark), columns, path)
            _require_one_of_each(text, delimiter, path)
            with warnings.catch_warnings():
                warnings.simplefilter("error", pd.errors.ParserWarning)
                frame = pd.read_csv(io.StringIO(text), sep=delimiter, dtype=str, keep_default_na=False, index_col=False)
        else:
            # numpy would turn integers with gaps into 7.0.
            frame = pd.read_parquet(path, dtype_backend="numpy_nullable")
    except DataError:
        raise
    except pd.errors.ParserWarning:
        raise DataError(
            f"The manifest {str(path)!r} has more values in its rows than names in its first line. Name every column "
            f"there, and put values with a {delimiter!r} in quotes."
        ) from None
    except Exception as error:  # pandas and pyarrow have no common base class of errors
        raise DataError(
            f"The manifest {str(path)!r} cannot be read: {one_line(error)}. It must be CSV in UTF-8, or Parquet."
        ) from None
    return {
        one_form(str(column)).strip(): ["" if pd.isna(value) else str(value) for value in frame[column]]
        for column in frame
    }


def _require_one_of_each(text: str, delimiter: str, path: Path) -> None:
    """Raises: DataError if two columns have the same name."""
    names = [name for each in next(csv.reader(io.StringIO(text), delimiter=delimiter), []) if (name := each.strip())]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"The manifest {str(path)!r} has two columns {twice[0]!r}. Rename or remove one of them.")


def _text(path: Path, remark: Callable[[str], None]) -> str:
    """Raises: DataError for an unknown encoding."""
    data = path.read_bytes()
    for mark, encoding in _MARKS.items():
        if data.startswith(mark):
            return data.decode(encoding)
    try:
        return data.decode()
    except UnicodeDecodeError:
        if b"\0" in data or _NOT_WESTERN.search(data):
            raise DataError(
                f"The manifest {str(path)!r} cannot be read: it is not UTF-8, and its encoding is unknown. Save it as "
                f"CSV in UTF-8."
            ) from None
        remark(f"{path.name} is not UTF-8 and was read as Windows-1252: check the names of the classes")
        return data.decode("cp1252")


def _divided(text: str, columns: Columns, path: Path) -> tuple[str, str]:
    """The text of a CSV and its delimiter: that of Excel's line `sep=`, or the one in its first line.

    Raises: DataError if several are possible.
    """
    if "\n" not in text:
        text = text.replace("\r", "\n")  # as old versions of Excel for the Mac wrote it
    first, _, rest = text.partition("\n")
    if marked := re.fullmatch(r'"?sep=(.)"?\r?', first):
        return rest, marked[1]
    headers = {each: next(csv.reader(io.StringIO(text), delimiter=each), []) for each in _DELIMITERS}
    dividing = [each for each, names in headers.items() if len(names) > 1]
    fitting = [each for each in dividing if _fits(headers[each], columns)]
    if len(dividing) > 1 and len(fitting) != 1:
        by = " and by ".join(_DELIMITERS[each] for each in dividing)
        raise DataError(f"The first line of the manifest {str(path)!r} is divided by {by}. Use only one of them.")
    return text, (fitting or dividing or [","])[0]


def _fits(header: Sequence[str], columns: Columns) -> bool:
    """Whether a header has columns for paths and labels."""
    names = [name.strip() for name in header]
    return all(_candidates(names, meant, columns.said().get(meant)) for meant in ("path", "label"))
