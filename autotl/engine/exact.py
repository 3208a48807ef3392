"""What torch is told while autotl computes on a GPU, so that the same plan gives the same numbers."""

import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch

from autotl.engine.device import kind

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
"""The environment variable by which cuBLAS is told to add up in a fixed order."""


def exact(device: str) -> AbstractContextManager[None]:
    """Within, a GPU gives the same numbers for the same plan; afterwards torch is as its caller had set it.

    Contexts may lie within each other and overlap in several threads: torch's settings are those of the process.
    """
    return nullcontext() if kind(device) == "cpu" else _computing


@contextmanager
def _without_tf32() -> Iterator[None]:
    """What a plan calls float32 is float32: TF32 keeps ten bits of the fraction."""
    cudnn: Any = torch.backends.cudnn
    # The general ones first: "none" stands for what they say.
    switches: tuple[Any, ...] = (torch.backends, cudnn, torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn)
    try:
        older = cudnn.allow_tf32
    except RuntimeError:  # it disagrees with the newer names of the same switches, which the caller has set
        older = None
    before = []
    for switch in switches:
        before.append(switch.fp32_precision)
        switch.fp32_precision = "none"
    if older:
        cudnn.allow_tf32 = False
    try:
        yield
    finally:
        if older:
            cudnn.allow_tf32 = True
        for switch, precision in zip(switches, before, strict=True):
            switch.fp32_precision = precision


@contextmanager
def _in_fixed_order() -> Iterator[None]:
    """Sums are added up in the same order each time, where torch has a kernel that does."""
    before = torch.get_deterministic_debug_mode()
    workspace = os.environ.get(WORKSPACE)
    deterministic = torch.utils.deterministic
    filled = deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    os.environ.setdefault(WORKSPACE, ":4096:8")
    torch.set_deterministic_debug_mode("warn")
    # Nothing here reads what it has not written.
    deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
        torch.set_deterministic_debug_mode(before)
        if workspace is None:
            os.environ.pop(WORKSPACE, None)


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Only the plain kind has a backward pass in a fixed order, unless warnings are errors."""
    cuda = torch.backends.cuda
    kinds = {
        cuda.enable_math_sdp: cuda.math_sdp_enabled(),
        cuda.enable_flash_sdp: cuda.flash_sdp_enabled(),
        cuda.enable_mem_efficient_sdp: cuda.mem_efficient_sdp_enabled(),
        cuda.enable_cudnn_sdp: cuda.cudnn_sdp_enabled(),
    }
    for enable in kinds:
        enable(enable is cuda.enable_math_sdp)
    try:
        yield
    finally:
        for enable, before in kinds.items():
            enable(before)


class _Computing:
    """Entered with the first of those who are within, from whichever thread, and left with the last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._within = 0
        self._settings = ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if not self._within:
                for settings in (_without_tf32(), _in_fixed_order(), _plain_attention()):
                    self._settings.enter_context(settings)
            self._within += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._within -= 1
            if not self._within:
                self._settings.close()


_computing = _Computing()
