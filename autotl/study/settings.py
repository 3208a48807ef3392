"""The settings of a search: the same names as options of the command, in the file of --config and from Python."""

import json
import math
import re
import shlex
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, ValidationError

from autotl.data.listing import Columns
from autotl.errors import PluginError, StudyError, masked, unknown
from autotl.files import is_utf8
from autotl.plan import HeadKind, Minimized, NearCopies, Pooling, Record, Technique
from autotl.study.costs import COSTS, USUAL, Cost, amount

OF_ONE_SEARCH = {
    "trials",
    "budget",
    "prune",
    "pool",
    "refit",
    "reruns",
    "pick",
    "compare",
    "views",
    "ensemble",
    "max_kills",
    "strict_plugins",
}
"""Settings that the next search of a study may change, and that can change its result."""
OPTION_OF = {"strategy": "strategies", "backbone": "backbones"}
"""Parameters of a trial that have an option of their own."""
UNITS = {
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), 60),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), 3600),
    **dict.fromkeys(("d", "day", "days"), 86400),
}
BEST, SIMPLEST, KNEE, WITHIN = "best", "simplest", "knee", re.compile(r"within=(\d+\.?\d*|\.\d+)")
"""The ways to pick the winner."""
RERUN = (BEST, SIMPLEST)
"""The ways for which the best plans are rerun; others pick by the trials alone, and by a cost."""
_PART = re.compile(r"(\d+\.?\d*|\.\d+)\s*([a-z]+)[\s,]*")
_CLOCK = re.compile(r"(\d+):([0-5]\d):([0-5]\d)")


def seconds(value: str | float | timedelta | None) -> float | None:
    """`90s`, `5min`, `1.5h`, `1h 30m`, `2 hours`, `1:30:00`, or seconds alone.

    Raises: ValueError for anything else, and for less than a minute.
    """
    if value is None:
        return None
    found = value.total_seconds() if isinstance(value, timedelta) else _seconds(str(value).strip().lower())
    if found is None:
        raise ValueError(f"'{value}' is not a duration; allowed are 90s, 30m, 1.5h, 1h30m and the like")
    if not 60 <= found < math.inf:
        raise ValueError(f"'{value}' is out of range: a budget must be at least 60s and finite")
    return found


def _seconds(text: str) -> float | None:
    """None if the text is not a duration."""
    if clock := _CLOCK.fullmatch(text):
        hours, minutes, rest = map(int, clock.groups())
        return 3600.0 * hours + 60 * minutes + rest
    parts = _PART.findall(text)
    if parts and not _PART.sub("", text) and all(unit in UNITS for _, unit in parts):
        return sum(float(number) * UNITS[unit] for number, unit in parts)
    try:
        return float(text)
    except ValueError:
        return None


def _named(value: Any) -> Any:
    return value.split(",") if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_named)]
Techniques = Annotated[tuple[Technique, ...], BeforeValidator(_named)]
Amount = Annotated[int | None, BeforeValidator(amount)]
Heads = Annotated[tuple[HeadKind, ...], BeforeValidator(_named)]
Poolings = Annotated[tuple[Pooling, ...], BeforeValidator(_named)]


def _views(value: Any) -> Any:
    return int(value) if isinstance(value, str) and value.isdecimal() else value


def _workers(value: Any) -> Any:
    number = int(value) if isinstance(value, str) and value.isdecimal() else value
    if number != "auto" and (not isinstance(number, int) or number < 1):
        raise ValueError("it must be a number of processes, at least 1, or auto")
    return number


def way_to_pick(text: str) -> str:
    """`best`, `simplest`, `knee` or `within=0.5`.

    Raises: ValueError for anything else.
    """
    if text in (BEST, SIMPLEST, KNEE) or WITHIN.fullmatch(text):
        return text
    raise ValueError(
        f"'{text}' is not a way to pick; allowed are best, simplest, knee and within=POINTS, such as within=0.5"
    )


def _text(path: Path) -> Path:
    if not is_utf8(path.resolve()):
        raise ValueError("its name, or that of a parent folder, is not UTF-8; rename it")
    return path


def parsed(text: str) -> Any:
    """The value in `--set NAME=VALUE`: a number, true, false or null as in JSON, a text in double quotes, or a text."""
    try:
        value = json.loads(text, parse_constant=str)
    except ValueError:
        try:
            value = float(text)
        except ValueError:
            return text
    return text if isinstance(value, list | dict) or (isinstance(value, float) and not math.isfinite(value)) else value


def said(value: Any) -> str:
    """The text from which `parsed` makes this value."""
    return value if isinstance(value, str) and parsed(value) == value else json.dumps(value, ensure_ascii=False)


def by_name(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by their whole names: `{"late-probe": {"penalty": 1}}` becomes `{"late-probe.penalty": 1}`."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        inner = by_name(value) if isinstance(value, Mapping) else {"": value}
        flat |= {f"{name}.{rest}" if rest else str(name): each for rest, each in inner.items()}
    return flat


def _fixed(values: Any) -> Any:
    if not isinstance(values, Mapping):
        raise ValueError("it must be a table of parameters and their values")
    flat = by_name(values)
    for name, value in flat.items():
        if name in OPTION_OF:
            raise ValueError(f"'{name}' is chosen by --{OPTION_OF[name]}")
        if not isinstance(value, str | int | float | bool | None) or value in (math.inf, -math.inf) or value != value:
            raise ValueError(f"the value of '{name}' must be a number, a text, true, false or null")
    return flat


def _plugins(value: Any) -> Any:
    several = value if isinstance(value, list | tuple) else (value,)
    return tuple(_file(Path(each)) if isinstance(each, str | Path) else each for each in several)


def _file(path: Path) -> Path:
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    return _text(path).resolve()


class Settings(Record):
    """All settings of a search. Names of plugins may be globs."""

    model_config = ConfigDict(strict=False, use_attribute_docstrings=True)

    data: Annotated[Path, AfterValidator(_text)]
    """A folder with a sub-folder for each class, or with train/, val/ and test/ of such folders, or a manifest."""
    path_column: str | None = None
    """The manifest's column with the paths of the images; None: found by its name, or as the study was started."""
    label_column: str | None = None
    """The manifest's column with the classes; None: found by its name, or as the study was started."""
    trials: int = Field(default=50, ge=1)
    """The total number of trials of the study, including those of earlier runs."""
    budget: Annotated[float | None, BeforeValidator(seconds)] = None
    """Time limit for everything, from reading images to the tested bundle: seconds or "30m"; None: no limit."""
    prune: bool = True
    """Whether trials that fall behind are pruned."""
    backbones: Names = ()
    """Names or globs of the backbones to consider; empty: those of `pool`."""
    pool: Literal["auto", "shipped", "small", "large"] = "auto"
    """Backbones if none are named: those that ship, plus two small or three large ones; `auto`: by the device."""
    strategies: Names = ()
    """Names or globs of the strategies to consider; empty: all."""
    augmentations: Names = ()
    """Names or globs of the augmentations to consider; empty: all that are searched by default."""
    optimizers: Names = ()
    """Names or globs of the optimizers to consider; empty: adamw and sgd."""
    objectives: Names = ()
    """Names or globs of the objectives to consider; empty: cross-entropy."""
    adapters: Names = ()
    """Names or globs of the adapters to consider, which choose what of a stage is trained; empty: all parameters."""
    methods: Names = ()
    """Names or globs of the gradient methods to consider; empty: gradient-descent."""
    classifiers: Names = ()
    """Names or globs of the methods that fit a linear classifier on frozen features; empty: logistic regression."""
    heads: Heads = ()
    """Kinds of heads to consider for training by gradient descent: linear, mlp, conv, cosine; empty: linear."""
    poolings: Poolings = ()
    """Poolings of heads that are trained by gradient descent: avg, max, token, gem, flatten; empty: those of stored
    features, which are the first three."""
    techniques: Techniques = ()
    """Techniques to search, too: mixup, cutmix, l2-sp, ema, distillation, balanced-sampling; empty: none."""
    max_params: Amount = None
    """The most parameters that a network may have, head included, such as "5M"; None: no limit."""
    max_flops: Amount = None
    """The most floating-point operations for one image, such as "600M"; None: no limit."""
    max_latency_ms: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """The most milliseconds for one image on the device of the search, without the head; None: no limit."""
    minimize: Minimized | None = None
    """A cost that the search minimises, too, for a Pareto front: params, flops or latency; None: the metric alone."""
    set: Annotated[dict[str, Any], BeforeValidator(_fixed)] = Field(default={})
    """Parameters that are fixed instead of searched, by their names in a trial, such as `{"augmentation": "none"}`."""
    plugins: Annotated[tuple[Any, ...], BeforeValidator(_plugins)] = ()
    """Plugins besides the installed ones: Python files, and from Python also modules and objects with hooks."""
    metric: str = "accuracy"
    """The name of the metric to select by; `autotl plugins metrics` lists them."""
    near_copies: NearCopies = "together"
    """`together`: images that look nearly the same stay in one split; `apart`: each is split by itself."""
    seed: int = Field(default=0, ge=0)
    """Seed of splits, sampler and training."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, `mps`."""
    workers: Annotated[int | Literal["auto"], BeforeValidator(_workers)] = 1
    """How many processes work on the search; `auto`: one for each GPU, or on a CPU one for each core."""
    study: str | None = None
    """The study's name; None: named after the data."""
    storage: str | None = None
    """A database URL for Optuna; None: SQLite in the study's folder."""
    refit: bool = True
    """Whether the winner is refit on all images except the test images."""
    views: Annotated[Literal["auto", 1, 2], BeforeValidator(_views)] = 1
    """Of how many views of an image the model averages the probabilities: 2 for the image and the mirrored image;
    `auto`: 2 if that is significantly more accurate on `val`."""
    reruns: int = Field(default=4, ge=0)
    """How often the best plans are rerun, with new seeds and other images in `val`, before one is chosen. With 4 every
    image outside the test split was in `val` once."""
    pick: Annotated[str, AfterValidator(way_to_pick)] = BEST
    """Which plan wins: `best`; `simplest`, the simplest that is at most one standard error worse; `knee`, a compromise
    with the cost of `minimize`, or else with FLOPs; `within=0.5`, the cheapest that is at most 0.5 points worse than
    the best."""
    ensemble: int = Field(default=1, ge=1)
    """Of how many different models the final model averages the probabilities, the winner's included; chosen greedily
    by `val` among the twelve best plans."""
    compare: bool = True
    """Whether controls are trained to compare the winner with: a linear probe, raw pixels, random weights."""
    max_kills: int = Field(default=3, ge=1)
    """A trial counts as failed after its process was killed this many times at the same place of its training."""
    weights: dict[str, Path] = Field(default={})
    """Weight files or bundles, by the names of their backbones."""
    from_study: str | None = None
    """A study whose winner, with its trained weights, becomes a backbone; the only one if `backbones` is empty."""
    home: Path | None = None
    """The workspace with all studies; None: `AUTOTL_HOME`, else ./autotl-studies."""
    cache_dir: Path | None = None
    """Where decoded images and features are kept; None: the user's cache folder."""
    strict_plugins: bool = False
    """Whether a plugin that is broken, or fails in a trial, ends the search instead of being skipped."""
    mlflow: bool = True
    """Whether every trial is logged to MLflow."""
    tracking_uri: str | None = None
    """MLflow's server or store; None: `MLFLOW_TRACKING_URI`, else SQLite in the workspace."""
    yes: bool = False
    """Whether large weights are downloaded without asking."""

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Settings from a mapping of their names to values.

        Raises: StudyError, in one line, for an unknown name and for an invalid value.
        """
        for name in values:
            if name not in cls.model_fields:
                raise StudyError(unknown("option", name, cls.model_fields))
        try:
            return cls(**values)
        except ValidationError as error:
            first = error.errors()[0]
            what = first["msg"].removeprefix("Value error, ")
            raise StudyError(f"{first['loc'][0]}={first['input']!r}: {what}.") from None

    def tolerate(self, problem: object) -> None:
        """Let the search continue in spite of a plugin's error.

        Raises: PluginError with `strict_plugins`.
        """
        if self.strict_plugins:
            raise PluginError(f"{str(problem).rstrip('.')}. Fix it, or search without --strict-plugins.")

    def logged(self) -> dict[str, Any]:
        """What is logged of a search: its `command`, and those of its `options` that are not fixed by the study.

        Passwords are masked.
        """
        options = self.model_dump(mode="json", include=OF_ONE_SEARCH)
        return {"command": shlex.join(self._words()), "options": options}

    def _words(self) -> Iterator[str]:
        """The equivalent command, without options at their defaults."""
        yield from ("autotl", "search", str(self.data))
        for name, field in type(self).model_fields.items():
            value, flag = getattr(self, name), f"--{name.replace('_', '-')}"
            if name == "data" or value == field.get_default():
                continue
            if isinstance(value, bool):
                yield flag if value else flag.replace("--", "--no-", 1)
            elif isinstance(value, dict):
                shown = said if name == "set" else str
                yield from (word for key, each in value.items() for word in (flag, f"{key}={shown(each)}"))
            elif name == "plugins":  # those that are not files cannot be part of a command
                yield from (word for each in value if isinstance(each, Path) for word in ("--plugin", str(each)))
            elif isinstance(value, tuple):
                yield from (flag, ",".join(value))
            else:
                yield from (flag, f"{value:g}s" if name == "budget" else masked(str(value)))

    def resumed(self, single: Mapping[str, Any], **several: tuple[str, ...]) -> Self:
        """The settings of a study that is resumed: unless the user named others, those it was started with."""
        same = {name: started for name, started in several.items() if set(getattr(self, name)) in (set(), set(started))}
        same |= {name: started for name, started in single.items() if getattr(self, name) is None}
        return self.model_copy(update=same)

    @property
    def cost(self) -> Cost:
        """The cost with which the metric is compared."""
        return COSTS[self.minimize or USUAL]

    @property
    def turns(self) -> int:
        """How often plans are rerun."""
        return self.reruns if self.pick in RERUN else 0

    @property
    def limits(self) -> dict[str, float]:
        """The limits on what a network may cost, by the names of their settings."""
        every = {
            "max_params": self.max_params,
            "max_flops": self.max_flops,
            "max_latency_ms": self.max_latency_ms,
        }
        return {name: most for name, most in every.items() if most is not None}

    @property
    def head_kinds(self) -> tuple[HeadKind, ...]:
        """The kinds of heads, each once."""
        return tuple(dict.fromkeys(self.heads)) or ("linear",)

    @property
    def columns(self) -> Columns:
        """The columns of the manifest that the user named."""
        return Columns(self.path_column, self.label_column)

    @property
    def study_name(self) -> str:
        """Raises: StudyError for a name that cannot be the name of a folder."""
        data = self.data.resolve()
        name = self.study or (data.name if data.is_dir() else data.stem)
        if not re.fullmatch(r"[\w][\w .+-]*", name):
            raise StudyError(
                f"'{name}' cannot be a study's name; allowed are letters, digits, spaces and . - _ +. Use --study NAME."
            )
        return name
