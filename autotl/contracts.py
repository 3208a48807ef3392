"""The interfaces that plugins implement, and the facts that they receive.

Every plugin has two halves. Above the plan, `suggest` sees Optuna's trial and returns plain JSON
values. Below it, `build` sees those values and no trial.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from autotl.plan import (
    BITS,
    ClassWeights,
    Component,
    Head,
    Input,
    Phase,
    Pooling,
    Record,
    Sampling,
    Teacher,
    Technique,
    TransferPlan,
)

if TYPE_CHECKING:
    import numpy as np
    import torch

Layout = Literal["NCHW", "NHWC", "tokens"]
UNEQUAL = 3.0
"""Above this imbalance, rare classes are easily missed: class weights are searched and other metrics recommended."""


@dataclass(frozen=True)
class WeightsSource:
    """Where pretrained weights come from: a `file` in a package, a repository on the hub, or a `url`."""

    file: Path | None = None
    repo: str | None = None
    filename: str | None = None
    url: str | None = None
    sha256: str | None = None
    """The hash that a file from this source must have, where it is known."""


@dataclass(frozen=True)
class ProvidedWeights(WeightsSource):
    """The pretrained weights of a backbone as a plugin has them: at one of the places of a `WeightsSource`, or what
    `fetch` gives.

    `sha256` is that of the file before `convert`.
    """

    fetch: Callable[[Path], object] | None = None
    """Writes the file to this path, such as from a bucket."""
    convert: "Callable[[dict[str, torch.Tensor]], Mapping[str, torch.Tensor]] | None" = None
    """Turns the file's tensors into the state dict that the backbone's family reads; without it the file is kept as it
    is."""
    license: str = ""
    """Terms of this file besides those on the backbone's card."""


class WeightsProvider(Protocol):
    """Has pretrained weights of backbones, usually of families of other plugins.

    It is asked if neither the user, the package of the backbone nor a cache has them, before they are downloaded from
    where their card says. autotl checks the file and keeps it in its cache.
    """

    def names(self) -> Sequence[str]:
        """The full names of these backbones, or globs such as `timm:*`."""

    def source(self, name: str) -> ProvidedWeights:
        """Where the weights of a backbone are. Must be fast, and must not use the network.

        Raises: KeyError if it has none for a name that matches one of its globs.
        """


@dataclass(frozen=True)
class ModelCard:
    """Facts about a backbone that are known without building it.

    `weights` is None for a network without pretrained weights. `source` is what it was trained on, `license` the terms
    of its weights. `libraries` names the distributions whose code the network uses, besides torch and the plugin's
    own: a plan records their versions.
    """

    input: Input
    weights: WeightsSource | None
    source: str
    license: str
    sizes: tuple[int, ...] = ()
    """Other input sizes, in px, that the network accepts besides that of `input`."""
    libraries: tuple[str, ...] = ()
    note: str = ""


class Family(Protocol):
    """Backbones with a common prefix, `family:architecture[.tag]`."""

    def names(self) -> Sequence[str]:
        """Every `architecture[.tag]` that can be listed, without the prefix."""

    def card(self, name: str) -> ModelCard:
        """Raises: KeyError for an unknown name."""

    def build(self, name: str, weights: Path | None) -> "torch.nn.Module":
        """The whole network on the CPU, in float32; autotl splits it into stages afterwards.

        With `weights` None, parameters are random, drawn from torch's global generator. Otherwise they are read from
        the file. It must raise if the file lacks any tensor except those of the classifier; `load_weights` does so.

        A network may have a method `no_weight_decay()`, as timm's networks have: the names of parameters without
        weight decay, such as position embeddings and class tokens. Norms and biases need not be named.
        """


class Boundary(Record):
    """The value at the end of a stage."""

    name: str
    """The module that ends the stage, such as `layer3.1`; unique, and used as the stage's name."""
    shape: tuple[int, ...]
    """Without the batch dimension, at the traced input size: [C, H, W], [H, W, C] or [T, C]."""
    layout: Layout
    prefix_tokens: int
    """How many class, distillation and register tokens precede the image's tokens."""

    @property
    def channels(self) -> int:
        return self.shape[0] if self.layout == "NCHW" else self.shape[-1]


class StageInfo(Boundary):
    """One stage of a backbone: its output and its cost."""

    parameters: int
    flops: int
    """Multiply-accumulates times two, for one image."""

    @property
    def places(self) -> int:
        """How many positions its output has, without prefix tokens."""
        return math.prod(self.shape) // self.channels - self.prefix_tokens

    @property
    def poolings(self) -> tuple[Pooling, ...]:
        """The poolings with which this stage's features are stored: `token` needs a class token."""
        return ("avg", "max", "token") if self.prefix_tokens else ("avg", "max")


class BackboneInfo(Record):
    """Facts about a backbone: its input and its stages, from the image to the last possible cut."""

    name: str
    input: Input
    stages: tuple[StageInfo, ...]
    fingerprint: str
    """Hash of the stage list: names, parameter names and shapes."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(stage.name for stage in self.stages)

    def stage(self, name: str) -> StageInfo:
        return self.stages[self.names.index(name)]

    def upto(self, cut: str) -> tuple[StageInfo, ...]:
        """The stages that remain when the backbone is cut after `cut`."""
        return self.stages[: self.names.index(cut) + 1]

    def parameters(self, cut: str) -> int:
        return sum(stage.parameters for stage in self.upto(cut))

    def flops(self, cut: str) -> int:
        return sum(stage.flops for stage in self.upto(cut))


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """Facts about the train images that affect their preparation."""

    image_size: int
    """The median of the shorter side, in px."""
    cut_away: float = 0.0
    """The median share of an image's area outside its centre square."""
    bits: int = BITS
    """How many bits the values of integer images with more than 8 bits use; 16 if there are no such images."""


@dataclass(frozen=True, kw_only=True)
class DataFacts(Shapes):
    """What a plugin may know about the data: numbers, never images or test labels."""

    classes: int
    train_images: int
    """Images of the train split only."""
    smallest_class: int
    """Train images of the smallest class."""
    largest_class: int
    """Train images of the largest class."""
    has_early_stop: bool
    """Whether there were enough images for a split that chooses the epoch."""
    harmful: frozenset[str] = frozenset()
    """Of the operations that augmentations name, those that make the classes of these images harder to tell apart."""

    @property
    def imbalance(self) -> float:
        """Images of the largest class divided by those of the smallest."""
        return self.largest_class / max(1, self.smallest_class)


class Trial(Protocol):
    """The part of Optuna's trial from which a plugin draws its own parameters.

    Their names start with a name that the plugin registered and a dot: `my-strategy.momentum`.
    """

    @property
    def number(self) -> int: ...

    @property
    def params(self) -> dict[str, Any]:
        """The parameters drawn so far in this trial, by name."""

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float: ...

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int: ...

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """The choices must be the same in every trial of a study."""


class Context(Protocol):
    """What a strategy asks the host for. What it does not ask for is not searched.

    All strategies share the names of these parameters, so what the sampler learns about depth or backbone from one
    strategy helps the others. A plugin draws its own parameters with `trial.suggest_*`.
    """

    data: DataFacts
    seed: int
    techniques: frozenset[Technique]
    """The techniques whose strengths the user wants searched; see the fields of `Training`."""

    def backbone(self) -> BackboneInfo:
        """The backbone of this trial, up to the last cut within the user's limits on what a network may cost."""

    def cut(self) -> str:
        """The last stage that is kept."""

    def frozen(self, cut: str) -> str | None:
        """The last stage that is not trained: None (all are trained) up to the cut."""

    def pooling(self, cut: str) -> Pooling:
        """How the cut's features become one vector: one of the poolings with which they are stored."""

    def head(self, cut: str) -> Head:
        """A head that is trained by gradient descent, of one of the study's kinds, with its pooling."""

    def input(self) -> Input:
        """How images are prepared. The size is the backbone's own, or a larger one if backbone and images allow it.
        The mode (crop, squash or pad) is searched if the shapes of the images make it matter. With the trial's cut and
        head, if it has asked for them before, the size is within the user's limits."""

    def augmentation(self) -> Component:
        """The augmentation of this trial with its parameters."""

    def optimizer(self, *, pretrained: bool = True) -> "Optimization":
        """The optimizer of this trial with its learning rates; `pretrained`: whether the network is."""

    def objective(self) -> Component:
        """The objective of this trial with its parameters."""

    def adapter(self) -> Component:
        """The adapter of this trial with its parameters."""

    def method(self) -> Component:
        """The gradient method of this trial with its options."""

    def classifier(self) -> Component:
        """The head method of this trial with its options, for a phase that fits a linear head on frozen features."""

    def teacher(self, *, share: float, temperature: float) -> Teacher:
        """The teacher of this trial: one of the study's backbones, at its last stage."""

    def class_weights(self) -> ClassWeights:
        """The class weights of the loss; always "none" unless the classes are unequal, see `UNEQUAL`.

        After `sampling()` gave "balanced" they are "balanced": what is fitted to all images samples none.
        """

    def sampling(self) -> Sampling:
        """Which images an epoch has; always "shuffled" unless the user wants `balanced-sampling` searched, the classes
        are unequal, and the loss has no class weights. Called after `class_weights()` for the same phase."""

    def plan(
        self,
        *,
        cut: str,
        head: Head,
        phases: Sequence[Phase],
        input: Input | None = None,
        augmentation: Component | None = None,
        pretrained: bool = True,
    ) -> TransferPlan:
        """A complete plan from these parts and what the host knows.

        Without `input`, images are prepared as for the probe: as the backbone's training data was, unless a crop would
        remove too much. Without `augmentation`, images are not augmented. Unless `pretrained`, the network starts
        from random weights.
        """


Situation = Literal["few-similar", "few-different", "many-similar", "many-different"]
"""Whether a data set has few or many images, and whether they are similar to those that the backbone was trained on."""


class Strategy(Protocol):
    """Suggests a plan.

    It may have an attribute `first_guess`, parameters by name. They are tried once, before the sampler draws, on the
    best backbone and cut of the probe unless they name others. A named backbone that the study does not have is
    replaced by the best one. If a budget is short, a named `frozen` is raised, up to two thirds of the stages, and
    `recipe.length` lowered; a first guess that names neither is tried only if there is time for it.

    It may have an attribute `is_probe`, True if it is a linear probe: its plans only fit a classifier on one cut of a
    frozen backbone, and it draws shared parameters alone. It is then tried first, at the last cut of each backbone that
    is about as good as any, and the winner is compared with it. `baselines` names backbones, such as one that gives raw
    pixels, on which the winner is compared with it as well.

    It may have an attribute `suits`, the situations in which it is suggested and tried before others.
    """

    def suggest(self, trial: Trial, context: Context) -> TransferPlan:
        """Called once per trial. Must not train, must not read pixels, and must return within a minute."""


class Augmentation(Protocol):
    """Suggests parameters, and builds a transform of a batch from them.

    With an attribute `by_default = False` it is searched only if the user names it.

    It may have a method `operations()` that returns operations which not all images allow, such as mirroring, which
    turns a b into a d: functions as `BatchTransform`, by names for the user. autotl measures on train images which of
    them make classes harder to tell apart, and `suggest` finds their names in `context.data.harmful`. The same name in
    another augmentation means the same operation.
    """

    def suggest(self, trial: Trial, context: Context) -> dict[str, Any]:
        """Parameters as plain JSON values; called once per trial by `context.augmentation()`."""

    def build(self, params: dict[str, Any]) -> "BatchTransform":
        """The transform; called before training.

        An augmentation whose transform returns `Mixed` has an attribute `mixes = True`.
        """


@dataclass(frozen=True)
class FittedHead:
    """A linear classifier: logits = features @ weight.T + bias."""

    weight: "torch.Tensor"
    """[C, D] float32; zeros in the columns of features that it does not use."""
    bias: "torch.Tensor"
    """[C] float32."""
    chosen: dict[str, float | str]
    """For each option with several values, a number or a word, the one that gave this head: a fit with it alone gives
    the same head."""


class Method(Protocol):
    """How a phase trains. It is either a `HeadMethod` or a `GradientMethod`.

    A method may have an attribute `defaults`: more options by name, with the value to use if a plan does not set them.
    """

    options: Sequence[str]
    """The names of the options. A plan must set each of them; besides them it may set only those with defaults."""


class HeadMethod(Method, Protocol):
    """Fits a head on the features of frozen stages.

    The engine passes a phase's `options`, each as a list of alternatives. If the method returns several heads, the
    engine keeps the one with the lowest loss on images that were not fitted on. Later it refits only that one, on more
    images.

    An option named `class_weights` also sets the class weights of the loss that selects a head.

    With a method `suggest(trial, context)`, which returns options as plain JSON values, it is a classifier:
    `context.classifier()` draws it if the user names it, or, with an attribute `by_default = True`, if the user names
    none.
    """

    def fit(
        self,
        features: "torch.Tensor",
        labels: "torch.Tensor",
        classes: int,
        options: dict[str, list[Any]],
        step: Callable[[], None],
    ) -> Sequence[FittedHead]:
        """features: [N, D] float32, not standardised. labels: [N] int64. The heads must be on the same device.

        Call `step` regularly: it raises when time is up. The fit must be deterministic.

        Raises: PlanError for an invalid value of an option.
        """


class Batch(Protocol):
    """A batch of training images in one step of a `GradientMethod`."""

    @property
    def parameters(self) -> "Sequence[torch.nn.Parameter]":
        """All that are trained, of the stages and of the head."""

    @property
    def updated(self) -> bool:
        """Whether `update` was called."""

    def gradients(self) -> None:
        """Compute the gradient of the objective on this batch at the present parameters, into their `grad`.

        Images, their augmentation and their targets are the same at every call within a step.
        """

    def update(self) -> None:
        """Clip the gradients, and take the optimizer's step."""


class GradientMethod(Method, Protocol):
    """Trains stages and head by gradient descent; the phase's `training` describes the rest.

    It must be a function of parameters and gradients: the engine reads the images, calls it for each batch, evaluates
    epochs and keeps the best one.
    """

    def suggest(self, trial: Trial, context: Context) -> dict[str, Any]:
        """Options as plain JSON values; called once per trial by `context.method()`."""

    def step(self, batch: Batch, options: dict[str, Any]) -> None:
        """One step on a batch: `batch.gradients()`, then `batch.update()`.

        Raises: PlanError for an invalid value of an option.
        """


class Loss(Protocol):
    """What training minimises."""

    def __call__(self, logits: "torch.Tensor", targets: "torch.Tensor", weights: "torch.Tensor") -> "torch.Tensor":
        """logits: [N, C] float32. targets: [N, C] float32, the share of each class in each image: one-hot, unless
        label smoothing, mixup or CutMix changed them. weights: [C] float32, the class weights, 1 on average over the
        training images.

        Returns the mean over the N images, a scalar.
        """


class Objective(Protocol):
    """Suggests parameters, and builds a loss from them.

    Objectives, optimizers, adapters and gradient methods are searched if the user names them. With an attribute
    `by_default = True` one is also searched if the user names none of its kind.
    """

    def suggest(self, trial: Trial, context: Context) -> dict[str, Any]:
        """Parameters as plain JSON values; called once per trial by `context.objective()`."""

    def build(self, params: dict[str, Any]) -> Loss:
        """The loss; called before training.

        Raises: PlanError for an invalid parameter.
        """


@dataclass(frozen=True, kw_only=True)
class Optimization:
    """An optimizer's suggestion. `lr` is the learning rate of the topmost stage that is trained."""

    lr: float
    head_lr: float
    weight_decay: float
    params: Mapping[str, Any] = field(default_factory=dict)
    """The optimizer's own parameters, as plain JSON values."""
    optimizer: Component = field(default_factory=lambda: Component(name=""))
    """The optimizer with these parameters; the host fills it in."""


class Optimizer(Protocol):
    """Suggests learning rates and parameters, and builds an optimizer of torch."""

    def suggest(self, trial: Trial, context: Context, pretrained: bool) -> Optimization:
        """Called once per trial by `context.optimizer()`; `pretrained`: whether the network is."""

    def build(self, groups: list[dict[str, Any]], params: dict[str, Any]) -> "torch.optim.Optimizer":
        """`groups` have the keys `params`, `lr` and `weight_decay`, which torch's optimizers take; called once per
        phase. The engine sets the groups' `lr` before every step.

        Raises: PlanError for an invalid parameter.
        """


@dataclass(frozen=True)
class Weight:
    """A parameter of a stage: its name in the network's state dict, and the module that has it."""

    name: str
    parameter: "torch.nn.Parameter"
    module: "torch.nn.Module"


@dataclass(frozen=True)
class Adapted:
    """What of a stage is trained."""

    parameters: "Sequence[torch.nn.Parameter]"
    """To train: some of the stage's, or new ones on the same device. With new ones, `weights` must use them."""
    weights: "Callable[[], Mapping[str, torch.Tensor]] | None" = None
    """Returns tensors by name that replace parameters of the stage, as differentiable functions of `parameters`.
    It is called in every step, and after the training its last result becomes the stage's weights."""


class Adaptation(Protocol):
    """Chooses what of a stage is trained."""

    def __call__(self, weights: "Sequence[Weight]") -> Adapted:
        """Called once per trained stage and phase, with all parameters of the stage. It must not change them.

        torch's global random generator has the plan's seed.
        """


class Adapter(Protocol):
    """Suggests parameters, and builds an adaptation from them."""

    def suggest(self, trial: Trial, context: Context) -> dict[str, Any]:
        """Parameters as plain JSON values; called once per trial by `context.adapter()`."""

    def build(self, params: dict[str, Any]) -> Adaptation:
        """The adaptation; called before training.

        Raises: PlanError for an invalid parameter.
        """


class Metric(Protocol):
    """Measures predictions. A search selects by one metric; no metric changes how a plan is trained.

    It may have an attribute `percent`, True if values are shares, which are then shown in percent; `class_weights`,
    "balanced" if every class counts equally, which first guesses use if classes are unequal; and a method
    `interval(labels, probabilities, units)`, which returns both ends of the 95 % confidence interval. units: [N], the
    same integer for images of one group and for copies of a picture. Without it the interval is a bootstrap over units.
    """

    greater_is_better: bool

    def __call__(self, labels: "np.ndarray", probabilities: "np.ndarray") -> float:
        """labels: [N] int64; probabilities: [N, C] float64, rows sum to 1. Must not change them. Finite.

        Called after every epoch. It must be deterministic, and must not depend on the order of the images.

        Raises: ValueError, with a reason for the user, if it is not defined for these images, such as for images of
        one class. A search that would meet this ends before its first trial.
        """


class Draw(Protocol):
    """Random numbers, drawn separately for each image of a batch."""

    def __call__(self, count: int) -> "torch.Tensor":
        """[N, count] float32, uniform in [0, 1), on the images' device; every call gives new numbers.

        A row depends on the plan's seed, the epoch and the image, not on the batch.
        """


@dataclass(frozen=True)
class Mixed:
    """Images that are mixed in pairs; the targets of an image are mixed as the image is."""

    images: "torch.Tensor"
    """[N, 3, S, S] uint8."""
    partners: "torch.Tensor"
    """[N] int64: the position in the batch of the image that each one is mixed with."""
    shares: "torch.Tensor"
    """[N] float32 in [0, 1]: how much of each image is left."""


class BatchTransform(Protocol):
    """Changes a batch of training images, each with its own random numbers."""

    def __call__(self, images: "torch.Tensor", draw: Draw) -> "torch.Tensor | Mixed":
        """images: [N, 3, S, S] uint8 → the same shape and type, on the same device. `draw` must be the only source of
        randomness."""


CONTRACTS: dict[str, tuple[type, ...]] = {
    "backbones": (Family,),
    "augmentations": (Augmentation,),
    "strategies": (Strategy,),
    "methods": (HeadMethod, GradientMethod),
    "objectives": (Objective,),
    "optimizers": (Optimizer,),
    "adapters": (Adapter,),
    "metrics": (Metric,),
    "weights": (WeightsProvider,),
}
"""The interfaces of each kind, of which one is needed."""


def require_one(contracts: Sequence[type], thing: object) -> None:
    """Raises: TypeError unless `thing` has one of these interfaces: the one whose methods it has, else the first."""
    named = (contract for contract in contracts if all(hasattr(thing, name) for name in _methods(contract)))
    require(next(named, contracts[0]), thing)


CALL = "__call__"
"""The only method of a contract whose name starts with an underscore."""


def require(contract: type, thing: object) -> None:
    """Raises: TypeError if `thing` lacks an attribute or method of the contract, or takes other arguments."""
    if isinstance(thing, type):
        raise TypeError(f"it is the class {thing.__name__}, but must be an instance of it")
    for name in (name for base in contract.__mro__ for name in vars(base).get("__annotations__", ())):
        if not name.startswith("_") and not hasattr(thing, name):
            raise TypeError(f"{type(thing).__name__} has no '{name}'")
    for name, promised in _methods(contract).items():
        method = getattr(thing, name, None)
        if not callable(method):
            raise TypeError(f"{type(thing).__name__} has no method '{name}'")
        given = list(inspect.signature(promised).parameters)[1:]
        try:
            signature = inspect.signature(thing if name == CALL else method)  # type: ignore[arg-type]
        except ValueError:  # written in C, without a signature
            continue
        try:
            signature.bind(*given)
        except TypeError:
            raise TypeError(f"its {name}{signature} cannot be called as {name}({', '.join(given)})") from None


def _methods(contract: type) -> dict[str, Any]:
    """The methods of a contract by name."""
    functions = {name: promised for name, promised in vars(contract).items() if inspect.isfunction(promised)}
    return {name: promised for name, promised in functions.items() if not name.startswith("_") or name == CALL}
