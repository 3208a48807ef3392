"""Reading a user's weights file without running code in it, and finding a network's weights in it.

Training scripts save networks in many ways: under other names, with the optimizer's state, with a classifier for other
classes. autotl needs only the stages, because it replaces the head.
"""

import pickletools
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeGuard

import torch
from torch import Tensor, nn

from autotl.backbones.stages import Stages
from autotl.errors import WeightsError, one_line

State = Mapping[str, Tensor]
Convert = Callable[[dict[str, Tensor]], Mapping[str, Tensor]]
Rename = Mapping[str, str] | Callable[[str], str]

DEPTH = 8
"""How deep dicts with tensors may be nested in a checkpoint."""
WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What torch inserts into the names of modules that are compiled, sharded or checkpointed."""
PARALLEL = "module."
"""What it puts before the names of a network that is trained in parallel."""
ALONE = "Where it was made, save only the weights: torch.save(model.state_dict(), FILE)"
COUNTER = "num_batches_tracked"
"""A buffer of batch norm that old checkpoints lack, and that evaluation does not use."""
SHOWN = 3
"""How many names a message lists."""
READING = "autotl_reading"
"""The attribute of a network that holds its `Reading`."""


@dataclass(frozen=True)
class Reading:
    """What was loaded into a network from a weights file."""

    file: Path
    place: str
    """Where its tensors are in the file: the keys of the dict, and the prefix of their names."""
    given: int
    """How many of its tensors the file has."""
    differ: Mapping[str, str]
    """Tensors that the file has in another shape or type, by their names in the network, with both shapes or types."""
    fitted: tuple[str, ...]
    """Tensors that were interpolated to the network's shape, with both shapes."""
    left_over: tuple[str, ...]
    """Names, without the common prefix, that the network does not have."""
    elsewhere: tuple[str, ...]
    """Names in the same dict without the prefix of the network's names."""

    def __str__(self) -> str:
        where = f" (in {self.place})" if self.place else ""
        rest = (*self.left_over, *self.differ, *self.elsewhere)
        fitted = f"; interpolated: {listed(self.fitted)}" if self.fitted else ""
        unused = f"; not used: {listed(rest)}" if rest else ""
        return f"{self.given} tensors of {self.file}{where}{fitted}{unused}"


def listed(names: Collection[str]) -> str:
    """`5: a, b, c …`: how many names there are, and the first of them."""
    shown = list(names)[:SHOWN]
    return f"{len(names)}: {', '.join(shown)}{' …' if len(names) > SHOWN else ''}"


def fill(
    model: nn.Module, file: Path, ignore: Sequence[str], convert: Convert | None, rename: Rename | None = None
) -> None:
    """The implementation of `load_weights`."""
    tables = [(keys, _renamed(tensors, rename, file)) for keys, tensors in _tables(_content(file))]
    place, state, elsewhere = _found(tables, model.state_dict(), file)
    fitted: tuple[str, ...] = ()
    if convert:
        converted = dict(convert(dict(state)))
        if _fitting(converted, model) >= _fitting(state, model):
            fitted = tuple(_interpolated(state, converted))
            state = converted
    state = {name: value for name, value in state.items() if not name.startswith(tuple(ignore))}
    wanted = model.state_dict(keep_vars=True)
    both = {name: _difference(state[name], value) for name, value in wanted.items() if name in state}
    differ = {name: difference for name, difference in both.items() if difference}
    fitting = {name: state[name] for name in wanted if name in state and name not in differ}
    if not fitting:
        raise WeightsError(
            f"{file} does not have the weights of a {type(model).__name__}: "
            f"it has {listed(state)}; expected {listed(wanted)}."
        )
    model.load_state_dict(fitting, strict=False)
    # A tensor with two names is loaded if the file has one of them.
    given = {id(wanted[name]) for name in fitting}
    _empty(model, [name for name, value in wanted.items() if id(value) not in given and not name.endswith(COUNTER)])
    computed = {name for name, _ in model.named_buffers()}  # some are not in a state dict, because they never change
    left_over = tuple(name for name in state if name not in wanted and name not in computed)
    setattr(model, READING, Reading(file, place, len(fitting), differ, fitted, left_over, elsewhere))


def state_in(file: Path, key: str | None) -> dict[str, Tensor]:
    """The implementation of `read_state`."""
    found = list(_tables(_content(file)))
    if key is not None:
        named = [(keys, tensors) for keys, tensors in found if ".".join(keys) == key]
        if not named:
            raise WeightsError(f"{file} has no state dict at '{key}'. It has some at: {_places(found)}.")
        return _unwrapped(named[0][1])
    largest = _largest(found)
    (_, tensors), *others = largest
    if any(not _same(tensors, other) for _, other in others):
        raise WeightsError(f"{file} has several state dicts of the same size: {_places(largest)}. Name one: key=…")
    return _unwrapped(tensors)


def _places(found: Iterable[tuple[tuple[str, ...], State]]) -> str:
    return ", ".join(f"'{'.'.join(keys)}'" if keys else "the top level" for keys, _ in found)


def _renamed(tensors: State, rename: Rename | None, file: Path) -> State:
    """The tensors under the names that the caller of `load_weights` wants.

    Raises: WeightsError if two tensors get the same name.
    """
    if rename is None:
        return tensors
    renamed: dict[str, Tensor] = {}
    for name, value in tensors.items():
        new = rename(name) if callable(rename) else _with_prefixes(name, rename)
        if new in renamed:
            raise WeightsError(f"{file} has two tensors that `rename` calls '{new}'; the second one is '{name}'.")
        renamed[new] = value
    return renamed


def _with_prefixes(name: str, prefixes: Mapping[str, str]) -> str:
    for prefix, new in prefixes.items():
        if name.startswith(prefix):
            name = new + name.removeprefix(prefix)
    return name


def _difference(given: Tensor, wanted: Tensor) -> str:
    """Why a tensor cannot replace another one, empty if it can."""
    if given.shape != wanted.shape:
        return f"{tuple(given.shape)} instead of {tuple(wanted.shape)}"
    if given.is_meta or given.layout != torch.strided or given.is_quantized:
        return "without values" if given.is_meta else "quantized" if given.is_quantized else "sparse"
    # Values rounded to integers have no meaning without their scale, which is stored elsewhere.
    if wanted.is_floating_point() and not given.is_floating_point():
        return f"{given.dtype} instead of {wanted.dtype}".replace("torch.", "")
    return ""


def _interpolated(before: State, after: State) -> Iterator[str]:
    """Tensors whose size the family has changed, such as position embeddings for images of another size."""
    for name, value in after.items():
        if name in before and before[name].numel() != value.numel():
            yield f"{name} {tuple(before[name].shape)} to {tuple(value.shape)}"


def accept(model: nn.Module, stages: Stages) -> list[str]:
    """Check that the stages have all of their weights; returns what was loaded, one line per file.

    Raises: WeightsError if a stage lacks a tensor, if the file has tensors of a stage that the network does not have
    (the weights are of another network), or if values are NaN or infinite.
    """
    kept = stages.state_dict()
    lines = []
    for path, module in model.named_modules():
        reading: Reading | None = getattr(module, READING, None)
        if reading is None:
            continue
        before = f"{path}." if path else ""
        own = {name.removeprefix(before): value for name, value in kept.items() if name.startswith(before)}
        lacking = [name for name, value in own.items() if value.is_meta]
        foreign = [name for name in reading.left_over if stages.uses(before + name) or _within(name, module, own)]
        if lacking or foreign:
            raise WeightsError(_misfit(reading, type(module).__name__, len(own), lacking, foreign))
        if broken := [name for name, value in own.items() if not value.isfinite().all()]:
            raise WeightsError(f"{reading.file} has NaN or infinity in {listed(broken)}: its training failed.")
        lines.append(str(reading))
    return lines


def _misfit(reading: Reading, network: str, wanted: int, lacking: Sequence[str], foreign: Sequence[str]) -> str:
    faults = []
    if absent := [name for name in lacking if name not in reading.differ]:
        faults.append(f"missing: {listed(absent)}")
    if differ := [f"{name} {reading.differ[name]}" for name in lacking if name in reading.differ]:
        faults.append(f"of another shape or type: {listed(differ)}")
    if foreign:
        faults.append(f"not in the network: {listed(foreign)}")
    elif rest := (*reading.left_over, *reading.elsewhere):
        faults.append(f"not used: {listed(rest)}")
    return (
        f"{reading.file} does not fit a {network}, whose stages have {wanted} tensors: {'; '.join(faults)}. "
        "Use weights of exactly this network; only its classifier may differ."
    )


def _within(name: str, module: nn.Module, own: State) -> bool:
    """Whether a name is inside a module of the network that has weights of a stage."""
    parts = name.split(".")[:-1]
    path = ""
    for part in parts:
        if part not in module._modules or module._modules[part] is None:
            break
        module = module.get_submodule(part)
        path += f"{part}."
    return bool(path) and any(other.startswith(path) for other in own)


def _empty(model: nn.Module, names: Iterable[str]) -> None:
    """Discard the values of these tensors: move them to the device `meta`."""
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
    """A dict of tensors in a file that may be the network's, with the prefix of the network's names in it."""

    keys: tuple[str, ...]
    tensors: State
    prefix: str
    count: int
    """How many of the network's names it has."""

    @property
    def place(self) -> str:
        return " ".join(filter(None, [".".join(self.keys), self.prefix and f"'{self.prefix}'"]))

    def own(self) -> dict[str, Tensor]:
        start = len(self.prefix)
        return {name[start:]: value for name, value in self.tensors.items() if name.startswith(self.prefix)}


def _found(
    found: Sequence[tuple[tuple[str, ...], State]], wanted: State, file: Path
) -> tuple[str, dict[str, Tensor], tuple[str, ...]]:
    """A network's tensors in a file: their place, the tensors, and the names of others beside them.

    Raises: WeightsError if there are none, or if several networks match.
    """
    tables = [_table(keys, tensors, wanted) for keys, tensors in found]
    if not tables:
        raise WeightsError(f"{file} has no state dict: expected tensors by name.")
    likely = [table for several in tables for table in several if _is_most(table, wanted)]
    if not likely:
        # Published under other names, which only the family can convert.
        (keys, tensors), *_ = _largest(found)
        return ".".join(keys), _unwrapped(tensors), ()
    most = max(table.count for table in likely)
    best_ones = [table for table in likely if table.count == most]
    best_ones = [table for table in best_ones if _averaged(table.place)] or best_ones
    best, *others = best_ones
    own = best.own()
    if any(not _same(own, other.own()) for other in others):
        places = ", ".join(table.place or "the top level" for table in best_ones)
        raise WeightsError(f"{file} has several networks that fit, in {places}: save only the one to use.")
    elsewhere = tuple(name for name in best.tensors if not name.startswith(best.prefix))
    return best.place, own, elsewhere


def _largest(found: Sequence[tuple[tuple[str, ...], State]]) -> list[tuple[tuple[str, ...], State]]:
    """The tables with the most tensors; averaged weights alone, if any of these are."""
    most = max(len(tensors) for _, tensors in found)
    best = [(keys, tensors) for keys, tensors in found if len(tensors) == most]
    return [(keys, tensors) for keys, tensors in best if _averaged(".".join(keys))] or best


def _averaged(place: str) -> bool:
    return "ema" in re.split("[^a-z]+", place.lower())


def _is_most(table: _Table, wanted: State) -> bool:
    """Whether most of the network is in the table, or most of the table is the network (which may have been cut)."""
    return 2 * table.count >= min(len(wanted), len(table.tensors))


def _table(keys: tuple[str, ...], tensors: State, wanted: State) -> list[_Table]:
    """A table of tensors for each prefix that precedes names of the network, the prefix with the most names first."""
    prefixes: Counter[str] = Counter()
    for name in tensors:
        parts = name.split(".")
        for start in range(len(parts)):
            if ".".join(parts[start:]) in wanted:
                prefixes[".".join(parts[:start]) + "." * bool(start)] += 1
    found = [_Table(keys, tensors, prefix, count) for prefix, count in prefixes.most_common()]
    return found or [_Table(keys, tensors, "", 0)]


def _tables(content: Mapping[Any, Any], keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], State]]:
    """Every dict with tensors, with the keys that lead to it."""
    named = {name: value for name, value in content.items() if isinstance(name, str) and _is_tensor(value)}
    tensors = {WRAPPERS.sub("", name): value for name, value in named.items()}
    if tensors:
        yield keys, tensors
    if len(keys) < DEPTH:
        for key, value in content.items():
            if isinstance(value, Mapping):
                yield from _tables(value, (*keys, str(key)))


def _is_tensor(value: object) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor)


def _unwrapped(tensors: State) -> dict[str, Tensor]:
    """The tensors without the prefix that torch puts before the names of a parallel network."""
    state = dict(tensors)
    while all(name.startswith(PARALLEL) for name in state):
        state = {name.removeprefix(PARALLEL): value for name, value in state.items()}
    return state


def _same(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


class _Ignored:
    """Replaces an object of any class and does nothing: checkpoints often contain options, paths and numbers."""

    def __new__(cls, *args: object, **kwargs: object) -> "_Ignored":
        return object.__new__(cls)

    def __setstate__(self, state: object) -> None: ...


def _content(file: Path) -> Mapping[Any, Any]:
    """The content of a weights file; no code in it is run.

    Raises: WeightsError if it is neither safetensors nor saved by torch, or has no tensors by name.
    """
    ignored: Collection[str] = ()
    try:
        if _is_safetensors(file):
            from safetensors.torch import load_file

            return load_file(file)
        with file.open("rb") as stream:
            ignored = _objects(stream)
            stream.seek(0)
            # A stream, because torch would choose the format by the suffix of a path.
            with torch.serialization.safe_globals([(_Ignored, name) for name in ignored]):
                content = torch.load(stream, map_location="cpu", weights_only=True)
    except Exception as error:
        raise WeightsError(
            f"{file} cannot be read as safetensors or as a checkpoint: {_why(error, ignored)}"
        ) from error
    if isinstance(content, Mapping) and next(_tables(content), None):
        return content
    if ignored:
        raise WeightsError(f"{file} has no state dict, but {_objects_that(ignored)}")
    found = "" if isinstance(content, Mapping) else f" but a {type(content).__name__}"
    raise WeightsError(f"{file} has no state dict{found}: expected tensors by name.")


def _is_safetensors(file: Path) -> bool:
    """Whether a file is safetensors (True) or saved by torch (False), by its content, because its name may be anything.

    Raises: ValueError if it is neither.
    """
    with file.open("rb") as stream:
        start = stream.read(64)
    if start.startswith(b"version https://git-lfs"):
        raise ValueError("it is a Git LFS pointer, not the weights; run: git lfs pull")
    header = int.from_bytes(start[:8], "little")  # the header's length; its first byte may look like another format's
    if start[8:9] == b"{" and 8 + header <= file.stat().st_size:
        return True
    if start.startswith(b"\x80"):  # a pickle, as torch made them before 1.6
        return False
    if start.startswith(b"PK"):
        with zipfile.ZipFile(file) as archive:
            names = {name.rpartition("/")[2] for name in archive.namelist()}
        if "constants.pkl" in names:
            raise ValueError(f"it is TorchScript. {ALONE}")
        if "data.pkl" not in names:
            raise ValueError("it is an archive that torch.save did not write")
        return False
    if not start:
        raise ValueError("it is empty")
    if start[8:9] == b"{":
        raise ValueError("it is safetensors, but shorter than its header states: it is incomplete")
    raise ValueError(f"it starts with {start[:12]!r}, which is neither format. {ALONE}")


def _objects(stream: IO[bytes]) -> set[str]:
    """The classes and functions that a checkpoint names, except those that torch can load safely."""
    archived = zipfile.is_zipfile(stream)
    stream.seek(0)
    if archived:
        return set(torch.serialization.get_unsafe_globals_in_checkpoint(stream))
    # In the old format the checkpoint is the fourth pickle in the file, after its metadata.
    found = (step for _ in range(4) for step in pickletools.genops(stream))
    return {str(value).replace(" ", ".") for operation, value, _ in found if operation.name == "GLOBAL"}


def _why(error: Exception, ignored: Collection[str]) -> str:
    if isinstance(error, zipfile.BadZipFile):
        return "it is damaged or incomplete"
    return one_line(error, 200) if isinstance(error, ValueError) or not ignored else _objects_that(ignored)


def _objects_that(ignored: Collection[str]) -> str:
    return f"objects whose code would have to be run ({', '.join(sorted(ignored)[:SHOWN])}). {ALONE}"
