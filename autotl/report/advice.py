"""Advice for a data set as lines of text."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from shlex import quote

from autotl.contracts import Situation
from autotl.study.advice import FEW, MANY, SIMILAR
from autotl.tracking.advice import Advice, AdviceTested, Similarity

WORDS: Mapping[Situation, str] = {
    "few-similar": "few images, similar to those of the pretraining",
    "few-different": "few images, different from those of the pretraining",
    "many-similar": "many images, similar to those of the pretraining",
    "many-different": "many images, different from those of the pretraining",
}
TEXTBOOK: Mapping[Situation, str] = {
    "few-similar": "train only a linear classifier, on late features; training the network would overfit",
    "few-different": "train a linear classifier on earlier features, because late ones are too specific",
    "many-similar": "fine-tune the network from its pretrained weights, with low learning rates in early layers",
    "many-different": "fine-tune most of the network or all of it; pretrained weights are still a good start",
}


def lines(advice: Advice, summaries: Mapping[str, str], data: str) -> Iterator[tuple[str, str]]:
    """The advice as headings with their texts; `summaries` describes each strategy in a few words."""
    found = advice.similarity
    yield "images", f"{advice.per_class:.3g} in each class outside the test split, which is {_amount(advice.per_class)}"
    yield "probe", f"accuracy of a linear classifier, held out, on {found.images:,} images, at each cut, first to last"
    yield "", f"{_percent(at.pretrained for at in found.cuts)}  {found.backbone}"
    yield "", f"{_percent(at.random for at in found.cuts)}  the same network with random weights"
    for name, value in found.references.items():
        yield "", f"{100 * value:.0f}  {name}"
    if found.neighbours is not None:
        yield (
            "",
            f"{100 * found.neighbours:.0f}  by the nearest images alone, with pretrained features at {found.best.cut}",
        )
    yield "similarity", " ".join(similarity(found))
    yield "situation", _situation(advice)
    yield "textbook", "; or ".join(TEXTBOOK[each] for each in advice.situations)
    if advice.harmful:
        yield "augment", f"not by {', '.join(advice.harmful)}: changed images look like those of other classes"
    if advice.allowed:
        yield "" if advice.harmful else "augment", f"the images allow {', '.join(advice.allowed)}"
    for number, name in enumerate(advice.suggested, 1):
        yield "try first" if number == 1 else "", f"{number}. {name}: {summaries[name]}"
    if advice.others:
        yield "then" if advice.suggested else "try", ", ".join(advice.others)
    yield "next", f"autotl search {quote(data)}"


def similarity(found: Similarity) -> Iterator[str]:
    """What pretrained features are worth here, in sentences."""
    gained = found.best.pretrained - found.untrained
    yield f"Pretrained features are {abs(100 * gained):.1f} points {'better' if gained >= 0 else 'worse'} than others."
    best, late = found.best.cut, found.late.cut
    if best == late:
        yield "The last cut is the best one."
    elif f"{100 * found.fall:.1f}" == "0.0":
        yield f"The last cut is as good as the best one, {best}."
    else:
        yield f"The best cut is {best}; at the last one, {late}, accuracy is {100 * found.fall:.1f} points lower."
    if found.gain > 0:
        yield (
            f"That is {found.gain:.0%} of the way from always guessing to no error; from {SIMILAR:.0%} on images count "
            "as similar, unless the last cut is much worse than the best one."
        )


def in_a_line(advice: Advice) -> str:
    """Before the trials of a search: the situation, and what is tried first."""
    first = f"Tried first: {', '.join(advice.suggested)}." if advice.suggested else "No strategy is suggested for that."
    return f"Advice: {_situation(advice)}. {first}"


def tested(found: AdviceTested, text: Callable[[float], str]) -> str:
    """Whether the advice held in a search; `text` writes a value of its metric."""
    said = f"Advice: {_situation(found.advice)}, so {' or '.join(found.advice.suggested) or 'none of the strategies'}."
    if found.trial is None or found.value is None:
        return f"{said} None of these has a finished trial."
    held = "It held" if found.held else "It did not hold"
    own, best = text(found.value), text(found.best)
    return f"{said} {held}: the best of these, trial {found.trial}, has {own} on val, the best of all {best}."


def _situation(advice: Advice) -> str:
    amounts, kins = (
        dict.fromkeys(parts) for parts in zip(*(each.split("-") for each in advice.situations), strict=True)
    )
    amount = "between few and many" if len(amounts) > 1 else next(iter(amounts))
    kin = " or ".join({"similar": "similar to", "different": "different from"}[each] for each in kins)
    return f"{amount} images, {kin} those of the pretraining"


def _amount(per_class: float) -> str:
    if per_class >= MANY:
        return f"many (from {MANY} on)"
    return f"few (up to {FEW})" if per_class <= FEW else f"neither few (up to {FEW}) nor many (from {MANY} on)"


def _percent(values: Iterable[float]) -> str:
    return " ".join(f"{100 * value:.0f}" for value in values)
