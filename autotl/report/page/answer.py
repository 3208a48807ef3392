"""The first two parts of a page: the answer with its interval, and what it is compared with."""

from collections.abc import Iterator
from dataclasses import dataclass

from autotl.contracts import UNEQUAL
from autotl.data.dataset import Opening
from autotl.files import read_lines
from autotl.report import words
from autotl.report.page.study import Finished
from autotl.report.page.units import listed
from autotl.study.costs import COSTS
from autotl.tracking.folder import StudyFolder
from autotl.tracking.result import Comparison, Test

MANY = 6
"""Of more classes than this, the title names only the first ones."""


@dataclass(frozen=True)
class Bar:
    """A value with its interval on a line from 0 to 100."""

    value: float
    low: float
    high: float
    zero: float | None = None
    """Where the line has a mark for no difference."""


@dataclass(frozen=True)
class Answer:
    """How good the model is, and how that was measured."""

    title: str
    metric: str
    value: str
    interval: str
    bar: Bar | None
    sentences: tuple[str, ...]
    measured: tuple[str, ...]
    """On which images, and how often they were used."""
    cautions: tuple[str, ...]


@dataclass(frozen=True)
class Against:
    """A baseline on the same test images."""

    name: str
    value: str
    difference: str
    interval: str
    bar: Bar | None
    verdict: str


@dataclass(frozen=True)
class Compared:
    """The baselines, and what they say."""

    rows: tuple[Against, ...]
    sentences: tuple[str, ...]


def answer(study: Finished) -> Answer:
    test = study.result.test
    return Answer(
        title=_title(study.definition.classes),
        metric=test.metric,
        value=test.scale.text(test.value),
        interval=test.scale.interval(test.low, test.high),
        bar=_bar(test),
        sentences=(_quality(test), _worth(study), _model(study)),
        measured=tuple(_measured(study)),
        cautions=tuple(_cautions(study)),
    )


def compared(study: Finished) -> Compared:
    test = study.result.test
    reach = max([abs(end) for each in study.result.comparisons.values() for end in (each.low, each.high)], default=1.0)
    rows = [_against(name, each, test, reach) for name, each in study.result.comparisons.items()]
    frequent = Against(
        name="always the most frequent class",
        value=test.scale.text(test.most_frequent),
        difference=f"{100 * (test.value - test.most_frequent):+.1f}" if test.scale.percent else "",
        interval="",
        bar=None,
        verdict="",
    )
    return Compared((*rows, frequent), (*words.pretraining(study.result), *_advised(study), *_lacking(study)))


def _lacking(study: Finished) -> Iterator[str]:
    """The comparisons that the search could not make."""
    for what in study.result.skipped:
        if "the comparison with" in what:
            yield f"{what[:1].upper()}{what[1:]}."


def _advised(study: Finished) -> Iterator[str]:
    """How good the plans are that the textbook suggests, on `val`."""
    found = study.result.advice
    if found is None or not found.advice.suggested:
        return
    suggested = f"The strategies that textbooks suggest for such images are {listed(found.advice.suggested, 'and')}"
    if found.trial is None or found.value is None:
        yield f"{suggested}; none of their trials was completed."
        return
    held = "the advice held" if found.held else "the advice did not hold"
    yield (
        f"{suggested}. The best of their plans, trial {found.trial}, has validation {study.metric} "
        f"{study.scale.text(found.value)}, the best of all plans {study.scale.text(found.best)}: {held}."
    )


def _title(classes: tuple[str, ...]) -> str:
    shown = ", ".join(classes[:MANY])
    return f"{len(classes):,} classes: {shown}{' …' if len(classes) > MANY else ''}"


def _bar(test: Test) -> Bar | None:
    if not test.scale.percent or test.low is None or test.high is None:
        return None
    return Bar(100 * test.value, 100 * test.low, 100 * test.high)


def _quality(test: Test) -> str:
    shown = test.scale.text
    if test.metric == "accuracy":
        right = sum(each.right for each in test.classes.values())
        begin = f"The model gives {right:,} of {test.images:,} test images the right class"
    else:
        begin = f"On {test.images:,} test images the model has {test.metric} {shown(test.value)}"
    if test.low is None or test.high is None:
        return f"{begin}; they do not give a confidence interval."
    return (
        f"{begin}; for other images of the same kind expect {test.metric} between {shown(test.low)} and "
        f"{shown(test.high)} (95 % confidence)."
    )


def _worth(study: Finished) -> str:
    test, comparisons = study.result.test, study.result.comparisons
    frequent = f"Always predicting the most frequent class would give {test.scale.text(test.most_frequent)}"
    if not comparisons:
        return f"{frequent}."
    name = min(comparisons, key=lambda name: test.scale.order(comparisons[name].value))
    found = comparisons[name]
    return (
        f"{frequent}; the strongest baseline, {name}, has {test.scale.text(found.value)}, "
        f"and the model is {_verdict(found)}."
    )


def _verdict(found: Comparison) -> str:
    points = f"{abs(100 * found.difference):.1f} points of accuracy"
    if found.low > 0:
        return f"{points} better"
    return f"{points} worse" if found.high < 0 else "not significantly better or worse"


def _model(study: Finished) -> str:
    best = study.result.best
    plan = best.plan
    costs = [cost.text(best.metrics[cost.metric]) for cost in COSTS.values() if cost.metric in best.metrics]
    stages = study.stages(plan.backbone)
    trained = {stage for training in plan.trainings for stage in training.stage_lr}
    if not trained:
        how = "all of it frozen, with a new classifier on its features"
    else:
        kept = stages[: stages.index(plan.cut) + 1] if plan.cut in stages else []
        many = (
            f"{len(trained)} of its {len(kept)} stages" if trained < set(kept) else f"all of its {len(trained)} stages"
        )
        how = f"{many} and a new classifier trained"
    what = f"{plan.backbone} up to {plan.cut}, {how} (strategy {best.strategy}): {', '.join(costs)}."
    several = study.result.ensemble
    return f"{words.averaged(several, study.result)} The winner alone is {what}" if several else f"It is {what}"


def openings(folder: StudyFolder) -> list[Opening]:
    """Each use of the test labels."""
    return [Opening.model_validate(line) for line in read_lines(folder.test_openings, Opening.model_validate)]


def _measured(study: Finished) -> Iterator[str]:
    test, result = study.result.test, study.result
    in_groups = f" in {test.units:,} groups, whose images count as one observation" if test.units < test.images else ""
    yield f"Measured on {test.images:,} test images{in_groups}. None of them was used to train or to select a plan."
    opened = openings(study.folder)
    tested = [each for each in opened if not each.use]
    if opened:
        models = len({each.plan for each in tested})
        times, of = ("once" if len(tested) == 1 else f"{len(tested)} times"), "model" if models == 1 else "models"
        shown = len(opened) - len(tested)
        also = f", and {'once' if shown == 1 else f'{shown} times'} to show them in a report" if shown else ""
        yield f"Their labels were used {times} to test {models} {of}{also}."
    plans = f"{result.plans:,} {'plan' if result.plans == 1 else 'different plans'}"
    if result.picked:
        yield f"The winner is one of {plans}. {words.picked(result.picked, result)}"
    elif result.simplest and result.simplest.trial == result.best.trial:
        yield f"The winner is one of {plans}. {words.simplest(result.simplest, result)}"
    else:
        value = study.scale.text(result.best.validation)
        yield f"Validation {test.metric} {value}, by which the winner was selected from {plans}."


def _cautions(study: Finished) -> Iterator[str]:
    test, result = study.result.test, study.result
    if result.test_opened > 1:
        yield (
            f"The test images were used for {result.test_opened} models in this study. If anything was chosen by the "
            "first result, this figure is optimistic."
        )
    if test.near_apart:
        yield f"{test.near_apart:,} test images have a near-copy in another split, so this figure is optimistic."
    if result.imbalance > UNEQUAL and test.metric == "accuracy":
        yield (
            f"The largest class has {result.imbalance:.3g} times the train images of the smallest: accuracy says "
            "little about small classes. See the recall of each class."
        )


def _against(name: str, found: Comparison, test: Test, reach: float) -> Against:
    def at(difference: float) -> float:
        return 50 + 48 * difference / reach

    return Against(
        name=name,
        value=test.scale.text(found.value),
        difference=f"{100 * found.difference:+.1f}",
        interval=f"{100 * found.low:+.1f} to {100 * found.high:+.1f}",
        bar=Bar(at(found.difference), at(found.low), at(found.high), zero=50),
        verdict="the model is better"
        if found.low > 0
        else "the model is worse"
        if found.high < 0
        else "no difference that these images can show",
    )
