"""A file of weights as people have it: reading it without running code, and finding a network's weights in it.

Whoever trains a network saves it in a way of their own: under other names, with the state of the optimizer beside it,
with a classifier for other classes. What autotl needs are the stages alone; the head is replaced anyway.
"""

import re
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from autotl.backbones.stages import Stages
from autotl.errors import WeightsError, one_line

State = Mapping[str, Tensor]
Convert = Callable[[dict[str, Tensor]], Mapping[str, Tensor]]

HARMLESS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [Namespace]
"""Classes that may occur in a checkpoint besides those of a state dict: torchvision and timm save their options."""
DEPTH = 4
"""How many tables deep the tensors of a checkpoint may lie."""
WRAPPERS = ("module.", "_orig_mod.")
"""What torch itself puts before the names of a network that is trained in parallel or compiled."""
COUNTER = "num_batches_tracked"
"""A buffer of batch norm that old checkpoints lack, and that evaluation does not use."""
SHOWN = 3
"""How many names a message has."""
READING = "autotl_reading"
"""Where a network keeps what it was given."""


@dataclass(frozen=True)
class Reading:
    """What a network was given from a file of weights."""

    file: Path
    place: str
    """Where in the file its tensors lie: the keys that lead there, and what stands before their names."""
    given: int
    """How many of its tensors the file has."""
    differ: Mapping[str, str]
    """Tensors that the file has in another shape, by their names in the network: both shapes."""
    left_over: tuple[str, ...]
    """Names, without what stands before them all, that the network does not have."""
    elsewhere: tuple[str, ...]
    """Names in the same table that do not begin as the network's own do."""

    def __str__(self) -> str:
        where = f" (in {self.place})" if self.place else ""
        rest = (*self.left_over, *self.differ, *self.elsewhere)
        unused = f"; not used: {listed(rest)}" if rest else ""
        return f"{self.given} tensors of {self.file}{where}{unused}"


def listed(names: Collection[str]) -> str:
    """`5: a, b, c …`: how many there are, and the first of them."""
    shown = list(names)[:SHOWN]
    return f"{len(names)}: {', '.join(shown)}{' …' if len(names) > SHOWN else ''}"


def fill(model: nn.Module, file: Path, ignore: Sequence[str], convert: Convert | None) -> None:
    """What `load_weights` does."""
    place, state, elsewhere = _found(_content(file), model.state_dict(), file)
    if convert:
        converted = dict(convert(dict(state)))
        if _fitting(converted, model) >= _fitting(state, model):
            state = converted
    state = {name: value for name, value in state.items() if not name.startswith(tuple(ignore))}
    wanted = model.state_dict(keep_vars=True)
    differ = {
        name: f"{tuple(state[name].shape)} instead of {tuple(value.shape)}"
        for name, value in wanted.items()
        if name in state and state[name].shape != value.shape
    }
    fitting = {name: state[name] for name in wanted if name in state and name not in differ}
    if not fitting:
        raise WeightsError(f"{file} is no {type(model).__name__}: it has {listed(state)}; expected {listed(wanted)}.")
    model.load_state_dict(fitting, strict=False)
    # What two names share is there when the file has one of them.
    given = {id(wanted[name]) for name in fitting}
    _empty(model, [name for name, value in wanted.items() if id(value) not in given and not name.endswith(COUNTER)])
    computed = {name for name, _ in model.named_buffers()}  # some of which are not saved, as they always are the same
    left_over = tuple(name for name in state if name not in wanted and name not in computed)
    setattr(model, READING, Reading(file, place, len(fitting), differ, left_over, elsewhere))


def accept(model: nn.Module, stages: Stages) -> list[str]:
    """What was read into a network, one line for each file, once its stages are known to have all of their weights.

    Raises: WeightsError where a stage lacks a tensor, or where the file has tensors for a stage that the network does
    not have: then it was trained as another network.
    """
    kept = stages.state_dict()
    said = []
    for path, module in model.named_modules():
        reading: Reading | None = getattr(module, READING, None)
        if reading is None:
            continue
        before = f"{path}." if path else ""
        own = {name.removeprefix(before): value for name, value in kept.items() if name.startswith(before)}
        lacking = [name for name, value in own.items() if value.is_meta]
        foreign = [name for name in reading.left_over if _within(name, module, own)]
        if lacking or foreign:
            raise WeightsError(_misfit(reading, type(module).__name__, len(own), lacking, foreign))
        said.append(str(reading))
    return said


def _misfit(reading: Reading, network: str, wanted: int, lacking: Sequence[str], foreign: Sequence[str]) -> str:
    faults = []
    if absent := [name for name in lacking if name not in reading.differ]:
        faults.append(f"it lacks {listed(absent)}")
    if differ := [f"{name} {reading.differ[name]}" for name in lacking if name in reading.differ]:
        faults.append(f"it has in another shape {listed(differ)}")
    if foreign:
        faults.append(f"it has what the network has not {listed(foreign)}")
    elif rest := (*reading.left_over, *reading.elsewhere):
        faults.append(f"not used {listed(rest)}")
    return (
        f"{reading.file} does not fit a {network}, whose stages have {wanted} tensors: {'; '.join(faults)}. "
        "Give the weights of this very network; only its classifier may be another."
    )


def _within(name: str, module: nn.Module, own: State) -> bool:
    """Whether a tensor would belong to a part of the network that has weights of a stage."""
    parts = name.split(".")[:-1]
    path = ""
    for part in parts:
        if part not in module._modules or module._modules[part] is None:
            break
        module = module.get_submodule(part)
        path += f"{part}."
    return bool(path) and any(other.startswith(path) for other in own)


def _empty(model: nn.Module, names: Iterable[str]) -> None:
    """Take their values from these tensors."""
    for name in names:
        path, _, last = name.rpartition(".")
        owner = model.get_submodule(path)
        tensor = getattr(owner, last).detach().to("meta")
        setattr(owner, last, nn.Parameter(tensor) if last in owner._parameters else tensor)


def _fitting(state: State, model: nn.Module) -> int:
    wanted = model.state_dict()
    return sum(name in state and state[name].shape == value.shape for name, value in wanted.items())


@dataclass(frozen=True)
class _Table:
    """Tensors that may be a network's: a table of a file, and what stands before the network's names in it."""

    keys: tuple[str, ...]
    tensors: State
    prefix: str
    count: int
    """How many of the network's names it has."""

    @property
    def place(self) -> str:
        return " ".join(filter(None, [".".join(self.keys), self.prefix and f"'{self.prefix}'"]))

    @property
    def averaged(self) -> bool:
        return "ema" in re.split("[^a-z]+", self.place.lower())

    def own(self) -> dict[str, Tensor]:
        start = len(self.prefix)
        return {name[start:]: value for name, value in self.tensors.items() if name.startswith(self.prefix)}


def _found(content: Mapping[Any, Any], wanted: State, file: Path) -> tuple[str, dict[str, Tensor], tuple[str, ...]]:
    """Where in a file a network's tensors lie, these, and the names of those beside them.

    Raises: WeightsError where there are none, and where several networks lie there.
    """
    tables = [_table(keys, tensors, wanted) for keys, tensors in _tables(content)]
    if not tables:
        raise WeightsError(f"{file} holds no state dict: expected names with tensors.")
    likely = [table for several in tables for table in several if _is_most(table, wanted)]
    if not likely:
        # Published under other names, it takes a family that knows them.
        best = max((several[0] for several in tables), key=lambda table: (len(table.tensors), table.averaged))
        return ".".join(best.keys), _unwrapped(best.tensors), ()
    most = max(table.count for table in likely)
    best_ones = [table for table in likely if table.count == most]
    best_ones = [table for table in best_ones if table.averaged] or best_ones
    best, *others = best_ones
    own = best.own()
    if any(not _same(own, other.own()) for other in others):
        places = ", ".join(table.place or "the top level" for table in best_ones)
        raise WeightsError(f"{file} holds several networks that fit, in {places}: save the one that is meant alone.")
    elsewhere = tuple(name for name in best.tensors if not name.startswith(best.prefix))
    return best.place, own, elsewhere


def _is_most(table: _Table, wanted: State) -> bool:
    """Whether a table has most of a network, or is most of it one: of a network that was cut there may be little."""
    return 2 * table.count >= min(len(wanted), len(table.tensors))


def _table(keys: tuple[str, ...], tensors: State, wanted: State) -> list[_Table]:
    """A table of tensors under each prefix that leaves names of the network, those with most of them first."""
    prefixes: Counter[str] = Counter()
    for name in tensors:
        parts = name.split(".")
        for start in range(len(parts)):
            if ".".join(parts[start:]) in wanted:
                prefixes[".".join(parts[:start]) + "." * bool(start)] += 1
    found = [_Table(keys, tensors, prefix, count) for prefix, count in prefixes.most_common()]
    return found or [_Table(keys, tensors, "", 0)]


def _tables(content: Mapping[Any, Any], keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], State]]:
    """Every table that holds tensors, with the keys that lead to it."""
    tensors = {name: value for name, value in content.items() if isinstance(name, str) and _is_tensor(value)}
    if tensors:
        yield keys, tensors
    if len(keys) < DEPTH:
        for key, value in content.items():
            if isinstance(value, Mapping):
                yield from _tables(value, (*keys, str(key)))


def _is_tensor(value: object) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor)


def _unwrapped(tensors: State) -> dict[str, Tensor]:
    """Without what torch itself puts before the names."""
    state = dict(tensors)
    while prefix := next((each for each in WRAPPERS if all(name.startswith(each) for name in state)), None):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _same(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def _content(file: Path) -> Mapping[Any, Any]:
    """What a file of weights holds; no code in it is run.

    Raises: WeightsError for what is neither safetensors nor saved by torch, or holds more than plain data.
    """
    try:
        kind = _kind(file)
        if kind == "safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        # A stream, as of a path torch looks at the end of its name.
        with torch.serialization.safe_globals(HARMLESS), file.open("rb") as stream:
            content = torch.load(stream, map_location="cpu", weights_only=True)
    except Exception as error:
        raise WeightsError(f"{file} cannot be read as safetensors or as a checkpoint: {_why(file, error)}") from error
    if not isinstance(content, Mapping):
        raise WeightsError(f"{file} holds no state dict but a {type(content).__name__}: expected names with tensors.")
    return content


def _kind(file: Path) -> str:
    """`safetensors` or `torch`, by what the file holds: people call it what they like.

    Raises: ValueError for a pointer of Git LFS.
    """
    with file.open("rb") as stream:
        start = stream.read(64)
    if start.startswith(b"version https://git-lfs"):
        raise ValueError("it is a pointer of Git LFS, and no weights; run: git lfs pull")
    length = int.from_bytes(start[:8], "little")
    return "safetensors" if start[8:9] == b"{" and length <= file.stat().st_size - 8 else "torch"


def _why(file: Path, error: Exception) -> str:
    try:
        with file.open("rb") as stream:
            unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(stream)
    except Exception:  # no checkpoint at all, or one of an old format
        unsafe = []
    unsafe = [name for name in unsafe if name != "argparse.Namespace"]
    if not unsafe:
        return one_line(error, 200)
    return (
        f"it holds objects whose code would have to be run ({', '.join(sorted(unsafe)[:SHOWN])}). "
        "Where it was made, save the weights alone: torch.save(model.state_dict(), FILE)"
    )
