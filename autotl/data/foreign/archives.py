"""Reading zip and tar archives: their members one by one, and an archive of a tree of images.

Archives are not trusted. Nothing is extracted by name: regular members are read, and the caller writes them.
"""

import lzma
import stat
import sys
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from autotl.data.foreign.samples import IMAGE_SUFFIXES, Source, Tell
from autotl.data.names import is_litter
from autotl.data.pixels import LARGEST_FILE
from autotl.errors import DataError, reason

RATIO, FREE = 200, 1 << 30
"""An archive may grow to this many times its size, or to this many bytes; images are compressed already."""


@dataclass(frozen=True)
class Member:
    """A regular file of an archive. It can be read until the next member is requested."""

    name: str
    size: int
    read: Callable[[], bytes]


def most(size: int) -> int:
    """The most bytes that an archive of this size may contain."""
    return max(FREE, RATIO * size)


def members(file: Path) -> Iterator[Member | str]:
    """The members of a zip or tar archive in order: regular files, and the names of links, devices and the like.

    Raises: DataError for an archive that is damaged or grows too large, before more of it is read.
    """
    with _reading(file):
        total, largest = 0, most(file.stat().st_size)
        for member in _zip(file) if file.name.lower().endswith(".zip") else _tar(file):
            if isinstance(member, Member):
                total += member.size
                if total > largest:
                    raise DataError(
                        f"{str(file)!r} declares contents of more than {RATIO} times its own size, which images cannot "
                        f"have. Do not trust this archive."
                    )
            yield member


def tree(file: Path, tell: Tell) -> Source:
    """The files of an archive at their paths, without top folders that all of them share.

    Hidden files and litter are skipped, as a search ignores them.

    Raises: DataError for paths that lead out of the folder, and if there are no images.
    """
    places: list[PurePosixPath] = []
    links = 0
    for member in members(file):
        place = _place(member if isinstance(member, str) else member.name, file)
        if place and isinstance(member, str):
            links += 1
        elif place:
            places.append(place)
    if not any(place.suffix.lower() in IMAGE_SUFFIXES for place in places):
        raise DataError(f"{str(file)!r} has no image files.{_instead(places)}")
    if links:
        tell(f"skipped: {links:,} links or devices")
    return Source(file.name, len(places), _files(file, _shared(places)), file.stat().st_size)


def _files(file: Path, shared: int) -> Iterator[tuple[str, bytes]]:
    for member in members(file):
        if isinstance(member, Member) and (place := _place(member.name, file)):
            yield "/".join(place.parts[shared:]), member.read()


def _place(name: str, file: Path) -> PurePosixPath | None:
    """The path of a member; None for litter."""
    place = PurePosixPath(name)
    if place.is_absolute() or ".." in place.parts or "\0" in name:
        raise DataError(f"{str(file)!r} has {name!r}, which leads out of the folder. Do not trust this archive.")
    litter = (part.startswith(".") or is_litter(part) for part in place.parts)
    return None if not place.parts or any(litter) else place


def _shared(places: Sequence[PurePosixPath]) -> int:
    """How many top folders all paths share; a folder that might be a class is kept."""
    shared = 0
    while len({place.parts[shared] for place in places}) == 1 and all(
        len(place.parts) > shared + 2 for place in places
    ):
        shared += 1
    return shared


def _instead(places: Sequence[PurePosixPath]) -> str:
    inner = [str(place) for place in places if place.suffix in (".zip", ".tar", ".gz", ".tgz", ".parquet")]
    kinds = Counter(place.suffix for place in places).most_common(3)
    if inner:
        return f" It has {inner[0]!r}: extract that, and unpack it."
    return f" It has {', '.join(f'{count:,} of {suffix!r}' for suffix, count in kinds)}." if kinds else " It is empty."


def _zip(file: Path) -> Iterator[Member | str]:
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            name = info.filename.replace("\\", "/")  # as some Windows programs write it
            if name.endswith("/"):
                continue
            if stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG):
                yield Member(name, info.file_size, _reader(file, name, info.file_size, partial(archive.read, info)))
            else:
                yield name


def _tar(file: Path) -> Iterator[Member | str]:
    with tarfile.open(file, "r|*") as archive:
        while (info := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined] # they would fill the memory
            if info.isreg():
                content = archive.extractfile(info)
                assert content is not None
                yield Member(info.name, info.size, _reader(file, info.name, info.size, content.read))
            elif not info.isdir():
                yield info.name


def _reader(file: Path, name: str, size: int, read: Callable[[], bytes]) -> Callable[[], bytes]:
    def checked() -> bytes:
        if size > LARGEST_FILE:
            raise DataError(
                f"{name!r} in {str(file)!r} is too large: it has {size:,} bytes, allowed are {LARGEST_FILE:,}."
            )
        with _reading(file):
            return read()

    return checked


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Turns the errors of damaged and unknown archives into DataErrors."""
    try:
        yield
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError) as error:
        version = ".".join(map(str, sys.version_info[:2]))
        zstd = file.suffix in (".zst", ".tzst") and sys.version_info < (3, 14)
        raise DataError(
            f"{str(file)!r} is compressed by zstd, which Python {version} cannot read. Decompress it first: unzstd FILE"
            if zstd
            else f"{str(file)!r} cannot be read: {reason(error)}. Download it again."
        ) from None
    except (NotImplementedError, RuntimeError) as error:  # zipfile's, for passwords and rare compressions
        raise DataError(
            f"{str(file)!r} cannot be read: {reason(error)}. Extract it with the program that made it."
        ) from None
