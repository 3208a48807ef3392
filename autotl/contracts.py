"""What a plugin offers, and the facts it is told.

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
"""Above this imbalance rare classes are easily missed: class weights are searched, other metrics recommended."""


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
    """What is known of a backbone without building it.

    `weights` is None for a network that has none to load. `source` says what it was trained on and
    `licence` under which terms its weights may be used. `libraries` names the distributions, besides
    torch and the plugin's own, whose code computes the network: a plan records their versions.
    """

    input: Input
    weights: WeightsSource | None
    source: str
    licence: str
    sizes: tuple[int, ...] = ()
    """Input sizes, in px, besides that of `input`, at which the network works too."""
    libraries: tuple[str, ...] = ()
    note: str = ""


class Family(Protocol):
    """Backbones with a common prefix, `family:architecture[.tag]`."""

    def names(self) -> Sequence[str]:
        """Every `architecture[.tag]` that can be listed, without the prefix."""

    def card(self, name: str) -> ModelCard:
        """Raises: KeyError for an unknown name."""

    def build(self, name: str, weights: Path | None) -> "torch.nn.Module":
        """The whole network on the CPU, in float32; it is split into stages afterwards.

        With `weights` None its parameters are random, drawn from torch's global generator. Otherwise
        they are read from the file; one that lacks something of what is kept, all but the classifier, must raise.
        `load_weights` sees to that.

        A network may have a method `no_weight_decay()`, as timm's have: the names of parameters to which weight
        decay is not applied, such as position embeddings and class tokens. Norms and biases need not be named.
        """


class Boundary(Record):
    """The value at the end of a stage."""

    name: str
    """The module that ends the stage, as in `layer3.1`; unique, and the stage's identity."""
    shape: tuple[int, ...]
    """Without the batch, at the size it was traced with: [C, H, W], [H, W, C] or [T, C]."""
    layout: Layout
    prefix_tokens: int
    """Class, distillation and register tokens in front of the image's own."""

    @property
    def channels(self) -> int:
        return self.shape[0] if self.layout == "NCHW" else self.shape[-1]


class StageInfo(Boundary):
    """One stage of a backbone: what it gives, and what it costs."""

    parameters: int
    flops: int
    """Multiply-accumulates times two, for one image."""

    @property
    def poolings(self) -> tuple[Pooling, ...]:
        """The poolings that this stage's value allows: `token` needs a class token."""
        return ("avg", "max", "token") if self.prefix_tokens else ("avg", "max")


class BackboneInfo(Record):
    """A backbone as plain facts: its input and its stages, from the image to the last cut."""

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
        """The stages that are kept when the backbone is cut after `cut`."""
        return self.stages[: self.names.index(cut) + 1]

    def parameters(self, cut: str) -> int:
        return sum(stage.parameters for stage in self.upto(cut))

    def flops(self, cut: str) -> int:
        return sum(stage.flops for stage in self.upto(cut))


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """What the train images are like, as far as their preparation depends on it."""

    image_size: int
    """The median of the shorter side, in px."""
    cut_away: float = 0.0
    """The median of the share of its area that an image has outside the square in its middle."""
    bits: int = BITS
    """How many bits the values of integer images with more than 8 bits use; 16 where there are none."""


@dataclass(frozen=True, kw_only=True)
class DataFacts(Shapes):
    """What a plugin may know of the data: numbers, never images or test labels."""

    classes: int
    train_images: int
    """Images of the train split alone."""
    smallest_class: int
    """Train images of the class that has fewest."""
    largest_class: int
    """Train images of the class that has most."""
    has_early_stop: bool
    """Whether there were enough images to carve a split for choosing the epoch."""

    @property
    def imbalance(self) -> float:
        """How many times the images of the smallest class the largest has."""
        return self.largest_class / max(1, self.smallest_class)


class Trial(Protocol):
    """What a plugin draws parameters of its own from, as from Optuna's trial; it has no other part of that.

    Their names begin with one that the plugin registered and a dot: `my-strategy.momentum`.
    """

    @property
    def number(self) -> int: ...

    @property
    def params(self) -> dict[str, Any]:
        """What has been drawn so far in this trial, by name."""

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float: ...

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int: ...

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """The choices must be the same in every trial of a study."""


class Context(Protocol):
    """What a strategy asks the host for. Whatever it does not ask for is not searched.

    The names of these parameters are shared by all strategies, so that what the sampler learns about
    depth or backbone in one of them serves the others. A parameter of the plugin's own goes through
    `trial.suggest_*`.
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
        """How images are prepared: at the backbone's own size, or a larger one where it and the images allow it; by
        cropping, squashing or padding where the shapes of the images call for a choice."""

    def augmentation(self) -> Component:
        """The augmentation of this trial with its parameters."""

    def class_weights(self) -> ClassWeights:
        """How much each class weighs where a head is fitted; "none" unless the classes are unequal, see `UNEQUAL`."""

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
        """A complete plan: what is given here and all that the host knows.

        Without `input` images are prepared as for the probe of cuts: as the backbone's training data was, unless a
        crop would cut too much away. Without `augmentation`
        they stay as they are. Unless `pretrained` the network begins with random weights.
        """


class Strategy(Protocol):
    """Suggests a plan.

    It may have an attribute `first_guess`, parameters by name: they are tried once, before the sampler draws, on the
    backbone and cut that look best unless they name others; a backbone that the study does not have gives way to it.
    """

    def suggest(self, trial: Trial, context: Context) -> TransferPlan:
        """Called once a trial. Must not train, must not look at pixels, must answer within a minute."""


class Augmentation(Protocol):
    """Suggests parameters, and builds a transform of a batch from them."""

    def suggest(self, trial: Trial, context: Context) -> dict[str, Any]:
        """Parameters as plain JSON values; called once a trial by `context.augmentation()`."""

    def build(self, params: dict[str, Any]) -> "BatchTransform":
        """The transform; called once a training."""


@dataclass(frozen=True)
class FittedHead:
    """A linear classifier: logits = features @ weight.T + bias."""

    weight: "torch.Tensor"
    """[C, D] float32; zeros in the columns of features that it does without."""
    bias: "torch.Tensor"
    """[C] float32."""
    chosen: dict[str, float]
    """For each option of which there were several values, the one that gave this head: alone it gives it again."""


class Method(Protocol):
    """Fits a head on the features of frozen stages, by no steps that a plan has to spell out.

    The engine offers what a phase's `options` say, each as a list of alternatives; takes, of several heads, the
    one with the lowest loss on images that were not fitted on; and later asks for that head alone, on more images.

    It may have an attribute `defaults`, more options by name with the value that holds where a plan leaves them out.
    An option named `class_weights`, "none" or "balanced", says how classes weigh in the loss that chooses, too.
    """

    options: Sequence[str]
    """The names of the options. A plan must give each of them, a value or a list of values, and no others but those
    that have defaults."""

    def fit(
        self,
        features: "torch.Tensor",
        labels: "torch.Tensor",
        classes: int,
        options: dict[str, list[Any]],
        step: Callable[[], None],
    ) -> Sequence[FittedHead]:
        """features: [N, D] float32, raw. labels: [N] int64. Both are on the device on which the heads have to be.

        `step` is to be called every now and then: it raises when time is up. Nothing may be left to chance.

        Raises: PlanError for an option's value that it cannot take.
        """


class Draw(Protocol):
    """Random numbers of which every image of a batch has its own."""

    def __call__(self, count: int) -> "torch.Tensor":
        """[N, count] float32, uniform in [0, 1), on the images' device; every call draws anew.

        A row depends on the plan's seed, the epoch and the image, not on the batch it is in.
        """


class BatchTransform(Protocol):
    """Changes a batch of training images, each by a draw of its own."""

    def __call__(self, images: "torch.Tensor", draw: Draw) -> "torch.Tensor":
        """images: [N, 3, S, S] uint8 → the same shape and type. Nothing but `draw` may be left to chance."""


CONTRACTS: dict[str, type] = {
    "backbones": Family,
    "augmentations": Augmentation,
    "strategies": Strategy,
    "methods": Method,
}
"""What things of each kind have to offer."""


def require(contract: type, thing: object) -> None:
    """Raises: TypeError when a thing lacks what a contract names, or has a method that cannot be called as it says."""
    if isinstance(thing, type):
        raise TypeError(f"it is the class {thing.__name__}, and must be an object of it")
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
        except ValueError:  # written in C, and says nothing of itself
            continue
        try:
            signature.bind(*given)
        except TypeError:
            raise TypeError(f"its {name}{signature} cannot be called as {name}({', '.join(given)})") from None
