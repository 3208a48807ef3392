"""Chooses the device, and prepares the process for it."""

import ctypes
import sys
from collections.abc import Mapping
from typing import TypeVar

import torch

from autotl.errors import StudyError

T = TypeVar("T")
OTHERWISE = {"gpu": "cuda", "nvidia": "cuda", "rocm": "cuda", "metal": "mps"}
"""Common names of devices, with torch's names."""
TRIM_THRESHOLD, MMAP_MAX = -1, -4
"""Options of glibc's `mallopt`."""


def resolve(name: str) -> str:
    """`auto` → `cuda` if there is a GPU, else `cpu`; any other name must be a device that works on this machine.

    From then on, a process that computes on the CPU keeps the memory that it frees.

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
    if kind(name) == "cpu":
        _keep_freed_memory()
    return name


def _keep_freed_memory() -> None:
    """Let glibc reuse freed memory, however large the block.

    Otherwise it returns activations of more than 32 MB to the system, which clears their pages again for every layer of
    every batch: a quarter of the processor time of a training of SqueezeNet at 224 px. Other C libraries are unchanged.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(MMAP_MAX, 0)
        mallopt(TRIM_THRESHOLD, -1)


def kind(device: str) -> str:
    """`cuda:1` → `cuda`: devices of one kind give the same numbers, as far as possible."""
    return device.partition(":")[0]


def of_kind(values: Mapping[str, T], device: str) -> T:
    """The value for this kind of device; the one for a CPU if it has none."""
    return values.get(kind(device), values["cpu"])
