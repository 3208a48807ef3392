"""The result of a study as lines of text."""

from collections.abc import Iterator, Mapping
from shlex import quote
from typing import TYPE_CHECKING

from autotl.contracts import UNEQUAL
from autotl.engine.calibration import ENOUGH, Calibration
from autotl.plan import TransferPlan
from autotl.report import advice
from autotl.study import select
from autotl.study.costs import COSTS, count
from autotl.study.settings import Settings, said
from autotl.tracking.folder import Definition, StudyFolder
from autotl.tracking.result import Averaged, Comparison, OfClass, Picked, Result, Simplest, Test

if TYPE_CHECKING:
    from autotl.export.export import Exported

MODES = {"crop": "", "squash": " on squashed images", "pad": " on padded images"}
POOLING = {
    "avg": "average pooling",
    "max": "max pooling",
    "token": "class token",
    "gem": "generalised-mean pooling",
    "flatten": "no pooling",
}
WORST = 5
"""Of more classes than this, only those with the lowest recall below 100% are listed."""


def summary(result: Result) -> Iterator[str]:
    """The winner, its test result, and its gain over the baselines, in a few lines."""
    plan, test = result.best.plan, result.test
    shown = test.scale.text
    costs = [
        cost.text(result.best.metrics[cost.metric]) for cost in COSTS.values() if cost.metric in result.best.metrics
    ]
    yield (
        f"Winner: {plan.backbone}{MODES[plan.input.mode]}, cut after {plan.cut}, "
        f"{POOLING[plan.head.pooling]}{'' if plan.head.kind == 'linear' else f', head {plan.head.title}'}, "
        f"strategy {result.best.strategy} (trial {result.best.trial}); "
        f"{', '.join(costs)}{'; an image is predicted as it is and mirrored' if plan.test_views > 1 else ''}."
    )
    yield from trained(plan)
    if result.ensemble:
        yield averaged(result.ensemble, result)
    if result.picked:
        yield picked(result.picked, result)
    if result.simplest:
        yield simplest(result.simplest, result)
    certain, several = test.scale.interval(test.low, test.high), in_groups(test.images, test.units)
    yield f"Test {test.metric} {shown(test.value)}, {certain} ({test.images:,} test images{several})."
    if test.near_apart:
        yield (
            f"{test.near_apart:,} of these images have a near-copy in another split, so this figure is optimistic: "
            f"expect {_worse(test)} on new images."
        )
    yield from by_class(test)
    if result.imbalance > UNEQUAL and test.metric == "accuracy":
        yield (
            f"The largest class has {result.imbalance:.3g} times the train images of the smallest. "
            "If every class matters equally, search with --study NAME --metric balanced-accuracy (or macro-f1)."
        )
    for name, comparison in result.comparisons.items():
        yield against(name, test, comparison)
    yield from pretraining(result)
    runs = [shown(run.value) for run in result.best.runs]
    mean = f"{shown(result.best.validation)}, the mean over {len(runs)} runs ({', '.join(runs)})"
    whose = " of the winner alone" if result.ensemble else ""
    yield f"Validation {test.metric}{whose} {runs[0] if len(runs) == 1 else mean}.{_caution(result)}"
    if result.calibration:
        yield from calibrated(result.calibration)
    if result.advice:
        yield advice.tested(result.advice, shown)
    for what in result.skipped:
        yield f"Skipped: {what}."
    if result.test_opened > 1:
        yield (
            f"The test images were used for {result.test_opened} models in this study. "
            "If you chose anything by the first result, this figure is optimistic."
        )


def in_groups(images: int, units: int) -> str:
    """How many units so many images are, after the number of images; empty if each is its own."""
    return f" in {units:,} groups; copies of an image are one group" if units < images else ""


def averaged(found: Averaged, result: Result) -> str:
    """What the ensemble consists of, what it costs, and its metric on `val`."""
    costs = [cost.text(found.metrics[cost.metric]) for cost in COSTS.values() if cost.metric in found.metrics]
    shown = result.test.scale.text
    return (
        f"Ensemble: the mean of the probabilities of {len(found.trials)} models, of trials "
        f"{', '.join(map(str, found.trials))}; {', '.join(costs)}; validation {result.test.metric} "
        f"{shown(found.validation)}, of the winner alone {shown(result.best.runs[0].value)} on the same images."
    )


def calibrated(found: Calibration) -> Iterator[str]:
    """Which temperature the model's probabilities have, what it is worth, and which predictions are sure."""
    on = f"{found.images:,} validation predictions"
    if found.temperature != 1:
        sense = "less" if found.temperature > 1 else "more"
        yield (
            f"Calibrated probabilities: temperature {found.temperature:.3g} makes them {sense} sure; log-loss "
            f"{found.before:.3f} → {found.after:.3f} in cross-validation on {on}."
        )
    elif not found.own:
        yield f"Probabilities are not scaled: no temperature lowers their log-loss, {found.before:.3f} on {on}."
    yield certain(found)


def certain(found: Calibration) -> str:
    """Which predictions `autotl predict` calls sure."""
    if found.images < ENOUGH:
        return (
            f"Predictions are not called sure or unsure: {found.images:,} validation predictions are too few to tell, "
            f"at least {ENOUGH} are needed."
        )
    if found.sure_from is None:
        return "Every prediction is called unsure: at no probability were nine validation predictions of ten right."
    return (
        f"Predictions with a probability below {found.sure_from:.1%} are called unsure: above it, nine validation "
        "predictions of ten or more were right."
    )


def picked(found: Picked, result: Result) -> str:
    """Why a plan won that need not be the best one."""
    cost = next(cost for cost in COSTS.values() if cost.metric == found.cost)
    shown, metric = result.test.scale.text, result.test.metric
    this = f"Picked by --pick {found.how}: validation {metric} {shown(result.best.validation)} for "
    this += cost.text(result.best.metrics[found.cost])
    if found.best == result.best.trial:
        return f"{this}; it is also the best plan."
    return f"{this}; the best plan, trial {found.best}, has {shown(found.value)} for {cost.text(found.costs)}."


def simplest(found: Simplest, result: Result) -> str:
    """How the simplest plan within the noise compares with the best one."""
    scale, won = result.test.scale, found.trial == result.best.trial
    noise = f"{100 * found.noise:.1f} points" if scale.percent else scale.text(found.noise)
    runs = f"{found.runs} runs each" if found.runs > 1 else "one run each"
    what = (
        f"within one standard error ({noise}, {runs}) of the best plan, trial {found.best}: validation "
        f"{result.test.metric} {scale.text(found.value)} against {scale.text(found.value_of_best)}"
    )
    if won:
        return f"Picked because it is simpler and {what}. --pick best takes trial {found.best}."
    return f"Trial {found.trial} is simpler and {what}. --pick simplest takes it."


def by_class(test: Test) -> Iterator[str]:
    """The metric of always predicting the most frequent class, and the recall of the classes, or of the worst ones."""
    yield f"Always predicting the most frequent class would give {test.metric} {test.scale.text(test.most_frequent)}."
    yield from recalls(test.classes)


def recalls(classes: Mapping[str, OfClass]) -> Iterator[str]:
    """The recall of the classes, or of the worst ones."""
    ranked = sorted(classes.items(), key=lambda item: item[1].recall)
    short = [item for item in ranked if item[1].right < item[1].images]
    if not short:
        yield "Recall is 100% for every class."
        return
    shown = ranked if len(ranked) <= WORST else short[:WORST]
    each = [f"'{name}' {found.recall:.1%} ({found.right:,} of {found.images:,} images)" for name, found in shown]
    rest = len(ranked) - len(shown)
    if rest and len(short) > WORST:
        yield f"Lowest recall, {len(shown)} of {len(ranked)} classes: {', '.join(each)}."
    else:
        yield f"Recall of each class: {', '.join(each)}{'; 100% for all others' if rest else ''}."


def against(name: str, test: Test, comparison: Comparison) -> str:
    """A baseline, and the gain of the winner over it."""
    return f"Compared with {name}, {test.metric} {test.scale.text(comparison.value)}: {_gain(comparison)}"


def pretraining(result: Result) -> Iterator[str]:
    """Whether pretrained weights helped, by the comparison of the winner with the best plan of the other kind."""
    if not result.comparisons or result.ensemble:  # several models are better than one for another reason
        return
    at_random = select.from_scratch(result.best.plan)
    other_kind = select.is_pretrained if at_random else select.from_scratch
    others = [comparison for comparison in result.comparisons.values() if other_kind(comparison.plan)]
    if not others or not (at_random or select.is_pretrained(result.best.plan)):
        return
    best = min(others, key=lambda comparison: result.test.scale.order(comparison.value))
    low, high = (-best.high, -best.low) if at_random else (best.low, best.high)
    if low > 0:
        yield "Pretraining helped here: accuracy is significantly higher than by training from random weights."
    elif high < 0:
        more = "" if at_random else " For a model of that kind, search with --strategies scratch --study NAME."
        yield (
            "Pretraining hurt here (negative transfer): training from random weights gives significantly higher "
            f"accuracy.{more}"
        )
    else:
        yield "Pretraining made no significant difference here, compared with training from random weights."


def trained(plan: TransferPlan) -> Iterator[str]:
    """What each phase of a plan trains, and at which learning rates."""
    for phase in plan.phases:
        training = phase.training
        if training is None:
            taps = f" of {len(plan.head.taps) + 1} stages" if plan.head.taps else ""
            weighted = phase.options.get("class_weights", "none")
            weights = f", {weighted} class weights" if weighted != "none" else ""
            yield f"  Head: {phase.method} on the frozen features{taps}{weights}."
            continue
        rates = list(training.stage_lr.values())
        stages = list(training.stage_lr)
        head = "the head" if plan.head.kind == "linear" else f"the {plan.head.title} head"
        what = f"{stages[0]} to {stages[-1]} at {_lr(rates)}, {head}" if stages else f"only {head}"
        frozen = f", frozen up to {phase.frozen}" if phase.frozen else ""
        size = f" at {plan.input.size} px"
        weights = f"; {training.class_weights} class weights" if training.class_weights != "none" else ""
        balanced = "; balanced sampling" if training.sampling == "balanced" else weights
        yield (
            f"  Training: {training.optimizer.name}{frozen}; {what} at lr {training.head_lr:.2g}; "
            f"up to {training.epochs} epochs{size}; augmentation {plan.augmentation.name}{balanced}."
        )


def _lr(rates: list[float]) -> str:
    low, high = min(rates), max(rates)
    return f"lr {rates[0]:.2g}" if low == high else f"lr from {rates[0]:.2g} to {rates[-1]:.2g}"


def _caution(result: Result) -> str:
    """A warning that the best of several is optimistic, unless the test result is better."""
    chosen = result.plans > 1 or any("val.loss_at_selection" in name for name in result.best.metrics)
    order = result.test.scale.order
    if not chosen or order(result.test.value) < order(result.best.validation):
        return ""
    return f" It selected this model, so expect {_worse(result.test)} on new images."


def _worse(test: Test) -> str:
    return "less" if test.scale.greater_is_better else "more"


def _gain(comparison: Comparison) -> str:
    points = f"{100 * comparison.difference:+.1f} points of accuracy"
    interval = f"(95 % confidence interval {100 * comparison.low:+.1f} to {100 * comparison.high:+.1f})"
    if comparison.low > 0:
        return f"{points} {interval}."
    if comparison.high < 0:
        return f"{points} {interval}; the winner is worse."
    return f"{points} {interval}; no significant difference."


def exported(found: "Exported") -> Iterator[str]:
    """The exported file, its size and its latency."""
    batches = [f"{1000 * seconds:.3g} ms for a batch of {images}" for images, seconds in found.latency.items()]
    yield f"{found.file}: {found.bytes / 1e6:.2f} MB"
    yield f"{count(found.parameters)} parameters, {count(found.flops)} FLOPs per image."
    yield f"Latency on one thread of this CPU: {', '.join(batches)}."
    if found.images:
        yield (
            f"Compared with the model on {found.images} image files: "
            f"no probability differs by more than {found.difference:.1g}."
        )
    yield f"Terms of the weights: {found.folder / 'LICENSE'}"


def go_on(folder: StudyFolder, definition: Definition) -> str:
    """The command that resumes a study."""
    chosen = definition.model_dump(include={"metric", "near_copies", "seed", "storage"})
    usual = {name: Settings.model_fields[name].default for name in chosen}
    options = [
        f" --{name.replace('_', '-')} {quote(str(value))}" for name, value in chosen.items() if value != usual[name]
    ]
    options += [f" --set {quote(f'{name}={said(value)}')}" for name, value in definition.set.items()]
    return f"autotl search {quote(definition.data)} --study {folder.words}{''.join(options)}"


def next_steps(folder: StudyFolder, result: Result) -> Iterator[str]:
    """Commands to try next."""
    study = folder.words
    yield f"autotl predict {study} IMAGE_OR_FOLDER"
    yield f"autotl ui {study}   # every trial, epoch by epoch, in MLflow"
    yield f"autotl export {study} --format onnx"
    yield f"autotl show {study} --plan {result.best.trial} > plan.json   # then: autotl train plan.json DATA"
