"""Which device the numbers are made on, and what is done when its memory does not do."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import psutil
import torch
from torch import Tensor

from autotl.errors import StudyError, TrainingError

T = TypeVar("T")
CONTAINER = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Where Linux says how much memory a container may have, by the newer and by the older of two ways."""
OTHERWISE = {"gpu": "cuda", "nvidia": "cuda", "rocm": "cuda", "metal": "mps"}
"""What people call devices, and torch does."""
TOO_LITTLE = "One image alone does not fit into the device's memory: leave out the largest backbones, or take another."


def resolve(name: str) -> str:
    """`auto` → `cuda` where there is one, else `cpu`; any other name must be a device that works here.

    Raises: StudyError for a device that is not here: nothing falls back silently.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if kind(name) not in ("cpu", "cuda", "mps"):
        meant = OTHERWISE.get(kind(name).lower(), kind(name).lower())
        guess = f"Did you mean '{meant}{name[len(kind(name)) :]}'? " if meant in ("cpu", "cuda", "mps") else ""
        raise StudyError(f"Unknown device '{name}'. {guess}Known: auto, cpu, cuda, cuda:1 …, mps.")
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        why = str(error).splitlines()[0].partition(". ")[0].rstrip(".")
        raise StudyError(f"Device '{name}' cannot be used here: {why}. Use --device auto or cpu.") from None
    return name


def kind(device: str) -> str:
    """`cuda:1` → `cuda`: devices of one kind give the same numbers, as far as they can."""
    return device.partition(":")[0]


def release() -> None:
    """Give back what torch keeps of a GPU's memory for later."""
    torch.cuda.empty_cache()


def of_kind(values: Mapping[str, T], device: str) -> T:
    """The value for this kind of device, that for a CPU where it has none of its own."""
    return values.get(kind(device), values["cpu"])


def free_memory() -> int:
    """Bytes of the computer's memory that are free for new things, and no more than a container may have."""
    told = [file.read_text().strip() for file in CONTAINER if file.exists()]
    return min(psutil.virtual_memory().available, *(int(limit) for limit in told if limit.isdecimal()))


def in_parts(run: Callable[[Tensor], Tensor], values: Tensor, make_room: Callable[[], None] = release) -> Tensor:
    """`run(values)`, row by row [N, …] → [N, …]; in halves, and in halves of those, where all at once do not fit.

    The last digits may depend on it. `make_room` is called when not even one row fits.

    Raises: TrainingError when it does not help.
    """
    try:
        return run(values)
    except torch.OutOfMemoryError:
        pass  # and the error is forgotten here, which holds on to what did not fit
    if len(values) > 1:
        release()
        return torch.cat([in_parts(run, part, make_room) for part in values.tensor_split(2)])
    make_room()
    try:
        return run(values)
    except torch.OutOfMemoryError:
        raise TrainingError(TOO_LITTLE) from None
