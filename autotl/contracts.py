"""The interfaces that plugins implement, and the facts that they receive.

Every plugin has two halves. Above the plan, `suggest` sees Optuna's trial and returns plain JSON
values. Below it, `build` sees those values and no trial.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from autotl.plan import BITS, ClassWeights, Component, Head, Input, Phase, Pooling, Record, TransferPlan

if TYPE_CHECKING:
    import torch

Layout = Literal["NCHW", "NHWC", "tokens"]
UNEQUAL = 3.0
"""Above this imbalance, rare classes are easily missed: class weights are searched and other metrics recommended."""


@dataclass(frozen=True)
class WeightsSource:
    """Where pretrained weights come from: a shipped `file`, a repository on the hub, or a `url`."""

    file: Path | None = None
    repo: str | None = None
    filename: str | None = None
    url: str | None = None
    sha256: str | None = None
    """The hash that a file from this source must have, where it is known."""


@dataclass(frozen=True)
class ModelCard:
    """Facts about a backbone that are known without building it.

    `weights` is None for a network without pretrained weights. `source` is what it was trained on, `licence` the terms
    of its weights. `libraries` names the distributions whose code the network uses, besides torch and the plugin's
    own: a plan records their versions.
    """

    input: Input
    weights: WeightsSource | None
    source: str
    licence: str
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
    def poolings(self) -> tuple[Pooling, ...]:
        """The poolings that this stage's output allows: `token` needs a class token."""
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

    def backbone(self) -> BackboneInfo:
        """The backbone of this trial."""

    def cut(self) -> str:
        """The last stage that is kept."""

    def frozen(self, cut: str) -> str | None:
        """The last stage that is not trained: None (all are trained) up to the cut."""

    def pooling(self, cut: str) -> Pooling:
        """How the cut's features become one vector."""

    def input(self) -> Input:
        """How images are prepared. The size is the backbone's own, or a larger one if backbone and images allow it.
        The mode (crop, squash or pad) is searched if the shapes of the images make it matter."""

    def augmentation(self) -> Component:
        """The augmentation of this trial with its parameters."""

    def class_weights(self) -> ClassWeights:
        """The class weights for fitting a head; always "none" unless the classes are unequal, see `UNEQUAL`."""

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


class Strategy(Protocol):
    """Suggests a plan.

    It may have an attribute `first_guess`, parameters by name. They are tried once, before the sampler draws, on the
    best backbone and cut of the probe unless they name others. A named backbone that the study does not have is
    replaced by the best one.
    """

    def suggest(self, trial: Trial, context: Context) -> TransferPlan:
        """Called once per trial. Must not train, must not read pixels, and must return within a minute."""


class Augmentation(Protocol):
    """Suggests parameters, and builds a transform of a batch from them."""

    def suggest(self, trial: Trial, context: Context) -> dict[str, Any]:
        """Parameters as plain JSON values; called once per trial by `context.augmentation()`."""

    def build(self, params: dict[str, Any]) -> "BatchTransform":
        """The transform; called once per phase."""


@dataclass(frozen=True)
class FittedHead:
    """A linear classifier: logits = features @ weight.T + bias."""

    weight: "torch.Tensor"
    """[C, D] float32; zeros in the columns of features that it does not use."""
    bias: "torch.Tensor"
    """[C] float32."""
    chosen: dict[str, float]
    """For each option with several values, the one that gave this head: a fit with it alone gives the same head."""


class Method(Protocol):
    """Fits a head on the features of frozen stages.

    The engine passes a phase's `options`, each as a list of alternatives. If the method returns several heads, the
    engine keeps the one with the lowest loss on images that were not fitted on. Later it refits only that one, on more
    images.

    A method may have an attribute `defaults`: more options by name, with the value to use if a plan does not set them.
    An option named `class_weights`, "none" or "balanced", also sets the class weights of the loss that selects a head.
    """

    options: Sequence[str]
    """The names of the options. A plan must set each of them to a value or a list of values; besides them it may set
    only those with defaults."""

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


class Draw(Protocol):
    """Random numbers, drawn separately for each image of a batch."""

    def __call__(self, count: int) -> "torch.Tensor":
        """[N, count] float32, uniform in [0, 1), on the images' device; every call gives new numbers.

        A row depends on the plan's seed, the epoch and the image, not on the batch.
        """


class BatchTransform(Protocol):
    """Changes a batch of training images, each with its own random numbers."""

    def __call__(self, images: "torch.Tensor", draw: Draw) -> "torch.Tensor":
        """images: [N, 3, S, S] uint8 → the same shape and type. `draw` must be the only source of randomness."""


CONTRACTS: dict[str, type] = {
    "backbones": Family,
    "augmentations": Augmentation,
    "strategies": Strategy,
    "methods": Method,
}
"""The interface of each kind."""


def require(contract: type, thing: object) -> None:
    """Raises: TypeError if `thing` lacks an attribute or method of the contract, or takes other arguments."""
    if isinstance(thing, type):
        raise TypeError(f"it is the class {thing.__name__}, but must be an instance of it")
    for name in contract.__annotations__:
        if not hasattr(thing, name):
            raise TypeError(f"{type(thing).__name__} has no '{name}'")
    for name, promised in vars(contract).items():
        if not inspect.isfunction(promised) or name.startswith("_"):
            continue
        method = getattr(thing, name, None)
        if not callable(method):
            raise TypeError(f"{type(thing).__name__} has no method '{name}'")
        given = list(inspect.signature(promised).parameters)[1:]
        try:
            signature = inspect.signature(method)
        except ValueError:  # written in C, without a signature
            continue
        try:
            signature.bind(*given)
        except TypeError:
            raise TypeError(f"its {name}{signature} cannot be called as {name}({', '.join(given)})") from None
