"""The plan: one complete, immutable transfer setup as plain data, all that is needed to train it again.

Above the plan everything knows about search and nothing about tensors; below it everything knows
about tensors and nothing about search.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from autotl.errors import PlanError

Pooling = Literal["avg", "max", "token"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]


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

    The short side is resized to `resize` px, the middle `size` x `size` px are kept, values are
    scaled to [0, 1], `mean` is taken off and the rest divided by `std`, channel by channel.
    """

    size: int = Field(ge=8, le=2048)
    resize: int = Field(ge=8, le=4096)
    interpolation: Interpolation
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @model_validator(mode="after")
    def _holds_the_crop(self) -> Self:
        if self.resize < self.size:
            raise ValueError(f"resize ({self.resize} px) must be at least size ({self.size} px)")
        return self


class Head(Record):
    """Pooling plus linear classifier on the cut's features."""

    pooling: Pooling


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


class Phase(Record):
    """A part of a plan's training.

    `frozen` is the last stage that is not trained: None trains all, the cut trains the head alone.
    `stage_rates` holds the learning rate of every trained stage by name.
    """

    method: str
    frozen: str | None
    stage_rates: dict[str, float] = {}
    head_rate: float | None = None
    epochs: int = Field(default=0, ge=0)
    stop: Params = {}
    batch_norm: Literal["eval", "train"] = "eval"
    options: Params = {}


class TransferPlan(Record):
    """A complete transfer setup. Anything that can change a number is in it."""

    schema_: Literal[1] = Field(default=1, alias="schema")
    backbone: str
    weights: str
    """`sha256:<hex>` of the weights file, `random:<seed>`, or `none` for a backbone without weights."""
    input: Input
    compute_dtype: Literal["float32"] = "float32"
    boundary_dtype: Literal["float32"] = "float32"
    cut: str
    head: Head
    augmentation: Component
    data: DataRef
    train_on: tuple[Literal["train", "stop", "rank"], ...] = Field(default=("train",), min_length=1)
    """The splits that are trained on; what is left of `stop` and `rank` chooses and measures."""
    seed: int
    requires: dict[str, str]
    """Versions of the libraries that the numbers depend on, and `stages`: a hash of the stage list."""
    phases: tuple[Phase, ...] = Field(min_length=1)

    @property
    def hash(self) -> str:
        """SHA-256 of the canonical JSON."""
        return digest(self.model_dump(mode="json"))


def digest(value: Mapping[str, Any] | list[Any]) -> str:
    """SHA-256 of a JSON value in canonical form: sorted keys, no spaces."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
