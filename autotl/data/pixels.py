"""The pixel store: every image is decoded once for all inputs, and cached for all studies."""

import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from threading import Lock, RLock

import numpy as np
import PIL
from PIL.Image import Image

from autotl.data import copies, images
from autotl.data.images import UnreadableImage
from autotl.data.rows import FORMAT, DamagedRows, RowStore
from autotl.errors import DataError
from autotl.files import read_regular
from autotl.plan import Input, digest

LARGEST_FILE = 1 << 30
"""Bytes. No image with a permitted number of pixels is larger, but a video among the photos may be."""

_HUGE = 1 << 25
"""Pixels. Larger images are decoded one at a time, because several of the largest would fill the memory."""
_one_huge_image = Lock()
_CHUNK_BYTES = 64_000_000

Progress = Callable[[int, int], None]
"""Called with the number of finished files and their total."""


@dataclass(frozen=True)
class Seen:
    """The result of reading a file. `width` and `height` are from the header: of the image before it is turned."""

    sha: str
    width: int
    height: int


class PixelStore:
    """Prepared pixels, [3, S, S] uint8 by image hash, in one store for each input.

    `decoded` counts the images that this object has decoded. `note` is called once for each message to the user.
    """

    def __init__(self, cache_dir: Path, note: Callable[[str], None] = lambda text: None) -> None:
        self.folder = Path(cache_dir) / "pixels"
        self.note = cache(note)
        self.decoded = 0
        self.locate: Callable[[Collection[str]], Mapping[str, Path]] = lambda shas: {}
        """Returns the paths of images, by their hashes, to decode them again."""
        self._stores: dict[str, RowStore] = {}
        key = digest({"pictures": copies.FORMAT, **_decoded()})
        self.pictures_store = RowStore(Path(cache_dir) / "pictures" / key, (copies.PICTURE.itemsize,), np.uint8)
        self._compared: set[RowStore] = set()
        self._mending = RLock()

    def rows(self, input: Input) -> RowStore:
        """The store for the pixels of `input`."""
        key = digest({**input.of_pixels, **_decoded()})
        if key not in self._stores:
            self._stores[key] = RowStore(self.folder / key, (3, input.size, input.size), np.uint8)
        return self._stores[key]

    def pictures(self, files: Iterable[tuple[str, Path]]) -> np.ndarray:
        """The stored [N] `copies.PICTURE` of `files`, hashes with paths, that have been read before.

        Raises: DataError as `add`.
        """
        known = list(files)
        shas = [sha for sha, _ in known]
        try:
            rows = self.pictures_store.read(shas)
        except DamagedRows as error:
            self.note(error.note)
            self.add(known, [])
            rows = self.pictures_store.read(shas)
        return rows.view(copies.PICTURE).reshape(-1)

    def read(self, input: Input, shas: Sequence[str]) -> np.ndarray:
        """The pixels of images, [N, 3, S, S] uint8. Damaged rows are decoded again.

        Raises: DataError for an image that must be decoded again and no longer has its hash.
        """
        store = self.rows(input)
        found = self._read(store, input, shas)
        if store not in self._compared and shas:
            with self._mending:
                self._compared.add(store)
                again = self._decoded_again(shas[0], input)
                if again is not None and not np.array_equal(again, found[0]):
                    self._make_anew(store, input)
                    found = store.read(shas)
        return found

    def _read(self, store: RowStore, input: Input, shas: Sequence[str]) -> np.ndarray:
        try:
            return store.read(shas)
        except (DamagedRows, KeyError) as error:  # KeyError: another thread has just found the row damaged
            with self._mending:
                if isinstance(error, DamagedRows):
                    self.note(error.note)
                self.add(self.locate(store.missing(shas)).items(), [input])
                if store.missing(shas):
                    raise
            return store.read(shas)

    def _decoded_again(self, sha: str, input: Input) -> np.ndarray | None:
        """An image's pixels as they are decoded now; None if its file no longer exists."""
        path = self.locate([sha]).get(sha)
        try:
            data = read_file(path) if path else b""
            if hashlib.sha256(data).hexdigest() == sha:
                return images.fit(images.upright(images.open_image(data)), input)
        except UnreadableImage:
            pass
        return None

    def _make_anew(self, store: RowStore, input: Input) -> None:
        """Fill a store again because a decoder has changed without a new version."""
        self.note(
            f"Warning: images decode to other pixels than in the cache {str(store.folder)!r}. The cache is rebuilt."
        )
        files = self.locate(store.keys())
        store.clear()
        self.add(files.items(), [input])

    def add(self, files: Iterable[tuple[str, Path]], inputs: Sequence[Input], progress: Progress | None = None) -> None:
        """Decode those of `files`, hashes with paths, whose pixels are missing for some input.

        Raises: DataError for a file that no longer has its hash.
        """
        known = dict(files)
        lacking = {sha for store in self._wanted(inputs) for sha in store.missing(known)}
        wanted = {sha: path for sha, path in known.items() if sha in lacking}
        found = self.look(list(wanted.values()), inputs, progress)
        for (sha, path), seen in zip(wanted.items(), found, strict=True):
            if isinstance(seen, str) or seen.sha != sha:
                how = seen if isinstance(seen, str) else "its contents differ"
                raise DataError(
                    f"{str(path)!r} has changed since the data was opened: {how}. Do not change the data "
                    f"during a search, and run the search again."
                )

    def _wanted(self, inputs: Sequence[Input]) -> "dict[RowStore, Callable[[Image], np.ndarray]]":
        """The stores that each image has a row in, with the function that makes the row from the upright image."""
        return {self.pictures_store: copies.picture} | {
            self.rows(input): partial(images.fit, input=input) for input in inputs
        }

    def look(
        self, paths: Sequence[Path], inputs: Sequence[Input], progress: Progress | None = None
    ) -> list[Seen | str]:
        """Read each file once: hash it, and decode it if its pixels are missing for some input.

        An unreadable file gives the reason as a string.
        """
        stores = self._wanted(inputs)
        run = _Pass(stores)
        chunk = max(16, min(1024, _CHUNK_BYTES // max(1, sum(map(_row_bytes, stores)))))
        found: list[Seen | str] = []
        with images.without_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
            for start in range(0, len(paths), chunk):
                for store in stores:
                    store.refresh()
                for seen in pool.map(run.look, paths[start : start + chunk]):
                    found.append(seen)
                    if progress:
                        progress(len(found), len(paths))
                run.store()
        self.decoded += run.decoded
        # A file may have been read after its unreadable duplicate, or at the same time.
        return [run.unreadable.get(seen.sha, seen) if isinstance(seen, Seen) else seen for seen in found]


class _Pass:
    """The shared state of the threads that read files. `fresh` has the rows that are not stored yet."""

    def __init__(self, stores: Mapping[RowStore, Callable[[Image], np.ndarray]]) -> None:
        self.stores = stores
        self.decoded = 0
        self.unreadable: dict[str, str] = {}
        self.fresh: dict[RowStore, dict[str, np.ndarray]] = {store: {} for store in stores}
        self._claimed: set[str] = set()
        self._lock = Lock()

    def look(self, path: Path) -> Seen | str:
        try:
            data = read_file(path)
            image = images.open_image(data)
        except UnreadableImage as error:
            return str(error)
        seen = Seen(hashlib.sha256(data).hexdigest(), *image.size)
        if self._claim(seen.sha):
            self._decode(seen.sha, image)
        return seen

    def store(self) -> None:
        for store, rows in self.fresh.items():
            if rows:
                store.append(list(rows), np.stack(list(rows.values())))
                rows.clear()

    def _claim(self, sha: str) -> bool:
        """Whether this thread is the first with this hash, so that duplicates are decoded once."""
        with self._lock:
            first = sha not in self._claimed
            self._claimed.add(sha)
        return first

    def _decode(self, sha: str, image: Image) -> None:
        lacking = [store for store in self.stores if sha not in store]
        if not lacking:
            return
        with alone_if_huge(image):
            self._fill(sha, image, lacking)

    def _fill(self, sha: str, image: Image, lacking: Sequence[RowStore]) -> None:
        try:
            image = images.upright(image)
        except UnreadableImage as error:
            self.unreadable[sha] = str(error)
            return
        for store in lacking:
            self.fresh[store][sha] = self.stores[store](image)
        with self._lock:
            self.decoded += 1


def alone_if_huge(image: Image) -> AbstractContextManager[object]:
    """The context in which a thread decodes an image."""
    return _one_huge_image if image.width * image.height > _HUGE else nullcontext()


def read_file(path: Path) -> bytes:
    """Raises: UnreadableImage for a file that is too large for an image, or cannot be read."""
    try:
        return read_regular(path, LARGEST_FILE)
    except OSError as error:
        raise UnreadableImage(f"cannot be read: {error.strerror or error}") from None


def _decoded() -> dict[str, object]:
    """The versions that the rows of every store depend on."""
    return {"decoder": images.DECODER, "pillow": PIL.__version__, "rows": FORMAT, **images.plugins()}


def _row_bytes(store: RowStore) -> int:
    return int(np.prod(store.shape))
