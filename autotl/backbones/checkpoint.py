"""A file of weights as people have it: reading it without running code, and finding a network's weights in it.

Whoever trains a network saves it in a way of their own: under other names, with the state of the optimizer beside it,
with a classifier for other classes. What autotl needs are the stages alone; the head is replaced anyway.
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

DEPTH = 8
"""How many tables deep the tensors of a checkpoint may lie."""
WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What torch itself puts into the names of parts that are compiled, sharded or recomputed."""
PARALLEL = "module."
"""What it puts before the names of a network that is trained in parallel."""
ALONE = "Where it was made, save the weights alone: torch.save(model.state_dict(), FILE)"
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
    """Tensors that the file has in another shape or of another kind, by their names in the network: both of them."""
    fitted: tuple[str, ...]
    """Tensors that were interpolated to the network's shape, with both shapes."""
    left_over: tuple[str, ...]
    """Names, without what stands before them all, that the network does not have."""
    elsewhere: tuple[str, ...]
    """Names in the same table that do not begin as the network's own do."""

    def __str__(self) -> str:
        where = f" (in {self.place})" if self.place else ""
        rest = (*self.left_over, *self.differ, *self.elsewhere)
        fitted = f"; interpolated: {listed(self.fitted)}" if self.fitted else ""
        unused = f"; not used: {listed(rest)}" if rest else ""
        return f"{self.given} tensors of {self.file}{where}{fitted}{unused}"


def listed(names: Collection[str]) -> str:
    """`5: a, b, c …`: how many there are, and the first of them."""
    shown = list(names)[:SHOWN]
    return f"{len(names)}: {', '.join(shown)}{' …' if len(names) > SHOWN else ''}"


def fill(model: nn.Module, file: Path, ignore: Sequence[str], convert: Convert | None) -> None:
    """What `load_weights` does."""
    place, state, elsewhere = _found(_content(file), model.state_dict(), file)
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
        raise WeightsError(f"{file} is no {type(model).__name__}: it has {listed(state)}; expected {listed(wanted)}.")
    model.load_state_dict(fitting, strict=False)
    # What two names share is there when the file has one of them.
    given = {id(wanted[name]) for name in fitting}
    _empty(model, [name for name, value in wanted.items() if id(value) not in given and not name.endswith(COUNTER)])
    computed = {name for name, _ in model.named_buffers()}  # some of which are not saved, as they always are the same
    left_over = tuple(name for name in state if name not in wanted and name not in computed)
    setattr(model, READING, Reading(file, place, len(fitting), differ, fitted, left_over, elsewhere))


def _difference(given: Tensor, wanted: Tensor) -> str:
    """Why a tensor cannot take the place of another one, empty where it can."""
    if given.shape != wanted.shape:
        return f"{tuple(given.shape)} instead of {tuple(wanted.shape)}"
    if given.is_meta or given.layout != torch.strided or given.is_quantized:
        return "without values" if given.is_meta else "quantized" if given.is_quantized else "sparse"
    # A number that was rounded to integers means something by its scale alone, which lies elsewhere.
    if wanted.is_floating_point() and not given.is_floating_point():
        return f"{given.dtype} instead of {wanted.dtype}".replace("torch.", "")
    return ""


def _interpolated(before: State, after: State) -> Iterator[str]:
    """What a family has changed in more than its layout, as positions for images of another size."""
    for name, value in after.items():
        if name in before and before[name].numel() != value.numel():
            yield f"{name} {tuple(before[name].shape)} to {tuple(value.shape)}"


def accept(model: nn.Module, stages: Stages) -> list[str]:
    """What was read into a network, one line for each file, once its stages are known to have all of their weights.

    Raises: WeightsError where a stage lacks a tensor, or where the file has tensors for a stage that the network does
    not have: then it was trained as another network. Also where values are no numbers.
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
        foreign = [name for name in reading.left_over if stages.uses(before + name) or _within(name, module, own)]
        if lacking or foreign:
            raise WeightsError(_misfit(reading, type(module).__name__, len(own), lacking, foreign))
        if broken := [name for name, value in own.items() if not value.isfinite().all()]:
            raise WeightsError(f"{reading.file} has NaN or infinity in {listed(broken)}: its training had failed.")
        said.append(str(reading))
    return said


def _misfit(reading: Reading, network: str, wanted: int, lacking: Sequence[str], foreign: Sequence[str]) -> str:
    faults = []
    if absent := [name for name in lacking if name not in reading.differ]:
        faults.append(f"it lacks {listed(absent)}")
    if differ := [f"{name} {reading.differ[name]}" for name in lacking if name in reading.differ]:
        faults.append(f"it has in another shape or type {listed(differ)}")
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
    """Without what torch itself puts before the names."""
    state = dict(tensors)
    while all(name.startswith(PARALLEL) for name in state):
        state = {name.removeprefix(PARALLEL): value for name, value in state.items()}
    return state


def _same(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


class _Ignored:
    """Stands for an object of any class and does nothing: people save options, paths and numbers beside weights."""

    def __new__(cls, *args: object, **kwargs: object) -> "_Ignored":
        return object.__new__(cls)

    def __setstate__(self, state: object) -> None: ...


def _content(file: Path) -> Mapping[Any, Any]:
    """What a file of weights holds; no code in it is run.

    Raises: WeightsError for what is neither safetensors nor saved by torch, or holds no tensors by name.
    """
    ignored: Collection[str] = ()
    try:
        if _is_safetensors(file):
            from safetensors.torch import load_file

            return load_file(file)
        with file.open("rb") as stream:
            ignored = _objects(stream)
            stream.seek(0)
            # A stream, as of a path torch looks at the end of its name.
            with torch.serialization.safe_globals([(_Ignored, name) for name in ignored]):
                content = torch.load(stream, map_location="cpu", weights_only=True)
    except Exception as error:
        raise WeightsError(
            f"{file} cannot be read as safetensors or as a checkpoint: {_why(error, ignored)}"
        ) from error
    if isinstance(content, Mapping) and next(_tables(content), None):
        return content
    if ignored:
        raise WeightsError(f"{file} holds no state dict, but {_objects_that(ignored)}")
    held = "" if isinstance(content, Mapping) else f" but a {type(content).__name__}"
    raise WeightsError(f"{file} holds no state dict{held}: expected names with tensors.")


def _is_safetensors(file: Path) -> bool:
    """Whether a file is that or torch's, by what it holds: people call it what they like.

    Raises: ValueError for what is neither.
    """
    with file.open("rb") as stream:
        start = stream.read(64)
    if start.startswith(b"version https://git-lfs"):
        raise ValueError("it is a pointer of Git LFS, and no weights; run: git lfs pull")
    header = int.from_bytes(start[:8], "little")  # its length, whose first byte may be that of another format
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
            raise ValueError("it is an archive that torch.save has not made")
        return False
    if not start:
        raise ValueError("it is empty")
    if start[8:9] == b"{":
        raise ValueError("it is safetensors, and shorter than its header says: it was not copied whole")
    raise ValueError(f"it begins with {start[:12]!r}, as neither of them does. {ALONE}")


def _objects(stream: IO[bytes]) -> set[str]:
    """The classes and functions that a checkpoint names, but for those that torch itself reads."""
    archived = zipfile.is_zipfile(stream)
    stream.seek(0)
    if archived:
        return set(torch.serialization.get_unsafe_globals_in_checkpoint(stream))
    # A checkpoint of an old format is the fourth pickle in its file, after what it says of itself.
    found = (step for _ in range(4) for step in pickletools.genops(stream))
    return {str(value).replace(" ", ".") for operation, value, _ in found if operation.name == "GLOBAL"}


def _why(error: Exception, ignored: Collection[str]) -> str:
    if isinstance(error, zipfile.BadZipFile):
        return "it is damaged, or was not copied to its end"
    return one_line(error, 200) if isinstance(error, ValueError) or not ignored else _objects_that(ignored)


def _objects_that(ignored: Collection[str]) -> str:
    return f"objects whose code would have to be run ({', '.join(sorted(ignored)[:SHOWN])}). {ALONE}"
