"""The fifth part of a page: what the model does on labelled images, with its most confident mistakes."""

import base64
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from autotl.data import images
from autotl.data.images import UnreadableImage
from autotl.data.pixels import read_file
from autotl.data.stored import Labelled
from autotl.engine import intervals
from autotl.errors import StudyError
from autotl.plan import BITS
from autotl.report.page.answer import Bar
from autotl.report.page.chart import Axis, Chart, Dot, Series, chart
from autotl.report.page.units import percent
from autotl.tracking.predictions import Predictions

SQUARE = 30
"""The most classes of which a confusion matrix is shown."""
PAIRS = 15
"""How many pairs of confused classes are listed."""
ONCE = 5
"""How many of them if each was confused only once."""
WORST = 12
"""How many classes with the lowest recall are shown; the others are in a list that opens."""
MISTAKES = 24
THUMB = 168
"""The longest side of a thumbnail, in px."""
QUALITY = 72
"""Of its JPEG."""
EVEN = 0.01
"""The largest difference between confidence and accuracy that is not worth mentioning."""
BINS = 10
"""Of equal width, by confidence."""


@dataclass(frozen=True)
class Judged:
    """The predictions for labelled images."""

    images: Labelled
    predictions: Predictions
    classes: tuple[str, ...]
    root: Path
    """The folder that the paths are relative to."""
    bits: int = BITS
    """As in `Input`."""

    def __post_init__(self) -> None:
        """Raises: StudyError if an image has a class that the model does not know."""
        if unknown := sorted(set(self.images.labels).difference(self.classes)):
            raise StudyError(
                f"The stored split has images of class {unknown[0]!r}, which the model does not know, so their "
                "predictions cannot be shown. Rerun the search with the study's own images."
            )

    @cached_property
    def right(self) -> np.ndarray:
        """[N] booleans."""
        return self.numbers == self.predictions.classes

    @cached_property
    def numbers(self) -> np.ndarray:
        """[N] the class numbers of the images."""
        number = {name: at for at, name in enumerate(self.classes)}
        return np.array([number[label] for label in self.images.labels], np.int64)

    def by_class(self) -> Iterator[tuple[int, np.ndarray]]:
        """Each class number that any image has, and the positions of its images."""
        found, counts = np.unique(self.numbers, return_counts=True)
        places = np.split(np.argsort(self.numbers, kind="stable"), counts.cumsum()[:-1])
        return zip(found.tolist(), places, strict=True)

    def mistakes(self) -> list[int]:
        """The positions of the images that were given another class, the most confident first."""
        return sorted(np.flatnonzero(~self.right).tolist(), key=lambda at: -self.predictions.probabilities[at])


@dataclass(frozen=True)
class Cell:
    """How many images of a row's class were given a column's class."""

    count: int
    share: float
    right: bool


@dataclass(frozen=True)
class Row:
    """A row of the confusion matrix: a true class."""

    name: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Pair:
    """Images of a class that were given another one."""

    true: str
    given: str
    count: int
    images: int


@dataclass(frozen=True)
class Recall:
    """A class with its recall."""

    name: str
    right: int
    images: int
    text: str
    bar: Bar


@dataclass(frozen=True)
class Mistake:
    """An image that was given another class than its own."""

    path: str
    true: str
    given: str
    probability: str
    thumb: str
    """A data URI; empty if the file cannot be read any more."""


@dataclass(frozen=True)
class Pictures:
    """What a model does on labelled images."""

    images: int
    summary: str
    matrix: tuple[Row, ...]
    """Empty if there are too many classes."""
    pairs: tuple[Pair, ...]
    worst: tuple[Recall, ...]
    others: tuple[Recall, ...]
    mistakes: tuple[Mistake, ...]
    wrong: int
    calibration: Chart | None
    calibrated: str


def pictures(judged: Judged) -> Pictures:
    right = judged.right
    low, high = intervals.share_interval(right, judged.images.units)
    recalls = list(_recalls(judged))
    shown = len(recalls) if len(recalls) <= WORST + 3 else WORST
    graph, said = _calibration(judged, right)
    return Pictures(
        images=len(right),
        summary=f"{int(right.sum()):,} of {len(right):,} images are given the right class: {right.mean():.1%} "
        f"(95 % confidence interval {low:.1%} to {high:.1%}).",
        matrix=tuple(_matrix(judged)) if len(judged.classes) <= SQUARE else (),
        pairs=tuple(pairs(judged)),
        worst=tuple(recalls[:shown]),
        others=tuple(recalls[shown:]),
        mistakes=tuple(_mistakes(judged)),
        wrong=int((~right).sum()),
        calibration=graph,
        calibrated=said,
    )


def _confusions(judged: Judged) -> Counter[tuple[int, int]]:
    """How many images have a class and were given a class."""
    return Counter(zip(judged.numbers.tolist(), judged.predictions.classes.tolist(), strict=True))


def _matrix(judged: Judged) -> Iterator[Row]:
    counts, total = _confusions(judged), Counter(judged.numbers.tolist())
    several = range(len(judged.classes))
    for true, name in enumerate(judged.classes):
        cells = [
            Cell(counts[true, given], counts[true, given] / (total[true] or 1), true == given) for given in several
        ]
        yield Row(name, tuple(cells))


def pairs(judged: Judged) -> Iterator[Pair]:
    """The classes that are confused, the most frequent pair first."""
    counts, total = _confusions(judged), Counter(judged.numbers.tolist())
    wrong = {pair: count for pair, count in counts.items() if pair[0] != pair[1]}
    order = sorted(wrong, key=lambda pair: (-wrong[pair], -wrong[pair] / total[pair[0]], pair))
    often = sum(count > 1 for count in wrong.values())
    for true, given in order[: min(often, PAIRS) or ONCE]:
        yield Pair(judged.classes[true], judged.classes[given], wrong[true, given], total[true])


def _recalls(judged: Judged) -> Iterator[Recall]:
    """The lowest first."""
    right = judged.right
    for number, at in sorted(judged.by_class(), key=lambda each: (right[each[1]].mean(), each[0])):
        share = float(right[at].mean())
        low, high = intervals.share_interval(right[at], judged.images.units[at])
        text = f"{share:.0%}, between {low:.0%} and {high:.0%}"
        bar = Bar(100 * share, 100 * low, 100 * high)
        yield Recall(judged.classes[number], int(right[at].sum()), len(at), text, bar)


def _mistakes(judged: Judged) -> Iterator[Mistake]:
    sure = judged.predictions.probabilities
    for at in judged.mistakes()[:MISTAKES]:
        path = judged.images.paths[at]
        yield Mistake(
            path=path,
            true=judged.images.labels[at],
            given=judged.classes[int(judged.predictions.classes[at])],
            probability=f"{sure[at]:.0%}",
            thumb=_thumb(judged.root / path, judged.bits),
        )


def _thumb(file: Path, bits: int) -> str:
    """The image as a small JPEG in a data URI; empty if it cannot be read any more."""
    try:
        with images.without_warnings():
            opened = images.open_image(read_file(file))
            opened.draft("RGB", (2 * THUMB, 2 * THUMB))  # decodes large JPEGs at a fraction of their size
            small = images.in_bytes(images.upright(opened), bits)
    except (UnreadableImage, OSError):
        return ""
    scale = THUMB / max(small.size)
    if scale > 1:  # whole pixels, so that small images stay sharp
        small = ImageOps.scale(small, max(1, int(scale)), Image.Resampling.NEAREST)
    else:
        small.thumbnail((THUMB, THUMB))
    data = io.BytesIO()
    small.save(data, "JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"


def _calibration(judged: Judged, right: np.ndarray) -> tuple[Chart | None, str]:
    """The share of right answers by confidence, and the expected calibration error (Naeini et al. 2015)."""
    sure = judged.predictions.probabilities
    bins = np.minimum((sure * BINS).astype(int), BINS - 1)
    error, dots = 0.0, []
    for number in range(BINS):
        at = np.flatnonzero(bins == number)
        if not len(at):
            continue
        share, confidence = float(right[at].mean()), float(sure[at].mean())
        low, high = intervals.wilson(share, len(at))
        error += len(at) / len(right) * abs(share - confidence)
        text = f"{len(at):,} images, on average {percent(confidence)} sure: {percent(share)} right"
        dots.append(Dot(confidence, share, text, 3 + 6 * (len(at) / len(right)) ** 0.5, low=low, high=high))
    excess = float(sure.mean() - right.mean())
    sense = "more sure than it should be" if excess > 0 else "less sure than it could be"
    sense = "about as sure as it should be" if abs(excess) < EVEN else sense
    said = (
        f"On average the model is {sure.mean():.1%} sure and {right.mean():.1%} right, so it is {sense}. The expected "
        f"calibration error is {100 * error:.1f} points ({BINS} bins; with few images it is above zero even for a "
        "perfectly calibrated model)."
    )
    ends: Sequence[Dot] = (Dot(0, 0), Dot(1, 1))
    drawn = chart(
        "Is it as sure as it should be?",
        [Series("as it should be", ends, None, line=True, dashed=True, bare=True), Series("the model", dots, 0)],
        Axis("probability of the predicted class", percent, within=(0, 1)),
        Axis("share of right predictions", percent, within=(0, 1)),
        "The larger a circle, the more images. Lines are 95 % confidence intervals.",
    )
    return drawn, said
