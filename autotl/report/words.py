"""The result of a study in words."""

from collections.abc import Iterator
from shlex import quote

from autotl.contracts import UNEQUAL
from autotl.export.export import Exported
from autotl.plan import TransferPlan
from autotl.report.tables import count
from autotl.study.settings import Settings
from autotl.tracking.folder import Definition, StudyFolder
from autotl.tracking.result import Comparison, Result, Test

MODES = {"crop": "", "squash": " on squashed images", "pad": " on padded images"}
POOLING = {"avg": "averaged", "max": "max-pooled", "token": "read off the class token"}
WORST = 5
"""Of more classes, only so many with the lowest recall are told."""


def summary(result: Result) -> Iterator[str]:
    """What won, how good it is, what it gained, in a few lines."""
    plan, test = result.best.plan, result.test
    metrics = result.best.metrics
    yield (
        f"Winner: {plan.backbone}{MODES[plan.input.mode]}, cut after {plan.cut}, "
        f"features {POOLING[plan.head.pooling]}, by {result.best.strategy} (trial {result.best.trial}); "
        f"{count(metrics['parameters'])} parameters, {count(metrics['flops'])} FLOPs an image."
    )
    of_groups = f" of {test.units:,} groups; copies of an image are one group" if test.units < test.images else ""
    yield (
        f"Test {test.metric} {test.value:.1%}, between {test.low:.1%} and {test.high:.1%} with 95 % confidence "
        f"({test.images:,} sealed images{of_groups})."
    )
    if test.near_apart:
        yield (
            f"{test.near_apart:,} of these images look nearly like one in another split, so this figure is likely "
            "better than it would be on new images."
        )
    yield from by_class(test)
    if result.imbalance > UNEQUAL and test.metric == "accuracy":
        yield (
            f"The largest class has {result.imbalance:.3g} times the train images of the smallest: where each class "
            "matters as much as any other, search with --metric balanced-accuracy or macro-f1."
        )
    for name, comparison in result.comparisons.items():
        yield against(name, test.metric, comparison)
    runs = [f"{run.value:.1%}" for run in result.best.runs]
    seen = f"{runs[0]}" if len(runs) == 1 else f"{result.best.validation:.1%} on average over seeds ({', '.join(runs)})"
    yield f"On the val split its {test.metric} was {seen}.{_caution(result)}"
    yield from trained(plan)
    for what in result.left_out:
        yield f"Left out: {what}."
    if result.test_opened > 1:
        yield (
            f"The test split was opened for {result.test_opened} models in this study: "
            "what was decided after the first makes this figure optimistic."
        )


def by_class(test: Test) -> Iterator[str]:
    """What the most frequent class alone would give, and what each class got, or the worst of many."""
    yield f"The most frequent class alone would give {test.most_frequent:.1%}."
    worst = sorted(test.classes.items(), key=lambda item: item[1].recall)[:WORST]
    which = f"Lowest recall, {len(worst)} of {len(test.classes)} classes" if len(test.classes) > WORST else "Recall"
    each = [f"{name} {found.recall:.1%} ({found.right:,} of {found.images:,})" for name, found in worst]
    yield f"{which}: {', '.join(each)}."


def against(name: str, metric: str, comparison: Comparison) -> str:
    """A control, and what the winner gained over it."""
    return f"Against {name} ({metric} {comparison.value:.1%}): {_gain(comparison)}"


def trained(plan: TransferPlan) -> Iterator[str]:
    """What each phase of a plan trains, and at which rates."""
    for phase in plan.phases:
        if not phase.by_gradient:
            taps = f" of {len(plan.head.taps) + 1} stages" if plan.head.taps else ""
            weights = ", each class weighing alike" if phase.options.get("class_weights") == "balanced" else ""
            yield f"  The head by {phase.method}, on the frozen features{taps}{weights}."
            continue
        rates = list(phase.stage_lr.values())
        stages = list(phase.stage_lr)
        what = f"{stages[0]} to {stages[-1]} at {_rates(rates)}" if stages else "nothing but the head"
        frozen = f"frozen up to {phase.frozen}; " if phase.frozen else ""
        size = f" at {plan.input.size} px"
        yield (
            f"  By {phase.options.get('optimizer', phase.method)}, {frozen}{what}, the head at {phase.head_lr:.2g}, "
            f"up to {phase.epochs} epochs{size}, augmentation {plan.augmentation.name}."
        )


def _rates(rates: list[float]) -> str:
    low, high = min(rates), max(rates)
    return f"{rates[0]:.2g}" if low == high else f"rates from {rates[0]:.2g} to {rates[-1]:.2g}"


def _caution(result: Result) -> str:
    """That the best of several is likely to be worse than it looked, unless the test has just shown the opposite."""
    chosen = result.plans > 1 or any("val.loss_at_choice" in name for name in result.best.metrics)
    if not chosen or result.test.value > result.best.validation:
        return ""
    return " It was chosen because this number was the best, so expect less on new images."


def _gain(comparison: Comparison) -> str:
    points = f"{100 * comparison.difference:+.1f} points of accuracy"
    interval = f"({100 * comparison.low:+.1f} to {100 * comparison.high:+.1f})"
    if comparison.low > 0:
        return f"{points} {interval}."
    if comparison.high < 0:
        return f"{points} {interval}: it is worse."
    return f"{points} {interval}: no difference that these images can show."


def exported(found: Exported) -> Iterator[str]:
    """What was exported, and what it costs."""
    batches = [f"{1000 * seconds:.3g} ms for {images}" for images, seconds in found.latency.items()]
    yield f"{found.file}: {found.bytes / 1e6:.2f} MB"
    yield f"{count(found.parameters)} parameters, {count(found.flops)} FLOPs an image."
    yield f"Latency on one thread of this CPU, for a batch of so many images: {', '.join(batches)}."
    if found.images:
        yield (
            f"Compared with the model on {found.images} image files: "
            f"no probability differs by more than {found.difference:.1g}."
        )
    yield f"Terms of the weights: {found.folder / 'LICENSE'}"


def go_on(folder: StudyFolder, definition: Definition) -> str:
    """The command that goes on with a study."""
    chosen = definition.model_dump(include={"metric", "near_copies", "seed", "storage"})
    usual = {name: Settings.model_fields[name].default for name in chosen}
    options = [
        f" --{name.replace('_', '-')} {quote(str(value))}" for name, value in chosen.items() if value != usual[name]
    ]
    return f"autotl search {quote(definition.data)} --study {folder.words}{''.join(options)}"


def next_steps(folder: StudyFolder, result: Result) -> Iterator[str]:
    """What to type next."""
    study = folder.words
    yield f"autotl predict {study} IMAGE_OR_FOLDER"
    yield f"autotl ui {study}   # every trial, epoch by epoch, in MLflow"
    yield f"autotl export {study} --format onnx"
    yield f"autotl show {study} --plan {result.best.trial} > plan.json   # then: autotl train plan.json DATA"
