"""Trains a plan and measures the result. Nothing here knows about trials or studies."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from autotl.backbones.catalogue import Catalogue
from autotl.data.split import OPEN, Split
from autotl.engine import head_kinds, loop, metrics, solve
from autotl.engine.bench import Bench
from autotl.engine.calibration import Calibration
from autotl.engine.exact import exact
from autotl.engine.intervals import paired_difference
from autotl.engine.model import Model
from autotl.engine.observe import Enough, Nobody, Observer
from autotl.engine.solve import narrowed
from autotl.engine.temperature import Predicted, calibrate, has_temperature
from autotl.errors import PlanError, unknown
from autotl.plan import MODES, Phase, Stop, Teacher, TransferPlan


@dataclass(frozen=True)
class Fitted:
    """A trained plan: its model and its metrics."""

    plan: TransferPlan
    model: Model
    metrics: dict[str, float]
    """By name. `phase1.penalty` is an option's value that was chosen; of words it is the place in the plan's list."""
    val: np.ndarray | None = None
    """Its probabilities for the images of `val`, [N, C] float64; None if it is trained on them."""

    @property
    def calibration(self) -> Calibration | None:
        """By its predictions for `val`; None without any."""
        if self.val is None:
            return None
        dataset = self.model.bench.dataset
        own = has_temperature(self.plan, self.metrics)
        return calibrate([Predicted(self.val, dataset.labels("val"), dataset.units("val"))], own)

    def logits(self, split: Split) -> np.ndarray:
        """[N, C] for the images of a split, in the data set's order."""
        with exact(self.model.bench.device):
            return self.model.logits(split).cpu().numpy()


def fit(plan: TransferPlan, bench: Bench, observer: Observer | None = None) -> Fitted:
    """Train a plan, and measure it on `val` unless it is also trained on that.

    If the observer raises `Enough` or a phase ends the plan, the model so far is kept, and `Fitted.plan` is the shorter
    plan that gives it.

    Raises: Enough if there is no model yet; PlanError if the plan cannot be trained with what is installed;
    TrainingError if its training fails.
    """
    check(plan, bench)
    with exact(bench.device):
        return _fit(plan, bench.of_division(plan.data.division), observer or Nobody())


def _fit(plan: TransferPlan, bench: Bench, observer: Observer) -> Fitted:
    started = time.perf_counter()
    bench.decode(plan.input, lambda done, total: observer.step())
    model = Model(plan, bench, observer)
    measured: dict[str, float] = {}
    for number, phase in enumerate(plan.phases, 1):
        try:
            facts = loop.train(model, number) if phase.training else solve.solve(model, number)
        except Enough:  # before the phase has trained anything
            if model.head is None or not phase.training:
                raise
            model.plan, model.observer = plan.ended(number, 0), Nobody()
            facts = loop.train(model, number)
        measured |= {f"phase{number}.{name}": value for name, value in facts.items()}
        stop = phase.training.stop if phase.training else None
        if stop and stop.ends_plan and facts["best_epoch"] == 0:
            model.plan = model.plan.as_run(measured)
        if model.plan != plan:
            break
    fitted, probabilities = Fitted(model.plan, model, measured), None
    if "val" not in plan.train_on:
        judging = time.perf_counter()
        logits, labels = fitted.logits("val"), bench.dataset.labels("val")
        probabilities = metrics.probabilities(logits)
        for entry in bench.metrics:
            measured[f"val.{entry.name}"] = metrics.measure(entry, labels, probabilities)
        measured["val.loss"] = metrics.log_loss(logits, labels)
        measured["val.seconds"] = time.perf_counter() - judging
        if plan.test_views > 1:
            measured |= _gain(fitted, probabilities)
    info = bench.catalogue.info(plan.backbone, plan.input)
    classes = len(bench.dataset.classes)
    measured["parameters"] = info.parameters(plan.cut) + head_kinds.parameters(plan.head, info, plan.cut, classes)
    measured["flops"] = info.flops(plan.cut) + head_kinds.flops(plan.head, info, plan.cut, classes)
    measured["flops"] *= plan.test_views
    measured["seconds"] = time.perf_counter() - started
    return replace(fitted, val=probabilities)


def _gain(fitted: Fitted, probabilities: np.ndarray) -> dict[str, float]:
    """What several views gain in accuracy on `val` over a single one, with the 95 % interval."""
    bench = fitted.model.bench
    labels = bench.dataset.labels("val")
    with exact(bench.device):
        alone = fitted.model.of_view(0, "val").cpu().numpy()
    right, other = probabilities.argmax(1) == labels, alone.argmax(1) == labels
    gain, low, high = paired_difference(right, other, bench.dataset.units("val"))
    return {"val.views.gain": gain, "val.views.low": low, "val.views.high": high}


def on_all_images(plan: TransferPlan, measured: Mapping[str, float], bench: Bench) -> TransferPlan:
    """The plan that refits the same setup on all images except the test images, whatever division it had.

    The choices of the original training, a head's options and the epoch, are taken from its metrics, `measured`.
    """

    def fixed(phase: Phase, number: int) -> Phase:
        if phase.training:
            if not (phase.training.stop and phase.training.stop.patience):
                return phase
            return phase.trained_by(stop=Stop(at_epoch=int(measured[f"phase{number}.best_epoch"])))
        keys = {name: f"phase{number}.{name}" for name in phase.options}
        chosen = {name: phase.choice(name, measured[key]) for name, key in keys.items() if key in measured}
        return phase.model_copy(update={"options": narrowed(phase.options, chosen)})

    splits = tuple(split for split in OPEN if bench.shas(split))
    phases = tuple(fixed(phase, number) for number, phase in enumerate(plan.phases, 1))
    data = plan.data.model_copy(update={"division": 0})
    return plan.model_copy(update={"train_on": splits, "phases": phases, "data": data})


def components(phases: Sequence[Phase], augmentation: str) -> set[tuple[str, str]]:
    """What plans with these phases use of plugins, besides the backbone: pairs of a kind and a name."""
    used = {("augmentations", augmentation), *(("methods", phase.method) for phase in phases)}
    for training in filter(None, (phase.training for phase in phases)):
        used |= {("objectives", training.objective.name), ("optimizers", training.optimizer.name)}
        used |= {("adapters", each.name) for each in (training.adapter, *training.stage_adapters.values())}
    return used


def requires(catalogue: Catalogue, backbone: str, phases: Sequence[Phase], augmentation: str) -> dict[str, str]:
    """What a plan's numbers depend on: versions of libraries and of plugins, and the stage list.

    An unknown name is ignored here; `check` refuses it.
    """
    registries = catalogue.host.registries
    used = [(registries[kind], name) for kind, name in sorted(components(phases, augmentation))]
    owners = [registry[name].owner for registry, name in used if name in registry]
    teachers = [phase.training.teacher.backbone for phase in phases if phase.training and phase.training.teacher]
    owners += [catalogue.owner(name) for name in teachers]
    return {**{owner.distribution: owner.version for owner in owners}, **catalogue.requires(backbone)}


def check(plan: TransferPlan, bench: Bench) -> None:
    """Check everything about a plan that can be checked before it is trained.

    Raises: PlanError if it was made with other versions, stages or input than this machine has, or is inconsistent.
    """
    catalogue = bench.catalogue
    if plan.data.division and not bench.dataset.divisible:
        raise PlanError(
            f"'data.division' is {plan.data.division}, but the val split of these images was given: set it to 0."
        )
    for phase in plan.phases:
        if phase.method not in catalogue.host.methods:
            methods = [entry.name for entry in catalogue.host.methods]
            raise PlanError(unknown("training method", phase.method, methods))
    have = requires(catalogue, plan.backbone, plan.phases, plan.augmentation.name)
    for name, wanted in plan.requires.items():
        if have.get(name) != wanted:
            raise PlanError(
                f"The plan was made with {name} {wanted[:20]}, but this machine has {have.get(name, 'none')[:20]}. "
                f"Install that version, or delete '{name}' from the plan's 'requires' to train with what is installed."
            )
    inputs = catalogue.inputs(plan.backbone)
    ways = [way for input in inputs for way in (input, *map(input.by, MODES))]
    if plan.input not in [way.model_copy(update={"bits": plan.input.bits}) for way in ways]:
        raise PlanError(
            f"The input of '{plan.backbone}' must be {' or '.join(map(str, inputs))}, not {plan.input}. "
            "Only 'mode' and 'bits' may differ; with a mode other than crop, 'resize' must equal 'size'."
        )
    for teacher in (training.teacher for training in plan.trainings if training.teacher):
        _check_teacher(teacher, catalogue)
    known = catalogue.info(plan.backbone).names
    for stage in (plan.cut, *(phase.frozen for phase in plan.phases if phase.frozen)):
        if stage not in known:
            raise PlanError(unknown(f"stage of {plan.backbone}", stage, known))
    for phase in plan.phases:
        stop = phase.training.stop if phase.training else None
        if phase.training and stop and (stop.at_epoch or 0) > phase.training.epochs:
            raise PlanError(
                f"'stop.at_epoch' is {stop.at_epoch}, more than the phase's {phase.training.epochs} epochs."
            )
        if phase.frozen and known.index(phase.frozen) > known.index(plan.cut):
            raise PlanError(f"'frozen' is '{phase.frozen}', which comes after the cut '{plan.cut}'.")
    seen = [stage for stage in known[: known.index(plan.cut)] if stage in plan.head.taps]
    if plan.head.taps != tuple(seen):
        raise PlanError(
            f"'taps' must name stages before the cut '{plan.cut}', each once and in order, from: "
            f"{', '.join(known[: known.index(plan.cut)]) or 'none'}; not {', '.join(plan.head.taps)}."
        )
    info, judges = catalogue.info(plan.backbone, plan.input), bench.judges(plan)
    for stage in (*plan.head.taps, plan.cut):
        head_kinds.check(plan.head, info.stage(stage))
    augmentations = catalogue.host.augmentations
    if plan.augmentation.name not in augmentations:
        raise PlanError(unknown("augmentation", plan.augmentation.name, [entry.name for entry in augmentations]))
    for phase in plan.phases:
        entry = catalogue.host.methods[phase.method]
        if hasattr(entry.item, "step"):
            loop.check(plan, phase, info, judges, catalogue.host)
        else:
            solve.check(plan, phase, entry, judges)


def _check_teacher(teacher: Teacher, catalogue: Catalogue) -> None:
    """Raises: PlanError if the teacher's weights, stage or pooling are not those of its backbone here."""
    seed = int(teacher.weights.partition(":")[2]) if teacher.weights.startswith("random:") else 0
    weights = catalogue.network(teacher.backbone, seed, teacher.input).weights
    if weights != teacher.weights:
        raise PlanError(f"The teacher '{teacher.backbone}' has the weights {weights} here, not {teacher.weights}.")
    info = catalogue.info(teacher.backbone, teacher.input)
    if teacher.cut not in info.names:
        raise PlanError(unknown(f"stage of {teacher.backbone}", teacher.cut, info.names))
    poolings = info.stage(teacher.cut).poolings
    if teacher.pooling not in poolings:
        raise PlanError(unknown(f"pooling after {teacher.cut}", teacher.pooling, poolings))
