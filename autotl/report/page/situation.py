"""The third part of a page: in which of the four situations of transfer learning the data set is."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from autotl.contracts import Situation
from autotl.report import advice as advices
from autotl.report.page.chart import Axis, Chart, Dot, Series, chart
from autotl.report.page.study import Finished
from autotl.report.page.units import listed, percent
from autotl.study.advice import FALL, FEW, MANY, SIMILAR
from autotl.tracking.advice import Advice, Similarity

SHORT: dict[Situation, tuple[str, str]] = {
    "few-similar": ("few, similar", "linear classifier, late features"),
    "many-similar": ("many, similar", "fine-tune, low learning rates"),
    "few-different": ("few, different", "linear classifier, earlier features"),
    "many-different": ("many, different", "fine-tune most of it, or all"),
}
"""The four situations by row, each with what textbooks say, for the picture."""


@dataclass(frozen=True)
class Place:
    """One of the four situations."""

    title: str
    short: str
    here: bool


@dataclass(frozen=True)
class Situated:
    """The four situations, with the place of this data set among them."""

    places: tuple[Place, ...]
    across: float
    """From 0, few images, to 1, many."""
    down: float
    """From 0, similar to the images of the pretraining, to 1."""
    per_class: str
    textbook: tuple[tuple[str, str], ...]
    """The situations that it may be in, with what textbooks say."""
    sentences: tuple[str, ...]
    chart: Chart | None


def situated(study: Finished) -> Situated | None:
    """None if the search had no time to compare pretrained features with others."""
    advice = study.advice
    if advice is None:
        return None
    return Situated(
        places=tuple(Place(*texts, each in advice.situations) for each, texts in SHORT.items()),
        across=_clipped(0.5 + math.log10(max(advice.per_class, 1) / math.sqrt(FEW * MANY)) / 3),
        down=_clipped(0.5 - _closeness(advice.similarity)),
        per_class=f"{advice.per_class:.3g}",
        textbook=tuple((advices.WORDS[each], advices.TEXTBOOK[each]) for each in advice.situations),
        sentences=tuple(_said(study, advice)),
        chart=_cuts(advice.similarity),
    )


def _closeness(found: Similarity) -> float:
    """Above 0 if the images are similar to those of the pretraining, as `study.advice.kins` decides."""
    gain = found.gain - SIMILAR
    return min(gain, FALL - found.fall) if found.fall > FALL else gain


def _clipped(at: float) -> float:
    return min(0.75, max(0.25, at))


def _said(study: Finished, advice: Advice) -> Iterator[str]:
    found = advice.similarity
    yield (
        f"There are {advice.per_class:.3g} images of each class outside the test split: up to {FEW} are few, from "
        f"{MANY} on they are many."
    )
    yield (f"{' '.join(advices.similarity(found))} This was measured with {found.backbone} on {found.images:,} images.")
    best = study.result.best
    first = f"suggests {listed(advice.suggested, 'or')}" if advice.suggested else "suggests none of the strategies here"
    held = ""
    if tested := study.result.advice:
        held = " The advice held." if tested.held else " The advice did not hold."
    yield f"For this situation autotl {first}. What won here is {best.strategy}.{held}"


def _cuts(found: Similarity) -> Chart | None:
    ends = (1.0, float(max(2, len(found.cuts))))
    lines = [
        Series(
            name,
            [Dot(at, value, f"{name}, {cut}: {percent(value)}") for at, (cut, value) in enumerate(values, 1)],
            colour,
            line=True,
        )
        for name, values, colour in (
            ("pretrained", [(at.cut, at.pretrained) for at in found.cuts], 0),
            ("random weights", [(at.cut, at.random) for at in found.cuts], 1),
        )
    ]
    for number, (name, value) in enumerate(found.references.items(), 2):
        lines.append(Series(name, [Dot(end, value) for end in ends], number, line=True, dashed=True, bare=True))
    return chart(
        f"What pretraining is worth: {found.backbone}",
        lines,
        Axis("cut, first to last", ticks=[(at, str(at)) for at in _some(len(found.cuts))]),
        Axis("held-out accuracy", percent, within=(0, 1)),
        "Accuracy of a linear classifier on the features of each cut.",
    )


def _some(cuts: int) -> list[int]:
    """Numbers of cuts for labels, about seven."""
    return list(range(1, cuts + 1, math.ceil(cuts / 7)))
