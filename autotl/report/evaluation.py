"""A model on labelled images that came later: its metrics, its mistakes, and copies of images that it has seen."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from autotl.data import copies, index
from autotl.data.dataset import root_of, stored_split
from autotl.data.listing import BY_NAME, Columns, Found, Listing, some
from autotl.data.pixels import PixelStore, Seen
from autotl.data.split import Split
from autotl.data.stored import Labelled
from autotl.engine import intervals, metrics
from autotl.engine.scale import Scale
from autotl.errors import DataError, PluginError
from autotl.host import Host
from autotl.plan import Record
from autotl.report.page.model import Judged, pairs
from autotl.report.words import in_groups, recalls
from autotl.tracking import predictions
from autotl.tracking.folder import of_bundle
from autotl.tracking.result import OfClass

if TYPE_CHECKING:
    from autotl.export.bundle import Bundle

METRICS = ("accuracy", "balanced-accuracy", "log-loss")
"""Those that are measured besides the study's own."""
MISTAKES = 20
"""How many of the most confident mistakes are listed."""
SHOWN = 10
"""How many rows of a list people see; JSON has all of them."""


class Measured(Record):
    """A metric with its 95 % interval."""

    metric: str
    scale: Scale
    value: float
    low: float | None
    """None, as `high` is, if the images do not give an interval."""
    high: float | None
    images: int
    units: int
    """Number of independent units: images that share a group or a picture count once."""

    def __str__(self) -> str:
        return f"{self.metric} {self.scale.text(self.value)}, {self.scale.interval(self.low, self.high)}"


class Recall(OfClass):
    """A class with the 95 % interval of its recall."""

    low: float
    high: float


class Confused(Record):
    """How many of the images of a class were given another one."""

    true: str
    given: str
    count: int
    images: int


class Mistake(Record):
    """An image that was given another class than its own."""

    path: str
    true: str
    given: str
    probability: float


class Copy(Record):
    """An image that is a copy of an image of the study."""

    path: str
    of: str
    split: Split
    """Where the study has that image."""
    near: bool
    """Whether its pixels are only nearly the same."""


class Unreadable(Record):
    """A file that was not evaluated, and why."""

    path: str
    reason: str


class Evaluation(Record):
    """A model on labelled images that are no part of its study."""

    data: str
    images: int
    metrics: tuple[Measured, ...]
    """The study's own metric first."""
    tested: Measured | None
    """The model's test in its study, for comparison."""
    classes: dict[str, Recall]
    """In the model's order; without classes that have no image here."""
    confused: tuple[Confused, ...]
    """Pairs of classes, the most frequent first."""
    mistakes: tuple[Mistake, ...]
    """The most confident ones first."""
    wrong: int
    copies: tuple[Copy, ...] | None
    """None if the model's study is not known."""
    without_copies: Measured | None
    """The first metric without those images; None if there are none, or if no other image is left."""
    unreadable: tuple[Unreadable, ...]


def evaluate(
    bundle: "Bundle", model: Path, data: Path, host: Host, cache_dir: Path, columns: Columns = BY_NAME
) -> Evaluation:
    """Measure the bundle in the folder `model` on the labelled images in `data`.

    Raises: DataError if there are none, or if they have a class that the model does not know.
    """
    listing = index.find(data, columns)
    _require_known(listing, bundle.classes, data)
    pixels = PixelStore(cache_dir)
    looked = pixels.look([listing.root / found.path for found in listing.files], [])
    seen = [(found, each) for found, each in zip(listing.files, looked, strict=True) if isinstance(each, Seen)]
    answers = list(bundle.predict([listing.root / found.path for found, _ in seen]))
    usable = [at for at, answer in enumerate(answers) if not isinstance(answer, str)]
    reasons = {found.path: each for found, each in zip(listing.files, looked, strict=True) if isinstance(each, str)}
    reasons |= {seen[at][0].path: answer for at, answer in enumerate(answers) if isinstance(answer, str)}
    if not usable:
        raise DataError(f"No image in {str(data)!r} can be evaluated: {next(iter(reasons.values()))}.")
    files = [seen[at][0] for at in usable]
    rows = np.stack([answers[at] for at in usable]).astype(np.float64)
    rows /= rows.sum(1, keepdims=True)  # rows of float32 sum to 1 only nearly
    pictures = pixels.pictures([(seen[at][1].sha, listing.root / seen[at][0].path) for at in usable])
    units = copies.units(copies.same(pictures), (found.group or None for found in files))
    labelled = Labelled(tuple(found.path for found in files), tuple(found.label for found in files), units)
    judged = Judged(labelled, predictions.of(rows), bundle.classes, listing.root)
    test: dict[str, Any] | None = bundle.metrics.get("test")
    measured = tuple(_measured(host, test["metric"] if test else METRICS[0], judged.numbers, rows, units))
    found = _copies(model, pixels, files, [seen[at][1].sha for at in usable], pictures)
    others = np.flatnonzero(~np.isin(labelled.paths, [each.path for each in found or ()]))
    without = None
    if found and len(others):
        again = _measured(host, measured[0].metric, judged.numbers[others], rows[others], units[others])
        without = next(again, None)
    return Evaluation(
        data=str(data),
        images=len(files),
        metrics=measured,
        tested=_tested(test) if test else None,
        classes=dict(_by_class(judged)),
        confused=tuple(Confused(**vars(pair)) for pair in pairs(judged)),
        mistakes=tuple(_mistakes(judged)),
        wrong=int((~judged.right).sum()),
        copies=found,
        without_copies=without,
        unreadable=tuple(Unreadable(path=path, reason=reason) for path, reason in sorted(reasons.items())),
    )


def _tested(test: dict[str, Any]) -> Measured:
    """The test in a bundle's metrics; older bundles do not have all fields."""
    known = {name: test[name] for name in Measured.model_fields if test.get(name) is not None}
    return Measured(**{"scale": Scale(), "low": None, "high": None, "units": test["images"], **known})


def _require_known(listing: Listing, classes: Sequence[str], data: Path) -> None:
    """Raises: DataError."""
    strange = [found for found in listing.files if found.label not in set(classes)]
    if strange:
        names = sorted({found.label for found in strange})
        raise DataError(
            f"{str(data)!r} has {len(strange):,} images of classes that the model does not know: {some(names)}. "
            f"It knows {some(classes)}. Rename those classes, or remove them."
        )


def _measured(host: Host, own: str, labels: np.ndarray, rows: np.ndarray, units: np.ndarray) -> Iterator[Measured]:
    """Metrics, the study's own first; without those that are not defined for these images."""
    for name in dict.fromkeys([own, *METRICS]):
        if name not in host.metrics:
            continue
        entry = host.metrics[name]
        try:
            score = metrics.score(entry, labels, rows, units)
        except PluginError as error:
            if isinstance(error.__cause__, ValueError):
                continue
            raise
        yield Measured(scale=metrics.scale_of(entry), **vars(score))


def _by_class(judged: Judged) -> Iterator[tuple[str, Recall]]:
    for number, own in judged.by_class():
        images, right = len(own), int(judged.right[own].sum())
        low, high = intervals.share_interval(judged.right[own], judged.images.units[own])
        yield (
            judged.classes[number],
            Recall(images=images, right=right, low=min(low, right / images), high=max(high, right / images)),
        )


def _mistakes(judged: Judged) -> Iterator[Mistake]:
    sure = judged.predictions.probabilities
    for at in judged.mistakes()[:MISTAKES]:
        given = judged.classes[int(judged.predictions.classes[at])]
        path, true = judged.images.paths[at], judged.images.labels[at]
        yield Mistake(path=path, true=true, given=given, probability=float(sure[at]))


def _copies(
    model: Path, pixels: PixelStore, files: Sequence[Found], shas: Sequence[str], pictures: np.ndarray
) -> tuple[Copy, ...] | None:
    """Which of the files are copies of images of the model's study.

    An image of the study that was deleted, and whose stored picture too, is recognised by an identical file only.
    """
    study = of_bundle(model)
    definition = study.definition
    if definition is None:
        return None
    rows = stored_split(study.path)
    by_sha = {row["sha"]: row for row in rows}
    root = root_of(Path(definition.data))
    lacking = [root / by_sha[sha]["path"] for sha in pixels.pictures_store.missing(by_sha)]
    pixels.look([path for path in lacking if path.is_file()], [])
    gone = set(pixels.pictures_store.missing(by_sha))
    known = [row for sha, row in by_sha.items() if sha not in gone]
    theirs = pixels.pictures([(row["sha"], root / row["path"]) for row in known])
    by_word = dict(zip(copies.same(theirs), known, strict=True))
    of = {at: (by_sha[sha], False) for at, sha in enumerate(shas) if sha in by_sha}
    for at, word in enumerate(copies.same(pictures)):
        if word in by_word:
            of.setdefault(at, (by_word[word], False))
    labels = [*(found.label for found in files), *(row["label"] for row in known)]
    for one, other in copies.near(np.concatenate([pictures, theirs]), labels):
        if one < len(files) <= other:
            of.setdefault(one, (known[other - len(files)], True))
    return tuple(
        Copy(path=files[at].path, of=row["path"], split=row["split"], near=near)  # type: ignore[arg-type]
        for at, (row, near) in sorted(of.items())
    )


def lines(found: Evaluation) -> Iterator[str]:
    """The evaluation in a few lines, with its lists cut short."""
    first, *others = found.metrics
    yield f"{_capital(str(first))} ({first.images:,} images{in_groups(first.images, first.units)})."
    for other in others:
        yield f"{_capital(str(other))}."
    if found.tested:
        yield f"For comparison, the test of its study: {found.tested} ({found.tested.images:,} images)."
    yield (
        "These images are no part of that sealed test, and this use of them is not recorded. If you choose between "
        "models by such figures, they become optimistic."
    )
    yield from _about_copies(found)
    if found.unreadable:
        each = [f"{file.path}: {file.reason}" for file in found.unreadable]
        yield f"Files that were not evaluated, {len(each):,}: {'; '.join(_short(each))}."
    yield from recalls(found.classes)
    if found.confused:
        each = [f"'{pair.true}' as '{pair.given}' {pair.count:,} of {pair.images:,}" for pair in found.confused]
        yield f"Confused most often: {', '.join(each[:SHOWN])}."
    if found.mistakes:
        yield f"Most confident of {found.wrong:,} mistakes:"
        for wrong in found.mistakes[:SHOWN]:
            yield f"  {wrong.path}: '{wrong.true}', predicted '{wrong.given}' with {wrong.probability:.1%}"


def _about_copies(found: Evaluation) -> Iterator[str]:
    if found.copies is None:
        yield "The study of this model is not known, so nothing shows whether it was trained on some of these images."
    elif found.copies:
        each = [f"{copy.path} ({'nearly ' if copy.near else ''}{copy.of} in {copy.split})" for copy in found.copies]
        without = f" Without them: {found.without_copies}." if found.without_copies else " There are no others."
        yield (
            f"{len(each):,} of {found.images:,} images are copies of images of the study, so these figures are "
            f"optimistic: {', '.join(_short(each))}.{without}"
        )


def _short(each: Sequence[str]) -> list[str]:
    rest = len(each) - SHOWN
    return [*each[:SHOWN], f"{rest:,} more"] if rest > 0 else list(each)


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
