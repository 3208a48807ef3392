"""A data set ready for a study: its images, their splits, and the files that were excluded.

Only this module knows the labels of the test split, and only `Dataset.open_test` returns them.
"""

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

import numpy as np
from pydantic import BaseModel

from autotl.contracts import Shapes
from autotl.data import copies, index
from autotl.data.listing import BY_NAME, Columns, Found, Listing
from autotl.data.names import one_form
from autotl.data.pixels import PixelStore, Progress
from autotl.data.shapes import shapes_of
from autotl.data.split import LEAST_EARLY_STOP, SPLITS, Member, Split, assign, divisions, unit_numbers
from autotl.errors import DataError, reason
from autotl.files import append_line, write
from autotl.plan import Input, NearCopies, digest

_SPLIT_TABLE = Path("data/split.csv")
PROBLEM_TABLE = Path("data/problems.csv")
_KNOWN: dict[str, Split] = {split: split for split in SPLITS}


class Opening(BaseModel):
    """A line of the log of test openings."""

    time: str
    plan: str
    """The hash of the plan that was tested."""
    trials: int
    """How many trials it was chosen from."""
    fingerprint: str
    images: int
    use: str = ""
    """What the labels were used for, if not for the test at the end of a search."""


def record_opening(log: Path, *, plan: str, trials: int, fingerprint: str, images: int, use: str = "") -> None:
    """Add an `Opening` to the log of test openings."""
    time = datetime.now(UTC).isoformat(timespec="seconds")
    opening = Opening(time=time, plan=plan, trials=trials, fingerprint=fingerprint, images=images, use=use)
    append_line(log, opening.model_dump_json(exclude_defaults=True))


class SealedTest(RuntimeError):
    """The code asked for labels of the test split without opening it: a bug."""


@dataclass(frozen=True)
class Image:
    """An image of the data set; `path` is relative to its root, with forward slashes.

    It has no label: labels are returned by split, so that those of the test split stay sealed.
    `width` and `height` are from the header: of the image before it is turned upright.
    """

    path: str
    sha: str
    split: Split
    group: str | None
    width: int
    height: int
    peak: int
    """The largest value of a grey image of more than 8 bits, else 0."""


@dataclass(frozen=True)
class Problem:
    """A file that was excluded, and why."""

    path: str
    reason: str


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images sorted by path, each in one split. `notes` are what a user should know about them.

    Two rows of `images` may have the same hash, because copies within a class and a split are kept.
    """

    root: Path
    classes: tuple[str, ...]
    images: tuple[Image, ...]
    problems: tuple[Problem, ...]
    fingerprint: str
    seed: int
    notes: tuple[str, ...]
    gaps: tuple[str, ...]
    """The notes on what the splits lack."""
    listing: Listing
    """How the files were found."""
    same: tuple[tuple[str, ...], ...]
    """The paths of the copies of each picture that has several."""
    near: tuple[tuple[str, str], ...]
    """The paths of pairs of near-copies; the closest come first."""
    _labels: np.ndarray = field(repr=False)
    """The class numbers of `images`, [N] int64."""
    _units: np.ndarray = field(repr=False)
    """The unit numbers of `images`, [N] int64."""

    def of(self, *splits: Split) -> list[Image]:
        """The images of these splits, in the order of `images`; `shas` and `labels` have the same order."""
        return [self.images[at] for at in self._at(splits)]

    def shas(self, *splits: Split) -> list[str]:
        return [image.sha for image in self.of(*splits)]

    def files(self, *splits: Split) -> list[tuple[str, Path]]:
        """Hashes and paths of the files, as `PixelStore.add` takes them."""
        return [(image.sha, self.root / image.path) for image in self.of(*splits)]

    def locate(self, shas: Collection[str]) -> dict[str, Path]:
        """The paths of images, by their hashes."""
        wanted = set(shas)
        return {image.sha: self.root / image.path for image in self.images if image.sha in wanted}

    def labels(self, *splits: Split) -> np.ndarray:
        """The class numbers of these splits, [N] int64.

        Raises: SealedTest for the test split.
        """
        if "test" in splits:
            raise SealedTest("The labels of the test split are sealed; `open_test` opens them and logs the opening.")
        return self._labels[self._at(splits)]

    def units(self, *splits: Split) -> np.ndarray:
        """The unit number of each image of these splits, [N] int64. Images of one unit, copies of each other or of one
        group, are always in one split and count as one observation in intervals."""
        return self._units[self._at(splits)]

    def independent(self, split: Split) -> int:
        """How many units a split has: as many independent observations."""
        return len(np.unique(self.units(split)))

    def open_test(self, log: Path, *, plan: str, trials: int) -> np.ndarray:
        """The class numbers of the test split, [N] int64; first the opening is recorded as a line of `log`.

        `plan` is the hash of the plan to be tested, `trials` how many trials it was chosen from.
        """
        at = self._at(["test"])
        record_opening(log, plan=plan, trials=trials, fingerprint=self.fingerprint, images=len(at))
        return self._labels[at]

    @property
    def divisible(self) -> bool:
        """Whether `val` may be drawn again: not if the user chose its images."""
        return all(found.split != "val" for found in self.listing.files)

    def divisions(self) -> Iterator["Dataset"]:
        """The same images with further divisions of those outside the test split, as numbered from 1 in `DataRef`."""
        members = [
            Member(image.sha, self.classes[label], image.split, picture=unit)
            for image, label, unit in zip(self.images, self._labels, self._units.tolist(), strict=True)
        ]
        for splits in divisions(members, seed=self.seed):
            pairs = zip(self.images, splits, strict=True)
            images = (image if image.split == split else replace(image, split=split) for image, split in pairs)
            yield replace(self, images=tuple(images))

    @cached_property
    def near_apart(self) -> frozenset[str]:
        """The paths of images that have a near-copy in another split."""
        split_of = {image.path: image.split for image in self.images}
        return frozenset(path for pair in self.near if len({split_of[each] for each in pair}) > 1 for path in pair)

    @cached_property
    def shapes(self) -> Shapes:
        """The shapes of the train images."""
        train = self.of("train")
        return shapes_of([(image.width, image.height) for image in train], [image.peak for image in train])

    def counts(self) -> dict[str, dict[Split, int]]:
        """How many images each class has in each split."""
        found = Counter(zip(self._labels.tolist(), (image.split for image in self.images), strict=True))
        return {name: {split: found[number, split] for split in SPLITS} for number, name in enumerate(self.classes)}

    def counts_in(self, split: Split) -> list[int]:
        """How many images of a split each class has, in the order of `classes`."""
        return [by_split[split] for by_split in self.counts().values()]

    def write(self, folder: Path) -> None:
        """Write `data/split.csv` and `data/problems.csv` below the study's folder."""
        labels = [self.classes[number] for number in self._labels]
        _write_table(
            folder / _SPLIT_TABLE,
            ("path", "sha", "label", "split", "group"),
            [
                (image.path, image.sha, label, image.split, image.group or "")
                for image, label in zip(self.images, labels, strict=True)
            ],
        )
        _write_table(
            folder / PROBLEM_TABLE,
            ("path", "reason"),
            [(problem.path, problem.reason) for problem in self.problems],
        )

    def _at(self, splits: Sequence[Split]) -> list[int]:
        """Positions in `images`."""
        unknown = set(splits) - set(SPLITS)
        if unknown or not splits:
            raise ValueError(f"name one or more of {SPLITS}, not {splits}")
        return [at for at, image in enumerate(self.images) if image.split in splits]


def open_dataset(
    path: Path,
    *,
    seed: int,
    inputs: Sequence[Input],
    pixels: PixelStore,
    columns: Columns = BY_NAME,
    previous: Mapping[str, Split] | None = None,
    near_copies: NearCopies = "together",
    progress: Progress | None = None,
) -> Dataset:
    """Read a folder or a manifest, put its pixels for `inputs` into the store, and split it.

    `previous` is the stored split of a study (`read_split`): its images keep their splits. `near_copies` sets whether
    near-copies are kept in one split, as copies are.

    Raises: DataError, in one line.
    """
    listing = index.find(path, columns)
    files, unreadable = _read(listing, pixels, inputs, progress)
    files, contradictions = _exclude(files, _contradiction(files))
    files, leaks = _exclude(files, _leak(files))
    pairs = _near_copies(listing, files, pixels)
    near_leaks: list[Problem] = []
    if near_copies == "together":
        files, near_leaks = _exclude(files, _near_leak(pairs, previous or {}))
    problems = sorted([*unreadable, *contradictions, *leaks, *near_leaks], key=lambda problem: problem.path)
    _require_usable(listing, files, problems)
    at = {file: number for number, file in enumerate(files)}
    near = [(at[one], at[other]) for one, other in pairs if one in at and other in at]
    together = _keepable(near, files, previous) if near_copies == "together" else []
    clusters = copies.clusters([file.picture for file in files], together)
    members = [
        Member(file.sha, file.label, file.split, file.group, cluster)
        for file, cluster in zip(files, clusters, strict=True)
    ]
    splits = assign(members, seed=seed, previous=previous)
    apart = [(one, other) for one, other in near if splits[one] != splits[other]]
    gaps = tuple(_gaps(files, splits))
    classes = tuple(sorted({file.label for file in files}))
    counted = (
        (len(unreadable), "could not be read"),
        (len(contradictions), "excluded: the same picture has another label elsewhere"),
        (len(leaks), "excluded: the same picture is in val or test"),
        (len(near_leaks), "excluded: nearly the same picture is in val or test"),
        (len(files) - len({file.picture for file in files}), "are copies of another image in the same split"),
        (len({at for pair in together for at in pair}), "are nearly the same as another one in the same split"),
        (
            len({at for pair in apart for at in pair}),
            "are nearly the same as one in another split, so the measured accuracy is too high; put such images into "
            "one group in a manifest",
        ),
        (_moved(files, splits), "stay in the study's stored split, although they are now in another folder or split"),
    )
    return Dataset(
        root=listing.root,
        classes=classes,
        images=tuple(
            Image(file.path, file.sha, split, file.group, file.width, file.height, file.peak)
            for file, split in zip(files, splits, strict=True)
        ),
        problems=tuple(problems),
        fingerprint=_fingerprint(files, splits),
        seed=seed,
        notes=(
            *listing.notes,
            *(f"{count} of {len(listing.files)} files {what}" for count, what in counted if count),
            *gaps,
        ),
        gaps=gaps,
        listing=listing,
        same=_same(files),
        near=tuple((files[one].path, files[other].path) for one, other in near),
        _labels=_numbers(files, classes),
        _units=unit_numbers(members).astype(np.int64),
    )


def read_split(folder: Path) -> dict[str, Split]:
    """The split by image hash that `Dataset.write` wrote below the study's folder.

    Raises: DataError if it is missing or damaged.
    """
    return {row["sha"]: _KNOWN[row["split"]] for row in stored_split(folder)}


def changes(folder: Path, dataset: Dataset) -> str:
    """A text on what has changed since `Dataset.write` wrote its table below the study's folder.

    Raises: DataError as `read_split`.
    """
    stored = {row["sha"]: row["path"] for row in stored_split(folder)}
    now = {image.sha: image.path for image in dataset.images}
    gone = [path for sha, path in stored.items() if sha not in now]
    new = [path for sha, path in now.items() if sha not in stored]
    changes = [
        f"{len(paths)} {what} ({paths[0]!r}{' and others' if len(paths) > 1 else ''})"
        for paths, what in ((gone, "gone"), (new, "new"))
        if paths
    ]
    return "; ".join(changes) or "other names or labels"


def root_of(data: Path) -> Path:
    """The folder that the paths of the images in `data`, a folder or a manifest, are relative to."""
    return data if data.is_dir() else data.parent


def stored_files(folder: Path, data: Path) -> list[Path]:
    """The existing image files of the split that `Dataset.write` wrote, below the folder or manifest `data`.

    Raises: DataError as `read_split`.
    """
    paths = [root_of(data) / row["path"] for row in stored_split(folder)]
    return [path for path in paths if path.exists()]


def stored_split(folder: Path) -> list[dict[str, str]]:
    """The rows of the table that `Dataset.write` wrote, by column, in the order of its images.

    Raises: DataError as `read_split`.
    """
    path = folder / _SPLIT_TABLE
    try:
        if not path.is_file():
            raise ValueError("the file does not exist")
        text = path.read_bytes().decode(errors="surrogateescape")
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
        for row in rows:
            if not row["path"] or not row["sha"] or row["split"] not in _KNOWN or "\0" in row["path"]:
                raise ValueError(f"a row is {row}")
    except (OSError, KeyError, ValueError, csv.Error) as error:
        raise DataError(f"The stored split {str(path)!r} cannot be read: {reason(error)}. Start a new study.") from None
    return rows


@dataclass(frozen=True, kw_only=True)
class _File(Found):
    """A labelled file that has been read."""

    sha: str
    width: int
    height: int
    picture: str
    """What it shares with files that show the same picture."""
    peak: int


def _read(
    listing: Listing, pixels: PixelStore, inputs: Sequence[Input], progress: Progress | None
) -> tuple[list[_File], list[Problem]]:
    looked = pixels.look([listing.root / found.path for found in listing.files], inputs, progress)
    pairs = list(zip(listing.files, looked, strict=True))
    problems = [Problem(found.path, seen) for found, seen in pairs if isinstance(seen, str)]
    seen_files = [(found, seen) for found, seen in pairs if not isinstance(seen, str)]
    pictures = pixels.pictures([(seen.sha, listing.root / found.path) for found, seen in seen_files])
    rows = zip(seen_files, copies.same(pictures), pictures["peak"].tolist(), strict=True)
    files = [_File(**vars(found), **vars(seen), picture=word, peak=peak) for (found, seen), word, peak in rows]
    return files, problems


def _exclude(files: Sequence[_File], why: Callable[[_File], str | None]) -> tuple[list[_File], list[Problem]]:
    """The files for which `why` gives no reason, and the others as problems."""
    problems = [Problem(file.path, reason) for file in files if (reason := why(file))]
    return [file for file in files if not why(file)], problems


def _contradiction(files: Iterable[_File]) -> Callable[[_File], str | None]:
    """Excludes all copies of a picture that has two labels, because either may be wrong."""
    labels: dict[str, dict[str, str]] = defaultdict(dict)
    for file in files:
        labels[file.picture].setdefault(file.label, file.path)

    def why(file: _File) -> str | None:
        others = [(label, path) for label, path in labels[file.picture].items() if label != file.label]
        return f"the same picture is labelled {others[0][0]!r} as {others[0][1]!r}" if others else None

    return why


def _leak(files: Iterable[_File]) -> Callable[[_File], str | None]:
    """Excludes copies of a picture that is also in a later given split, so that the given test stays complete."""
    latest: dict[str, _File] = {}
    for file in files:
        other = latest.setdefault(file.picture, file)
        if _is_later(file, other):
            latest[file.picture] = file

    def why(file: _File) -> str | None:
        kept = latest[file.picture]
        return f"the same picture is in {kept.split} as {kept.path!r}" if kept.split != file.split else None

    return why


def _same(files: Iterable[_File]) -> tuple[tuple[str, ...], ...]:
    by_picture = defaultdict(list)
    for file in files:
        by_picture[file.picture].append(file.path)
    return tuple(tuple(paths) for paths in by_picture.values() if len(paths) > 1)


_Pair = tuple[_File, _File]


def _near_copies(listing: Listing, files: Sequence[_File], pixels: PixelStore) -> list[_Pair]:
    """Pairs of files that are near-copies; the closest first."""
    pictures = pixels.pictures([(file.sha, listing.root / file.path) for file in files])
    return [(files[one], files[other]) for one, other in copies.near(pictures, [file.label for file in files])]


def _near_leak(pairs: Iterable[_Pair], previous: Mapping[str, Split]) -> Callable[[_File], str | None]:
    """Excludes near-copies of a picture in a later given split, except images that the study has used before."""
    later: dict[_File, _File] = {}
    for one, other in pairs:
        file, kept = (other, one) if _is_later(one, other) else (one, other)
        if file.split != kept.split and file.sha not in previous:
            later.setdefault(file, kept)

    def why(file: _File) -> str | None:
        kept = later.get(file)
        return f"nearly the same picture is in {kept.split} as {kept.path!r}" if kept else None

    return why


def _is_later(file: _File, other: _File) -> bool:
    return SPLITS.index(file.split) > SPLITS.index(other.split)


def _keepable(
    near: Sequence[tuple[int, int]], files: Sequence[_File], previous: Mapping[str, Split] | None
) -> list[tuple[int, int]]:
    """The pairs of near-copies, by position, that can be kept in one split."""

    def fixed(file: _File) -> Split | None:
        if previous is None:
            return file.split
        return previous.get(file.sha, None if file.split == "train" else file.split)

    return copies.keepable(near, [file.label for file in files], [fixed(file) for file in files])


def _require_usable(listing: Listing, files: Sequence[_File], problems: Sequence[Problem]) -> None:
    """Raises: DataError if a given split has no usable image, or a class has none in train."""
    splits = {file.split for file in files}
    classes = {file.label for file in files if file.split == "train"}
    for file in listing.files:
        if file.split not in splits or (file.split == "train" and file.label not in classes):
            reason = next(problem.reason for problem in problems if problem.path == file.path)
            raise DataError(
                f"No image of {file.split} in class {file.label!r} can be used; the first, {file.path!r}: "
                f"{reason}. Fix these images or remove them."
            )


def _fingerprint(files: Iterable[_File], splits: Iterable[Split]) -> str:
    rows = zip(files, splits, strict=True)
    return digest(sorted([one_form(file.path), file.sha, file.label, split] for file, split in rows))


def _numbers(files: Sequence[_File], classes: Sequence[str]) -> np.ndarray:
    number = {label: number for number, label in enumerate(classes)}
    return np.array([number[file.label] for file in files], np.int64)


def _moved(files: Iterable[_File], splits: Iterable[Split]) -> int:
    """How many images have another split in the stored split than the user gives them now."""
    given = {file.split for file in files} - {"train"}
    return sum(
        file.split != split and not given.isdisjoint((file.split, split))
        for file, split in zip(files, splits, strict=True)
    )


def _gaps(files: Iterable[_File], splits: Sequence[Split]) -> list[str]:
    """Notes on what a given or stored split lacks."""
    found = {(file.label, split) for file, split in zip(files, splits, strict=True)}
    labels = sorted({label for label, _ in found})
    notes = []
    for split in ("val", "test"):
        lacking = [label for label in labels if (label, split) not in found]
        if lacking:
            notes.append(f"{split} has no image of {len(lacking)} classes, such as {lacking[0]!r}")
    if "early_stop" not in splits:
        notes.append(f"no early_stop split: it needs {LEAST_EARLY_STOP} images of every class")
    return notes


def _write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    table = io.StringIO(newline="")
    csv.writer(table).writerows([header, *rows])
    write(path, table.getvalue().encode(errors="surrogateescape"))  # file names may be invalid UTF-8
