"""The memory of a device: what is kept in it while there is room, and what is done when it runs out.

Everything that the engine keeps on a device to save computing it again is kept here, so that it can be given up when
something else needs the memory.
"""

import platform
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import psutil
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from autotl.engine.device import kind, of_kind
from autotl.errors import TrainingError

T = TypeVar("T")
MOST = {"cpu": 4_000_000_000, "cuda": sys.maxsize}
"""The most bytes that one process keeps."""
PART = {"cpu": 4, "cuda": 2}
"""All processes together keep at most one part in so many of what is free; the rest is for computing."""
CONTAINER = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Files with a container's memory limit on Linux: of cgroup v2 and v1."""
TOO_LITTLE = (
    "Out of memory: not even one image fits into the device's memory. "
    "Use --backbones without the largest ones, or another --device."
)


class Memory:
    """The memory of one device, with the tensors that this process keeps in it by key, least recently used first."""

    def __init__(self, device: str, cache_dir: Path | None = None) -> None:
        """`cache_dir`: where processes that share the memory find each other; None: it is not shared."""
        self.device = device
        self.most = of_kind(MOST, device)
        self._kept: OrderedDict[str, Tensor] = OrderedDict()
        self._sharers = _Sharers(cache_dir / "memory" / _name_of(device)) if cache_dir else None

    def __contains__(self, key: object) -> bool:
        return key in self._kept

    @property
    def held(self) -> int:
        """Bytes of all tensors that are kept."""
        return sum(map(_bytes, self._kept.values()))

    @property
    def room(self) -> int:
        """Bytes that this process may keep: its share of what would be free if it kept nothing.

        From the first call on, the process counts among those that share the memory.
        """
        sharers = self._sharers.count() if self._sharers else 1
        return min(self.most, (self._free() + self.held) // of_kind(PART, self.device) // sharers)

    def keep(self, key: str, size: int, make: Callable[[], Tensor]) -> Tensor | None:
        """The tensor for this key; if there is none, `make` creates it with `size` bytes.

        The least recently used tensors are given up for it. None if that is not enough.
        """
        if key not in self._kept:
            room = self.room
            if size > room:
                return None
            while self.held + size > room:
                self._kept.popitem(last=False)
            made = self.attempt(make)
            if made is None:
                return None
            self._kept[key] = made
        self._kept.move_to_end(key)
        return self._kept[key]

    def attempt(self, run: Callable[[], T]) -> T | None:
        """`run()`; when the device's memory runs out, repeated after each `recover`.

        None if there is too little memory although nothing is kept any more: then do less at a time.
        """
        while True:
            try:
                return run()
            except torch.OutOfMemoryError:
                pass  # leaving the handler drops the error, which would keep the memory referenced
            if not self.recover():
                return None

    def in_parts(self, run: Callable[..., Tensor], *values: Tensor) -> Tensor:
        """`run(*values)`, [N, …] each → [N, …] row by row; in halves, repeatedly, if there is too little memory.

        The last digits may depend on the size of the parts, so nothing is split while anything is kept.

        Raises: TrainingError if not even one row fits.
        """
        found = self.attempt(lambda: run(*values))
        if found is not None:
            return found
        if len(values[0]) == 1:
            raise TrainingError(TOO_LITTLE)
        halves = zip(*(value.tensor_split(2) for value in values), strict=True)
        return torch.cat([self.in_parts(run, *half) for half in halves])

    def recover(self) -> bool:
        """After the memory ran out: give up half of what is kept; whether anything was."""
        before = self.held
        while self.held > before // 2:
            self._kept.popitem(last=False)
        self._release()
        return before > 0

    def clear(self) -> None:
        """Give up everything that is kept."""
        self._kept.clear()
        self._release()

    def _release(self) -> None:
        """Free what torch has cached of a GPU's memory: other processes and libraries need it, too."""
        if kind(self.device) == "cuda":
            torch.cuda.empty_cache()

    def _free(self) -> int:
        """Free bytes; of main memory at most the container's limit."""
        if kind(self.device) == "cuda":
            cached = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
            return torch.cuda.mem_get_info(self.device)[0] + cached
        limits = [file.read_text().strip() for file in CONTAINER if file.exists()]
        return min(psutil.virtual_memory().available, *(int(limit) for limit in limits if limit.isdecimal()))


class _Sharers:
    """The living processes that keep tensors in one memory.

    Each has a file in the folder and holds its lock, which the operating system releases no matter how a process ends.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._own: FileLock | None = None

    def count(self) -> int:
        """How many processes there are, including this one, which is one of them from now on."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self._folder / ".lock"):  # a new file must not be found before its lock is held
            if self._own is None:
                self._own = FileLock(self._folder / uuid4().hex, thread_local=False)
                self._own.acquire()
            own = Path(self._own.lock_file)
            return 1 + sum(_lives(file) for file in self._folder.glob("[!.]*") if file != own)


def _lives(file: Path) -> bool:
    """Whether the process that this file belongs to is alive; otherwise the file is removed."""
    try:
        with FileLock(file, timeout=0):
            file.unlink()
    except Timeout:
        return True
    return False


def _name_of(device: str) -> str:
    """A name for the device's memory that is the same in every process that can use it."""
    if kind(device) == "cuda":
        return f"gpu-{torch.cuda.get_device_properties(device).uuid}"  # numbers depend on CUDA_VISIBLE_DEVICES
    return f"main-{platform.node()}"


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.itemsize
