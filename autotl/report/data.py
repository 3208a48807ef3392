"""The report on a data set before any search, as data and as lines for people."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from autotl.contracts import UNEQUAL
from autotl.data.listing import Columns, some
from autotl.errors import AutotlError
from autotl.plan import NearCopies, Record
from autotl.report.checks import Check

if TYPE_CHECKING:
    from autotl.data.dataset import Dataset
    from autotl.data.listing import Listing
    from autotl.data.pixels import Progress

SHOWN = 12
"""Of more classes than this, only the largest and the smallest are shown."""
REASONS = 5
"""Number of reasons for excluded files that are shown, the most frequent ones."""


class Problem(Record):
    """An excluded file and the reason."""

    path: str
    reason: str


class Found(Record):
    """How the files were interpreted. Paths are relative to the data's folder."""

    data: str
    layout: str
    read_as: dict[str, str]
    """Folders with their splits, or a manifest's columns with their meanings."""
    files: int
    unlabelled: tuple[str, ...]
    empty: tuple[str, ...]
    litter: tuple[str, ...]


class Contents(Record):
    """Properties of the images, and how a search would split them with seed 0."""

    images: int
    problems: tuple[Problem, ...]
    classes: dict[str, dict[str, int]]
    """For each class the number of images in each split."""
    splits: dict[str, int]
    width: tuple[int, int, int]
    """The smallest, the median and the largest, in px."""
    height: tuple[int, int, int]
    cut_away: float
    """The share of its area that a centre crop to a square cuts away from the median image."""
    deep: int
    """Number of grey images with more than 8 bits."""
    bits: int | None
    """Bits that their values use; None if there are no such images."""
    bits_of_median: int | None
    """Bits that the values of the median one use: if fewer, most images are darker than necessary."""
    same: tuple[tuple[str, ...], ...]
    """Sets of images with the same picture."""
    near: tuple[tuple[str, str], ...]
    """Pairs of near-copies."""
    near_apart: int
    """Number of images with a near-copy in another split."""
    groups: int
    units: int
    """Number of independent units: images that share a picture or a group count once."""
    notes: tuple[str, ...]
    """Further notes on how the files were read, and on what the splits lack."""


class DataReport(Record):
    """The report on a data set; `error` says why the rest is missing, and what to do."""

    found: Found | None = None
    contents: Contents | None = None
    error: str | None = None


def report(
    data: Path, columns: Columns, near_copies: NearCopies, cache_dir: Path, progress: "Progress | None" = None
) -> DataReport:
    """Read every image of a folder or a manifest; decoded images are kept for a search."""
    from autotl.data import index
    from autotl.data.dataset import open_dataset
    from autotl.data.pixels import PixelStore

    found: Found | None = None
    try:
        found = _found(data, index.find(data, columns))
        dataset = open_dataset(
            data,
            seed=0,
            inputs=[],
            pixels=PixelStore(cache_dir),
            columns=columns,
            near_copies=near_copies,
            progress=progress,
        )
    except AutotlError as error:
        return DataReport(found=found, error=str(error))
    return DataReport(found=found, contents=_contents(dataset))


def _found(data: Path, listing: "Listing") -> Found:
    return Found(
        data=str(data),
        layout=listing.layout,
        read_as=dict(listing.read_as),
        files=len(listing.files),
        unlabelled=listing.unlabelled,
        empty=listing.empty,
        litter=listing.litter,
    )


def _contents(dataset: "Dataset") -> Contents:
    from autotl.data.images import depth
    from autotl.data.split import SPLITS

    classes = {name: {str(split): counts[split] for split in SPLITS} for name, counts in dataset.counts().items()}
    peaks = [image.peak for image in dataset.images if image.peak]
    return Contents(
        images=len(dataset.images),
        problems=tuple(Problem(path=problem.path, reason=problem.reason) for problem in dataset.problems),
        classes=classes,
        splits={split: sum(counts[split] for counts in classes.values()) for split in SPLITS},
        width=_range([image.width for image in dataset.images]),
        height=_range([image.height for image in dataset.images]),
        cut_away=dataset.shapes.cut_away,
        deep=len(peaks),
        bits=dataset.shapes.bits if peaks else None,
        bits_of_median=depth(int(median(peaks))) if peaks else None,
        same=dataset.same,
        near=dataset.near,
        near_apart=len(dataset.near_apart),
        groups=len({image.group for image in dataset.images if image.group is not None}),
        units=len(set(dataset.units(*SPLITS).tolist())),
        notes=(*dataset.listing.said(), *dataset.gaps),
    )


def _range(values: Sequence[int]) -> tuple[int, int, int]:
    return min(values), int(median(values)), max(values)


def checks(report: DataReport) -> Iterator[Check]:
    """The report as lines, with advice where the user should act."""
    if report.found:
        yield from _of_files(report.found)
    if report.contents:
        yield from _of_images(report.contents)
    if report.error:
        yield Check("error", report.error, "a search stops with the same error; fix it first", wrong=True)


def _of_files(found: Found) -> Iterator[Check]:
    read_as = ", ".join(f"{name} is {what}" for name, what in found.read_as.items())
    yield Check("layout", f"{found.layout}{f': {read_as}' if read_as else ''}")
    yield Check("files", f"{found.files:,} with a label")
    if found.unlabelled:
        yield Check("without a label", f"{len(found.unlabelled):,}: {some(found.unlabelled)}", "not used")
    if found.empty:
        yield Check("empty folders", some(found.empty), "add images, or remove them")
    if found.litter:
        yield Check("ignored", f"{len(found.litter):,}: {some(found.litter)}")


def _of_images(contents: Contents) -> Iterator[Check]:
    yield Check("images", f"{contents.images:,} can be used")
    if contents.problems:
        reasons = Counter(problem.reason.partition(" as '")[0] for problem in contents.problems)
        often = reasons.most_common(REASONS)
        for reason, count in often:
            first = next(each.path for each in contents.problems if each.reason.startswith(reason))
            yield Check("excluded", f"{count:,}: {reason}", f"such as {first}")
        if others := len(contents.problems) - sum(count for _, count in often):
            yield Check("excluded", f"{others:,} for other reasons", "--json lists them all")
    yield from _of_classes(contents)
    yield from _of_sizes(contents)
    if contents.same:
        count, plural = sum(map(len, contents.same)), "picture" if len(contents.same) == 1 else "pictures"
        yield Check("same picture", f"{count:,} images show {len(contents.same):,} {plural}", _such_as(contents.same))
    if contents.near:
        count = len({path for pair in contents.near for path in pair})
        yield Check("near-copies", f"{count:,} images are near-copies of another one", _such_as(contents.near))
    if contents.near_apart:
        yield Check(
            "near-copies apart",
            f"{contents.near_apart:,} images have a near-copy in another split, so results are optimistic",
            "put them into one group, in a manifest",
        )
    if contents.groups:
        yield Check("groups", f"{contents.groups:,}, each in one split")
    if contents.units < contents.images:
        yield Check(
            "independent",
            f"{contents.units:,} of {contents.images:,} images; the others share a picture or a group with these",
        )
    yield Check("splits", ", ".join(f"{split} {count:,}" for split, count in contents.splits.items() if count))
    for note in contents.notes:
        yield Check("note", note)


def _of_classes(contents: Contents) -> Iterator[Check]:
    totals = {name: sum(counts.values()) for name, counts in contents.classes.items()}
    ranked = sorted(totals, key=lambda name: (-totals[name], name))
    if len(ranked) > SHOWN:
        names = [*ranked[: SHOWN // 2], *ranked[-SHOWN // 2 :]]
        shown = ", ".join(f"'{name}' {totals[name]:,}" for name in names)
        yield Check("classes", f"{len(ranked):,}; images of the largest and the smallest: {shown}")
    else:
        shown = ", ".join(f"'{name}' {totals[name]:,}" for name in ranked)
        yield Check("classes", f"{len(ranked)}; images of each: {shown}")
    largest, smallest = totals[ranked[0]], totals[ranked[-1]]
    if largest > UNEQUAL * smallest:
        share = largest / contents.images
        yield Check(
            "imbalanced classes",
            f"{ranked[0]!r} has {largest / smallest:.3g} times the images of {ranked[-1]!r}; always predicting "
            f"{ranked[0]!r} gives an accuracy of {share:.1%}",
            "search with --metric balanced-accuracy",
        )


def _of_sizes(contents: Contents) -> Iterator[Check]:
    for what, (low, middle, high) in (("width", contents.width), ("height", contents.height)):
        yield Check(what, f"{low:,} px" if low == high else f"{low:,} to {high:,} px, median {middle:,} px")
    if contents.cut_away >= 0.005:
        yield Check("cropping", f"a square crop removes {contents.cut_away:.0%} of the median image")
    if contents.bits and contents.bits_of_median:
        darker = contents.bits_of_median < contents.bits
        of_median = f", those of the median one {contents.bits_of_median}" * darker
        yield Check(
            "bit depth",
            f"{contents.deep:,} grey images of more than 8 bits; their values use {contents.bits}{of_median}",
            "the brightest train image sets the scale of all images: check that it is not faulty" * darker,
        )


def _such_as(paths: Sequence[Sequence[str]]) -> str:
    return f"such as {some(paths[0])}"
