"""Chooses the device, and handles too little memory on it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import psutil
import torch
from torch import Tensor

from autotl.errors import StudyError, TrainingError

T = TypeVar("T")
CONTAINER = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Files with a container's memory limit on Linux: of cgroup v2 and v1."""
OTHERWISE = {"gpu": "cuda", "nvidia": "cuda", "rocm": "cuda", "metal": "mps"}
"""Common names of devices, with torch's names."""
TOO_LITTLE = (
    "Out of memory: not even one image fits into the device's memory. "
    "Use --backbones without the largest ones, or another --device."
)


def resolve(name: str) -> str:
    """`auto` → `cuda` if there is a GPU, else `cpu`; any other name must be a device that works on this machine.

    Raises: StudyError for a device that does not work: nothing falls back silently.
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
    """`cuda:1` → `cuda`: devices of one kind give the same numbers, as far as possible."""
    return device.partition(":")[0]


def release() -> None:
    """Free the GPU memory that torch has cached."""
    torch.cuda.empty_cache()


def of_kind(values: Mapping[str, T], device: str) -> T:
    """The value for this kind of device; the one for a CPU if it has none."""
    return values.get(kind(device), values["cpu"])


def free_memory() -> int:
    """Free bytes of main memory, at most the container's limit."""
    limits = [file.read_text().strip() for file in CONTAINER if file.exists()]
    return min(psutil.virtual_memory().available, *(int(limit) for limit in limits if limit.isdecimal()))


def in_parts(run: Callable[[Tensor], Tensor], values: Tensor, make_room: Callable[[], None] = release) -> Tensor:
    """`run(values)`, [N, …] → [N, …] row by row; on out of memory, repeatedly in halves.

    The last digits may depend on the size of the parts. `make_room` is called if not even one row fits.

    Raises: TrainingError if that does not help.
    """
    try:
        return run(values)
    except torch.OutOfMemoryError:
        pass  # leaving the handler drops the error, which would keep the memory referenced
    if len(values) > 1:
        release()
        return torch.cat([in_parts(run, part, make_room) for part in values.tensor_split(2)])
    make_room()
    try:
        return run(values)
    except torch.OutOfMemoryError:
        raise TrainingError(TOO_LITTLE) from None
