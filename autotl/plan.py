"""The plan: one complete, immutable transfer setup as plain data, all that is needed to train it again.

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

Pooling = Literal["avg", "max", "token"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Mode = Literal["crop", "squash", "pad"]
"""How an image that is not square becomes one."""
Precision = Literal["float32", "bfloat16"]
MemoryFormat = Literal["contiguous", "channels_last"]
NearCopies = Literal["together", "apart"]
ClassWeights = Literal["none", "balanced"]
"""How much the images of a class weigh in a loss: all alike, or so that each class weighs as much as any other."""
Deviation = Annotated[float, Field(gt=0)]
"""A standard deviation, to divide by."""

MODES: tuple[Mode, ...] = get_args(Mode)
BITS = 16
"""Of an integer image, where nothing else is said."""

PENALTIES = tuple(float(f"1e{power}") for power in range(-4, 2))
"""L2 penalties on standardised features, against the mean log-loss: from hardly any to very strong."""


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
        """Read what `to_json` wrote. `name` says in the error where the text came from.

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

    The short side is resized to `resize` px where `mode` is `crop`, both sides are where it is `squash`, and the long
    side is where it is `pad`: then `mean` fills the rest of a square. The middle `size` x `size` px are kept, values
    are scaled to [0, 1], `mean` is taken off and the rest divided by `std`, channel by channel.

    What is as usual is not written, so that plans keep the hash that they had before there was a choice.
    """

    size: int = Field(ge=8, le=2048)
    resize: int = Field(ge=8, le=4096)
    interpolation: Interpolation
    mean: tuple[float, float, float]
    std: tuple[Deviation, Deviation, Deviation]
    mode: Mode = Field(default="crop", exclude_if=lambda mode: mode == "crop")
    bits: int = Field(default=BITS, ge=8, le=BITS, exclude_if=lambda bits: bits == BITS)
    """How many bits the values of an integer image use: these are scaled to 8, and larger values count as the largest.
    Images of 8 bits a channel stay as they are."""

    @model_validator(mode="after")
    def _holds_the_crop(self) -> Self:
        if self.resize < self.size:
            raise ValueError(f"resize ({self.resize} px) must be at least size ({self.size} px)")
        return self

    def at(self, size: int) -> Self:
        """The same preparation for another size: the share of the image that is cropped away stays."""
        return self.model_copy(update={"size": size, "resize": round(self.resize * size / self.size)})

    def by(self, mode: Mode) -> Self:
        """The same preparation by another mode: squashed or padded, the whole image is seen."""
        return self.model_copy(update={"mode": mode, "resize": self.resize if mode == "crop" else self.size})

    def larger(self) -> tuple[int, ...]:
        """Sizes at which a network that takes any size gains: about 1.3 and 1.7 times its own, in multiples of 32.

        Objects look larger in a training crop than in a test image (Touvron et al. 2019, arXiv 1906.06423).
        """
        return tuple(32 * round(self.size * factor / 32) for factor in (1.25, 1.7))


class Head(Record):
    """Pooling plus linear classifier on the cut's features."""

    pooling: Pooling
    taps: tuple[str, ...] = ()
    """Earlier stages, in the network's order, whose features the classifier sees too, before the cut's."""


class Component(Record):
    """Something that a plugin provides, with who provided it and its parameters."""

    name: str
    owner: str
    version: str
    params: Params = {}


class DataRef(Record):
    """Which data a plan was made for: the fingerprint covers paths, contents, labels and splits."""

    fingerprint: str
    split_seed: int
    near_copies: NearCopies = "together"
    """Where the split puts images that look nearly the same: into one split, or wherever each falls."""


class Stop(Record):
    """When a phase ends before the last of its epochs; the schedule of its rates is that of all of them."""

    patience: int | None = Field(default=None, ge=1)
    """It ends after so many epochs without a lower loss on the `early_stop` split, and the best epoch is restored."""
    at_epoch: int | None = Field(default=None, ge=0)
    """It ends after this epoch, whatever the loss: how a training that was stopped early is repeated on more images."""

    @model_validator(mode="after")
    def _says_one_thing(self) -> Self:
        if (self.patience is None) == (self.at_epoch is None):
            raise ValueError("say either patience or at_epoch")
        return self


class Phase(Record):
    """A part of a plan's training. It goes on with the network and the head that the phase before it left.

    `frozen` is the last stage that is not trained: None trains all, the cut trains the head alone.
    `stage_lr` holds the learning rate of every trained stage by name.
    """

    method: str
    frozen: str | None
    stage_lr: dict[str, Annotated[float, Field(ge=0)]] = {}
    head_lr: float | None = Field(default=None, ge=0)
    epochs: int = Field(default=0, ge=0)
    stop: Stop | None = None
    batch_norm: Literal["eval", "train"] = "eval"
    """Whether batch-norm in trained stages keeps its statistics or goes by each batch; frozen stages keep theirs."""
    options: Params = {}
    """What the method needs to know besides, by its own names."""

    @classmethod
    def linear_probe(cls, cut: str, class_weights: ClassWeights = "none") -> Self:
        """The usual classifier on frozen features: one fit goes through `PENALTIES`, so that they cost no trial."""
        weighted = {} if class_weights == "none" else {"class_weights": class_weights}
        return cls(method="logistic", frozen=cut, options={"penalty": list(PENALTIES), **weighted})

    @property
    def by_gradient(self) -> bool:
        """Whether it trains step by step, in an order left to chance; other methods fit the head alone, without any."""
        return self.method == "sgd"


@dataclass(frozen=True)
class Network:
    """A backbone with its weights, at one way to prepare images: what gives one image one set of features."""

    backbone: str
    weights: str
    """`sha256:<hex>` of the weights file, `random:<seed>`, or `none` for a backbone without weights."""
    input: Input


class TransferPlan(Record):
    """A complete transfer setup. Anything that can change a number is in it."""

    schema_: Literal[1] = Field(default=1, alias="schema")
    backbone: str
    weights: str
    """As in `Network`."""
    input: Input
    compute_dtype: Precision = "float32"
    """What a training multiplies in and judges its epochs in; weights, and what is measured at its end, are float32."""
    boundary_dtype: Precision = "float32"
    """What the value at the end of the frozen stages is rounded to while the rest is trained."""
    memory_format: MemoryFormat = "channels_last"
    cut: str
    head: Head
    augmentation: Component
    data: DataRef
    train_on: tuple[Literal["train", "early_stop", "val"], ...] = Field(default=("train",), min_length=1)
    """The splits that are trained on; what is left of `early_stop` and `val` chooses and measures."""
    seed: int = Field(ge=0)
    requires: dict[str, str]
    """Versions of the libraries that the numbers depend on, and `stages`: a hash of the stage list."""
    phases: tuple[Phase, ...] = Field(min_length=1)

    def __repr_args__(self) -> Iterator[tuple[str, str]]:
        """What tells plans apart at a glance; all of it is `to_json()`."""
        yield "backbone", self.backbone
        yield "cut", self.cut
        yield "methods", ", ".join(phase.method for phase in self.phases)
        yield "hash", self.hash[:12]

    @property
    def network(self) -> Network:
        return Network(self.backbone, self.weights, self.input)

    @property
    def by_gradient(self) -> bool:
        """Whether any phase trains by gradient descent; otherwise the network is left as it is."""
        return any(phase.by_gradient for phase in self.phases)

    def ended(self, phase: int, epoch: int) -> Self:
        """The plan that ends after this epoch of this phase, both counted from 1; the rates are those of this plan."""
        last = self.phases[phase - 1].model_copy(update={"stop": Stop(at_epoch=epoch)})
        return self.model_copy(update={"phases": (*self.phases[: phase - 1], last)})

    @property
    def hash(self) -> str:
        """SHA-256 of the canonical JSON."""
        return digest(self.model_dump(mode="json"))


def digest(value: Mapping[str, Any] | list[Any]) -> str:
    """SHA-256 of a JSON value in canonical form: sorted keys, no spaces."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
