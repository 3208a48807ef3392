"""The feed: copies stored pixels to the device and results back, on a GPU while it computes."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from autotl.engine.device import kind

READERS = 4
"""Threads that read for a GPU."""
AHEAD = 6
"""How many batches are read before the GPU needs them."""

Reader = Callable[[Sequence[str]], np.ndarray]
"""Returns the pixels of images by their hashes, [N, 3, S, S] uint8; called from several threads."""

K = TypeVar("K")
T = TypeVar("T")


def images(pixels: Reader, batches: Iterable[Sequence[str]], device: str) -> Iterator[Tensor]:
    """The pixels of each batch of image hashes in turn, [N, 3, S, S] uint8 on the device.

    For a GPU, threads read the next batches into pinned memory and copy them on a separate stream. For a CPU, each
    batch is read when it is needed: there is no core to spare.
    """
    if kind(device) != "cuda":
        for keys in batches:
            yield torch.from_numpy(pixels(keys)).to(device)
        return

    stream = _copying(device)

    def read(keys: Sequence[str]) -> tuple[Tensor, torch.cuda.Event | None]:
        pinned = torch.from_numpy(pixels(keys)).pin_memory()
        try:
            # A thread starts on the first GPU, and leaving a stream of another one alone would allocate memory there.
            with torch.cuda.device(stream.device), torch.cuda.stream(stream):
                return pinned.to(device, non_blocking=True), stream.record_event()
        except torch.OutOfMemoryError:  # while a step computes; it is copied after that
            return pinned, None

    for batch, copied in _read_ahead(read, batches):
        if copied:
            computing = torch.cuda.current_stream(device)
            computing.wait_event(copied)
            batch.record_stream(computing)
            yield batch
        else:
            yield to_device(batch, device)


def results(values: Iterable[Tensor], device: str) -> Iterator[Tensor]:
    """Each of the `values`, which iterating over them computes on the device, on the CPU, in turn.

    A GPU computes the next one while the CPU waits for one and uses it.
    """
    if kind(device) == "cuda":
        yield from _one_behind(map(_copied_back, values))
    else:
        yield from (value.cpu() for value in values)


def to_device(value: Tensor, device: str | torch.device) -> Tensor:
    """A small tensor on the device, without waiting for the device's computation."""
    return value.to(device, non_blocking=True)


def _copied_back(value: Tensor) -> Callable[[], Tensor]:
    """Starts to copy a GPU's tensor into pinned memory; returns a function that waits for the copy."""
    copy = value.to("cpu", non_blocking=True)
    done = torch.cuda.current_stream(value.device).record_event()

    def wait() -> Tensor:
        done.synchronize()
        return copy

    return wait


def _one_behind(waits: Iterable[Callable[[], T]]) -> Iterator[T]:
    """The result of each function in order; each is called when the next one exists, so that two are in flight."""
    last: Callable[[], T] | None = None
    for wait in waits:
        if last:
            yield last()
        last = wait
    if last:
        yield last()


def _read_ahead(read: Callable[[K], T], keys: Iterable[K]) -> Iterator[T]:
    """`read(key)` for each key in order, by threads that start before the result is needed."""
    waiting: deque[Future[T]] = deque()
    pool = ThreadPoolExecutor(READERS)
    try:
        for key in keys:
            waiting.append(pool.submit(read, key))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


@cache
def _copying(device: str) -> torch.cuda.Stream:
    """The stream of a GPU on which copies run in parallel with computation; only one, because each caches memory."""
    return torch.cuda.Stream(device)
