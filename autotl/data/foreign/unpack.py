"""Converting a data set that a search cannot read into class folders.

Encoded images keep their bytes, arrays become PNG. Nothing is downloaded.
"""

import errno
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from autotl.data.foreign import archives, shards, tables, vision
from autotl.data.foreign.recognize import Recognized, foreign, recognize
from autotl.data.foreign.samples import Source, Tell
from autotl.data.pixels import Progress
from autotl.errors import DataError, missing, one_line
from autotl.files import replacing

TORCHVISION = "torchvision:"
KNOWN = (
    "Allowed are a zip or tar archive, WebDataset shards, a Hugging Face data set as a folder or in Parquet files, and "
    "torchvision:NAME."
)


def open_source(
    sources: Sequence[str], *, root: Path | None = None, label_column: str | None = None, tell: Tell
) -> Source:
    """The source of these names, ready to be written. `root` is torchvision's; `label_column` the column of classes.

    Raises: DataError.
    """
    if sources[0].startswith(TORCHVISION) and len(sources) == 1:
        if root is None or label_column is not None:
            raise DataError(f"{sources[0]} needs --root, the folder that it was downloaded to, and no --label-column.")
        return vision.read(sources[0].removeprefix(TORCHVISION), root, tell)
    if root is not None:
        raise DataError(f"--root is only for {TORCHVISION}NAME, such as {TORCHVISION}CIFAR10.")
    return _read([Path(os.path.abspath(source)) for source in sources], label_column, tell)


def write(source: Source, folder: Path, progress: Progress) -> None:
    """Fill a folder that is new or empty; it appears only when everything is written.

    Raises: DataError; the folder is then unchanged.
    """
    folder = check_new(folder)
    written, largest = 0, archives.most(source.size) if source.size is not None else None
    with replacing(folder) as made:
        for done, (name, content) in enumerate(source.files):
            progress(done, source.total)
            written += len(content)
            if largest is not None and written > largest:
                raise DataError(f"{source.what} has more than {largest:,} bytes, which images of its size cannot have.")
            _write(made / name, name, content, source)
        if not written:
            raise DataError(f"{source.what} has no image with a label.")
    progress(source.total, source.total)


def _write(file: Path, name: str, content: bytes, source: Source) -> None:
    """Raises: DataError for a name that the source has twice, or that is no valid file name."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "xb") as new:
            new.write(content)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG):
            raise
        raise DataError(
            f"{source.what} has {one_line(name, 100)!r}, which cannot be written: {error.strerror}. Extract it with "
            f"another program, without that file."
        ) from None


def check_new(folder: Path) -> Path:
    """The folder as an absolute path.

    Raises: DataError if it is not empty, or is the current one.
    """
    folder = Path(os.path.abspath(folder))
    if folder == Path.cwd() or (folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))):
        raise DataError(f"{str(folder)!r} is not new. Use a folder that is new or empty, and not the current one.")
    return folder


def _read(paths: Sequence[Path], label_column: str | None, tell: Tell) -> Source:
    found = [_recognized(path) for path in paths]
    first, kinds = found[0], {each.kind for each in found}
    files = [file for each in found for file in each.files]
    if len(kinds) > 1 or (len(found) > 1 and first.kind in ("zip", "saved")):
        raise DataError("Several sources must be shards of one data set: tar, Parquet or Arrow files.")
    if first.kind in ("saved", "parquet", "arrow"):
        return tables.read(replace(first, files=tuple(files)), label_column, tell)
    if first.kind == "tar" and shards.is_shard(files[0], label_column):
        return shards.read(files, label_column, tell)
    if len(files) > 1:
        raise DataError(
            f"{str(files[0])!r} is not a WebDataset shard: no image in it has a label beside it. "
            f"Unpack one archive at a time."
        )
    if label_column is not None:
        raise DataError(f"{str(files[0])!r} has a tree of files and no columns. Remove --label-column.")
    return archives.tree(files[0], tell)


def _recognized(path: Path) -> Recognized:
    if not path.exists():
        raise DataError(f"{missing(path)} {KNOWN}")
    found = recognize(path)
    if found is None:
        raise DataError(foreign(path) or f"{str(path)!r} cannot be unpacked. {KNOWN}")
    return found
