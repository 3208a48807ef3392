"""Archives: their members one after the other, and the tree of images that one holds.

An archive is a stranger's. Nothing is extracted by name: regular members are read, and written by whoever reads them.
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
"""How many times its own size, or how many bytes, an archive may grow to; images are compressed already."""


@dataclass(frozen=True)
class Member:
    """A regular file of an archive. It can be read until the next member is asked for."""

    name: str
    size: int
    read: Callable[[], bytes]


def most(size: int) -> int:
    """How many bytes may come out of so many on disk."""
    return max(FREE, RATIO * size)


def members(file: Path) -> Iterator[Member | str]:
    """What a zip or tar archive holds, in its order: regular files, and the names of links, devices and the like.

    Raises: DataError for one that is damaged or grows too large, before more of it is read.
    """
    with _reading(file):
        total, largest = 0, most(file.stat().st_size)
        for member in _zip(file) if file.name.lower().endswith(".zip") else _tar(file):
            if isinstance(member, Member):
                total += member.size
                if total > largest:
                    raise DataError(
                        f"{str(file)!r} says that it holds more than {RATIO} times its own size: no images are "
                        f"compressed so well."
                    )
            yield member


def tree(file: Path, tell: Tell) -> Source:
    """The files of an archive where they are in it, but for a top folder that all of them share.

    What is hidden or litter is left out, as a search would pass it over.

    Raises: DataError for paths that lead elsewhere, and where there are no images.
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
        raise DataError(f"{str(file)!r} holds no image files.{_instead(places)}")
    if links:
        tell(f"left out: {links:,} links or devices")
    return Source(file.name, len(places), _files(file, _shared(places)), file.stat().st_size)


def _files(file: Path, shared: int) -> Iterator[tuple[str, bytes]]:
    for member in members(file):
        if isinstance(member, Member) and (place := _place(member.name, file)):
            yield "/".join(place.parts[shared:]), member.read()


def _place(name: str, file: Path) -> PurePosixPath | None:
    """Where a member lies, None for litter."""
    place = PurePosixPath(name)
    if place.is_absolute() or ".." in place.parts or "\0" in name:
        raise DataError(f"{str(file)!r} holds {name!r}, which leads out of the folder. Do not trust this archive.")
    litter = (part.startswith(".") or is_litter(part) for part in place.parts)
    return None if not place.parts or any(litter) else place


def _shared(places: Sequence[PurePosixPath]) -> int:
    """How many top folders all share; one that might be a class is kept."""
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
        return f" It holds {inner[0]!r}: extract it, and unpack that."
    return (
        f" It holds {', '.join(f'{count:,} of {suffix!r}' for suffix, count in kinds)}." if kinds else " It is empty."
    )


def _zip(file: Path) -> Iterator[Member | str]:
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            name = info.filename.replace("\\", "/")  # as some programs of Windows write it
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
                f"{name!r} in {str(file)!r} is too large: {size:,} bytes, at most {LARGEST_FILE:,} are read."
            )
        with _reading(file):
            return read()

    return checked


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Within, the errors that damaged and unknown archives raise are DataErrors."""
    try:
        yield
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError) as error:
        version = ".".join(map(str, sys.version_info[:2]))
        zstd = file.suffix in (".zst", ".tzst") and sys.version_info < (3, 14)
        raise DataError(
            f"{str(file)!r} is compressed by zstd, which Python {version} does not read: unzstd it first."
            if zstd
            else f"{str(file)!r} cannot be read: {reason(error)}. Get it again."
        ) from None
    except (NotImplementedError, RuntimeError) as error:  # zipfile's, for passwords and rare compressions
        raise DataError(
            f"{str(file)!r} cannot be read: {reason(error)}. Extract it by the program that made it."
        ) from None
