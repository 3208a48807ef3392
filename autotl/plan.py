"""The plan: one complete, immutable transfer-learning setup as plain data, enough to train it again.

Above the plan everything knows about search and nothing about tensors; below it everything knows
about tensors and nothing about search.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from autotl.errors import PlanError

StoredPooling = Literal["avg", "max", "token"]
"""The poolings with which the features of every stage are stored, so that heads can be fitted on them."""
Pooling = Literal[StoredPooling, "gem", "flatten"]
"""Besides them, for heads that are trained by gradient descent: the generalised mean (p = 3; Radenović et al. 2019,
arXiv 1711.02512), and no pooling, for small maps only."""
HeadKind = Literal["linear", "mlp", "conv", "cosine"]
"""`linear`: a linear classifier; `mlp`: a hidden layer with ReLU before it; `conv`: a 3 x 3 convolution with norm and
ReLU before the pooling; `cosine`: the cosine of features and class weights, times a learned scale (after Chen et al.
2019, arXiv 1904.04232)."""
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Mode = Literal["crop", "squash", "pad"]
"""How an image that is not square becomes one."""
Precision = Literal["float32", "bfloat16"]
MemoryFormat = Literal["contiguous", "channels_last"]
NearCopies = Literal["together", "apart"]
ClassWeights = Literal["none", "balanced", "effective"]
"""How images are weighted in a loss: all equally, so that every class has the same total weight, or in between, by the
effective number of images of its class (Cui et al. 2019, arXiv 1901.05555)."""
Sampling = Literal["shuffled", "balanced"]
"""Which images an epoch has: each one once, or as many as that, and as many of each class."""
Technique = Literal["mixup", "cutmix", "l2-sp", "ema", "distillation", "balanced-sampling"]
"""Techniques of training that are searched only if the user names them."""
Minimized = Literal["params", "flops", "latency"]
"""The costs of a network that a search can minimise, too."""
Deviation = Annotated[float, Field(gt=0)]
"""A standard deviation, to divide by."""

MODES: tuple[Mode, ...] = get_args(Mode)
HEADS: tuple[HeadKind, ...] = get_args(HeadKind)
WIDE: tuple[HeadKind, ...] = ("mlp", "conv")
"""The heads with a new layer, whose width the plan gives."""
BITS = 16
"""Bits of an integer image's values, unless the plan gives another number."""

PENALTIES = tuple(float(f"1e{power}") for power in range(-4, 2))
"""L2 penalties on standardised features, relative to the mean log-loss: from very weak to very strong. One fit of a
logistic regression covers them all, so they are not searched."""


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    json.dumps(value, allow_nan=False)
    return value


Params = Annotated[dict[str, Any], AfterValidator(_plain)]
"""Plain JSON values by name."""


class Record(BaseModel):
    """Immutable plain data with JSON both ways; an unknown key is an error."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        validate_by_name=True,
        serialize_by_alias=True,
    )

    @classmethod
    def from_json(cls, text: str | bytes, *, name: str = "") -> Self:
        """Read what `to_json` wrote. `name` is where the text came from; the error message shows it.

        Raises: PlanError, in one line.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the top level"
            raise PlanError(
                f"{name or 'This JSON'} is not a valid {cls.__name__}: {first['msg']} (at {where})."
            ) from None

    def to_json(self) -> str:
        return self.model_dump_json(indent=2) + "\n"


class Input(Record):
    """How an image is prepared, as the backbone's training data was.

    `mode` says what is resized to `resize` px: the short side (`crop`), both sides (`squash`) or the long side (`pad`,
    which fills the rest of a square with `mean`). Then the centre `size` x `size` px are kept, values are scaled to
    [0, 1], and each channel is normalised with `mean` and `std`.

    Default values are not written, so plans keep the hash that they had before these fields existed.
    """

    size: int = Field(ge=8, le=2048)
    resize: int = Field(ge=8, le=4096)
    interpolation: Interpolation
    mean: tuple[float, float, float]
    std: tuple[Deviation, Deviation, Deviation]
    mode: Mode = Field(default="crop", exclude_if=lambda mode: mode == "crop")
    bits: int = Field(default=BITS, ge=8, le=BITS, exclude_if=lambda bits: bits == BITS)
    """How many bits the values of an integer image use. They are scaled to 8 bits, and larger values are clipped.
    Images with 8 bits per channel are not changed."""

    @model_validator(mode="after")
    def _holds_the_crop(self) -> Self:
        if self.resize < self.size:
            raise ValueError(f"resize ({self.resize} px) must be at least size ({self.size} px)")
        return self

    @property
    def of_pixels(self) -> dict[str, Any]:
        """The fields that pixels depend on: not `std`, and `mean` only in mode `pad`."""
        return self.model_dump(exclude={"std"} if self.mode == "pad" else {"std", "mean"})

    def at(self, size: int) -> Self:
        """The same preparation at another size; the cropped share of the image stays the same."""
        return self.model_copy(update={"size": size, "resize": round(self.resize * size / self.size)})

    def by(self, mode: Mode) -> Self:
        """The same preparation with another mode; `squash` and `pad` keep the whole image."""
        return self.model_copy(update={"mode": mode, "resize": self.resize if mode == "crop" else self.size})

    def larger(self) -> tuple[int, ...]:
        """Larger sizes that often improve a network of flexible input size: about 1.3 and 1.7 times its own size.

        Multiples of 32 px.

        Objects look larger in a training crop than in a test image (Touvron et al. 2019, arXiv 1906.06423).
        """
        return tuple(32 * round(self.size * factor / 32) for factor in (1.25, 1.7))


class Head(Record):
    """Pooling plus classifier on the cut's features.

    Only a linear head can be fitted by a method such as `logistic`; the others are trained by gradient descent. Default
    values are not written, except for `taps`.
    """

    pooling: Pooling
    taps: tuple[str, ...] = ()
    """Earlier stages, in the network's order, whose features the classifier also gets, before the cut's."""
    kind: HeadKind = Field(default="linear", exclude_if=lambda kind: kind == "linear")
    width: int | None = Field(default=None, ge=8, le=8192, exclude_if=lambda width: width is None)
    """Units of the hidden layer (`mlp`), or channels of the convolution (`conv`)."""

    @property
    def title(self) -> str:
        """Its kind and its width, such as `mlp 256`."""
        return f"{self.kind} {self.width}" if self.width else self.kind

    @model_validator(mode="after")
    def _has_a_width_if_it_has_a_layer(self) -> Self:
        if (self.width is not None) != (self.kind in WIDE):
            how = "needs a width" if self.kind in WIDE else "has no width"
            raise ValueError(f"a head of kind '{self.kind}' {how}")
        return self


class Component(Record):
    """Something that a plugin registered, by name, with its parameters. The plan's `requires` has the version."""

    name: str
    params: Params = {}


NO_AUGMENTATION = Component(name="none")


class DataRef(Record):
    """Which data a plan was made for: the fingerprint covers paths, contents, labels and splits."""

    fingerprint: str
    split_seed: int
    near_copies: NearCopies = "together"
    """Whether near-copies (images that look nearly the same) are kept in one split."""
    division: int = Field(default=0, ge=0, exclude_if=lambda division: division == 0)
    """Which division of the images outside the test split into the other splits: 0 is the study's own. In the others
    images that were in `val` least often come first, so that plans are judged on more images."""


class Stop(Record):
    """When a phase ends before its last epoch. The learning rate schedule still spans all epochs."""

    patience: int | None = Field(default=None, ge=1)
    """Stop after this many epochs without a lower loss on the `early_stop` split, and restore the best epoch."""
    at_epoch: int | None = Field(default=None, ge=0)
    """Stop after this epoch regardless of the loss. This repeats an early-stopped training on more images."""
    ends_plan: bool = Field(default=False, exclude_if=lambda ends: not ends)
    """Whether later phases are skipped if no epoch of this one has a lower loss on `early_stop` than the model before
    it."""

    @model_validator(mode="after")
    def _says_one_thing(self) -> Self:
        if (self.patience is None) == (self.at_epoch is None):
            raise ValueError("set either patience or at_epoch, not both or neither")
        if self.ends_plan and not self.patience:
            raise ValueError("ends_plan needs patience, because the loss decides")
        return self


class Teacher(Record):
    """A linear classifier on another frozen backbone, fitted on the training images, from which a phase learns
    (distillation: Hinton et al. 2015, arXiv 1503.02531)."""

    backbone: str
    weights: str
    """As in `Network`."""
    input: Input
    cut: str
    pooling: Pooling
    share: float = Field(gt=0, le=1)
    """Of the teacher's probabilities in the targets; the rest are the labels."""
    temperature: float = Field(default=1.0, ge=1)
    """The teacher's logits are divided by it: the higher, the less sure it is."""


class Training(Record):
    """How a phase trains by gradient descent: its head, and the stages after the frozen ones."""

    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    head_lr: float = Field(ge=0)
    stage_lr: dict[str, Annotated[float, Field(ge=0)]] = {}
    """The learning rate of every trained stage by name."""
    optimizer: Component = Component(name="adamw")
    objective: Component = Component(name="cross-entropy")
    """The loss that is minimised. Epochs are evaluated by cross-entropy and the metrics with every objective,
    with the same label smoothing."""
    adapter: Component = Component(name="all")
    """Which parameters of the trained stages are trained."""
    stage_adapters: dict[str, Component] = {}
    """The adapters of single stages by name, instead of `adapter`."""
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_ratio: float = Field(default=0.0, ge=0, le=1)
    """The share of the phase's steps during which the learning rates rise from zero."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Of weights; not of norms, biases and the parameters that the network names in `no_weight_decay()`."""
    l2_sp: float = Field(default=0.0, ge=0)
    """If above zero, trained stages have, instead of weight decay, a penalty l2_sp / 2 · ‖w - w₀‖² on the distance to
    their weights at the start of the phase (L2-SP, Li et al. 2018, arXiv 1802.01483)."""
    clip_grad: float | None = Field(default=None, gt=0)
    """The largest norm of the gradient of all parameters together."""
    ema: float = Field(default=0.0, ge=0, lt=1)
    """If above zero, the model is the exponential moving average of the weights, with this decay per step."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Of what the head's last layer gets: the pooled features, or the hidden units of an `mlp`."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    class_weights: ClassWeights = "none"
    """Of the objective, and of the cross-entropy that epochs are evaluated by."""
    sampling: Sampling = Field(default="shuffled", exclude_if=lambda sampling: sampling == "shuffled")
    """With `balanced`, epochs are evaluated by a cross-entropy with balanced class weights."""
    teacher: Teacher | None = None
    """Whose probabilities become part of the targets."""
    mixup: float = Field(default=0.0, ge=0)
    """If above zero, images are blended in pairs, with shares from Beta(mixup, mixup), and so are their classes (Zhang
    et al. 2018, arXiv 1710.09412). With frozen stages their output is blended (Verma et al. 2019, arXiv 1806.05236)."""
    cutmix: float = Field(default=0.0, ge=0)
    """If above zero, a rectangle of each image comes from another one (Yun et al. 2019, arXiv 1905.04899). With `mixup`
    each batch gets one of the two."""
    views: int = Field(default=0, ge=0)
    """The number of fixed augmented views of each image, used in turn; 0: a new one in every epoch."""
    batch_norm: Literal["eval", "train"] = "eval"
    """Whether batch norm in trained stages uses its stored statistics (`eval`) or each batch's (`train`). Frozen stages
    always use the stored ones."""
    stop: Stop | None = None

    @property
    def counted(self) -> ClassWeights:
        """The class weights that have the effect of `class_weights` and `sampling` on average."""
        return "balanced" if self.sampling == "balanced" else self.class_weights

    @model_validator(mode="after")
    def _balances_classes_once(self) -> Self:
        if self.sampling == "balanced" and self.class_weights != "none":
            raise ValueError("balanced sampling already counts classes equally: set class_weights to 'none'")
        return self


class Phase(Record):
    """A part of a plan's training. It continues with the network and the head of the previous phase.

    A method either fits the head on frozen features, or trains by gradient descent, as `training` describes.
    """

    method: str
    frozen: str | None
    """The last stage that is not trained: None trains all stages, the cut trains only the head."""
    training: Training | None = None
    options: Params = {}
    """The method's own options by name."""

    def trained_by(self, **changes: Any) -> Self:
        """The phase with changed fields of its `training`."""
        assert self.training is not None
        return self.model_copy(update={"training": self.training.model_copy(update=changes)})

    def measure(self, option: str, chosen: float | str) -> float:
        """A chosen value of an option as a metric, which is a number: of words its place among the alternatives."""
        values = self._alternatives(option)
        return values.index(chosen) if _has_words(values) else float(chosen)

    def choice(self, option: str, measured: float) -> Any:
        """The value of an option that has this metric."""
        values = self._alternatives(option)
        return values[int(measured)] if _has_words(values) else measured

    def _alternatives(self, option: str) -> list[Any]:
        values = self.options.get(option)
        return values if isinstance(values, list) else [values]


def _has_words(values: list[Any]) -> bool:
    return any(isinstance(value, str) for value in values)


@dataclass(frozen=True)
class Network:
    """A backbone with its weights and input preparation; together they determine the features of an image."""

    backbone: str
    weights: str
    """`sha256:<hex>` of the weights file, `random:<seed>`, or `none` for a backbone without weights."""
    input: Input


class TransferPlan(Record):
    """A complete transfer-learning setup. Anything that can change a number is in it."""

    schema_: Literal[1] = Field(default=1, alias="schema")
    backbone: str
    weights: str
    """As in `Network`."""
    input: Input
    compute_dtype: Precision = "float32"
    """The type of multiplications during training and evaluation of epochs. Weights and final metrics use float32."""
    boundary_dtype: Precision = "float32"
    """The type in which the output of the frozen stages is stored while the rest is trained."""
    memory_format: MemoryFormat = "channels_last"
    cut: str
    head: Head
    augmentation: Component
    data: DataRef
    train_on: tuple[Literal["train", "early_stop", "val"], ...] = Field(default=("train",), min_length=1)
    """The splits to train on. `early_stop` and `val`, where not trained on, choose the epoch and measure."""
    seed: int = Field(ge=0)
    requires: dict[str, str]
    """Versions of the libraries that the numbers depend on, and `stages`: a hash of the stage list."""
    phases: tuple[Phase, ...] = Field(min_length=1)
    test_views: int = Field(default=1, ge=1, le=2, exclude_if=lambda views: views == 1)
    """The views of an image whose probabilities the finished model averages: the image, and the mirrored image."""

    def __repr_args__(self) -> Iterator[tuple[str, str]]:
        """A short summary of the plan; `to_json()` has everything."""
        yield "backbone", self.backbone
        yield "cut", self.cut
        yield "methods", ", ".join(phase.method for phase in self.phases)
        yield "hash", self.hash[:12]

    @property
    def members(self) -> tuple[Self, ...]:
        """As those of an `Ensemble`: the plan alone."""
        return (self,)

    @property
    def network(self) -> Network:
        return Network(self.backbone, self.weights, self.input)

    @property
    def trainings(self) -> tuple[Training, ...]:
        """Of the phases that train by gradient descent; without any, the backbone is not changed."""
        return tuple(phase.training for phase in self.phases if phase.training)

    def epochs(self, phases: int | None = None) -> int:
        """How many epochs the first `phases` phases have together, by default all."""
        return sum(phase.training.epochs for phase in self.phases[:phases] if phase.training)

    def words_in(self, metrics: Mapping[str, float]) -> dict[str, str]:
        """The words that fitted heads were chosen with, by the names of the metrics that hold their places."""
        found = {}
        for number, phase in enumerate(self.phases, 1):
            for option in phase.options if phase.training is None else ():
                key = f"phase{number}.{option}"
                if key in metrics and isinstance(word := phase.choice(option, metrics[key]), str):
                    found[key] = word
        return found

    def as_run(self, metrics: Mapping[str, float]) -> Self:
        """The plan without the phases that a training with these metrics skipped; see `Stop.ends_plan`."""
        skipped = [
            number
            for number, phase in enumerate(self.phases, 1)
            if phase.training and f"phase{number}.best_epoch" not in metrics
        ]
        return self.model_copy(update={"phases": self.phases[: skipped[0] - 1]}) if skipped else self

    def ended(self, phase: int, epoch: int) -> Self:
        """The plan that ends after this epoch of this phase, both counted from 1, with the same learning rates."""
        last = self.phases[phase - 1].trained_by(stop=Stop(at_epoch=epoch))
        return self.model_copy(update={"phases": (*self.phases[: phase - 1], last)})

    @property
    def hash(self) -> str:
        """SHA-256 of the canonical JSON."""
        return digest(self.model_dump(mode="json"))


class Ensemble(Record):
    """The plans of several models whose probabilities are averaged (Caruana et al. 2004)."""

    schema_: Literal[1] = Field(default=1, alias="schema")
    members: tuple[TransferPlan, ...] = Field(min_length=2)

    @property
    def hash(self) -> str:
        """As a plan's."""
        return digest(self.model_dump(mode="json"))


Made = TransferPlan | Ensemble
"""What a model was made by."""


def made_by(text: bytes, *, name: str = "") -> Made:
    """The plan of a model, or those of an ensemble, from what `to_json` wrote; `name` as in `from_json`.

    Raises: PlanError, in one line.
    """
    try:
        several = "members" in json.loads(text)
    except (ValueError, TypeError, RecursionError):
        several = False
    return (Ensemble if several else TransferPlan).from_json(text, name=name)


def inputs_of(made: Made) -> tuple[Input, ...]:
    """The different preparations of an image that its models need, in the order in which they are first needed."""
    found: list[Input] = []
    for plan in made.members:
        if plan.input.of_pixels not in [each.of_pixels for each in found]:
            found.append(plan.input)
    return tuple(found)


def digest(value: Mapping[str, Any] | list[Any]) -> str:
    """SHA-256 of a JSON value in canonical form: sorted keys, no spaces."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
