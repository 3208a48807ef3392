"""Torch's settings while autotl computes on a GPU, so that the same plan gives the same numbers."""

import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch

from autotl.engine.device import kind

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
"""The environment variable that makes cuBLAS deterministic."""
MODE = "warn"
"""Torch's deterministic mode: an operation without a deterministic kernel gives a warning, not an error."""
ATTENTION = "_scaled_dot_product_efficient_attention_backward"
"""The backward pass of the memory-efficient attention."""


def exact(device: str) -> AbstractContextManager[None]:
    """In this context a GPU gives the same numbers for the same plan; afterwards torch has its previous settings.

    Contexts may be nested and may overlap in several threads: torch's settings are global.
    """
    return nullcontext() if kind(device) == "cpu" else _computing


@contextmanager
def _without_tf32() -> Iterator[None]:
    """float32 in a plan means float32: TF32 keeps only ten bits of the fraction."""
    cudnn: Any = torch.backends.cudnn
    # The general ones first: "none" in the others means their value.
    switches: tuple[Any, ...] = (torch.backends, cudnn, torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn)
    try:
        older = cudnn.allow_tf32
    except RuntimeError:  # the caller has set the newer names of the same switches to other values
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
    """Sums are added in a fixed order, if torch has a deterministic kernel."""
    before = torch.get_deterministic_debug_mode()
    workspace = os.environ.get(WORKSPACE)
    deterministic = torch.utils.deterministic
    filled = deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    os.environ.setdefault(WORKSPACE, ":4096:8")
    torch.set_deterministic_debug_mode(MODE)
    # Not needed: nothing here reads uninitialised memory.
    deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
        torch.set_deterministic_debug_mode(before)
        if workspace is None:
            os.environ.pop(WORKSPACE, None)


@contextmanager
def _attention_in_fixed_order() -> Iterator[None]:
    """Use the memory-efficient kernel of attention, and the math kernel for what it does not support.

    The flash kernel was the slower of the two when its sums have a fixed order.
    """
    cuda = torch.backends.cuda
    kinds = {
        cuda.enable_math_sdp: cuda.math_sdp_enabled(),
        cuda.enable_flash_sdp: cuda.flash_sdp_enabled(),
        cuda.enable_mem_efficient_sdp: cuda.mem_efficient_sdp_enabled(),
        cuda.enable_cudnn_sdp: cuda.cudnn_sdp_enabled(),
    }
    for enable in kinds:
        enable(enable in (cuda.enable_math_sdp, cuda.enable_mem_efficient_sdp))
    try:
        with _strictly(ATTENTION, "CUDA") if cuda.is_built() else nullcontext():
            yield
    finally:
        for enable, before in kinds.items():
            enable(before)


@contextmanager
def _strictly(operator: str, key: str) -> Iterator[None]:
    """In this context one of torch's operators on devices of the kind `key` runs in the mode "error".

    The backward pass of fused attention adds up in a fixed order only in that mode, and says so in a warning in the
    mode "warn". For a whole training that mode would be an error with every network that has an operation without a
    deterministic kernel.
    """
    kernel = torch.library.get_kernel(f"aten::{operator}", key)

    def run(keys: Any, *given: Any, **named: Any) -> Any:
        torch.set_deterministic_debug_mode("error")
        try:
            return kernel.call_boxed(keys, *given, **named)
        finally:
            torch.set_deterministic_debug_mode(MODE)

    library = torch.library.Library("aten", "IMPL")
    library.impl(operator, run, key, with_keyset=True, allow_override=True)
    try:
        yield
    finally:
        del library  # which restores torch's own kernel


class _Computing:
    """Applies the settings when the first context is entered, from any thread, and restores them after the last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._within = 0
        self._settings = ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if not self._within:
                for settings in (_without_tf32(), _in_fixed_order(), _attention_in_fixed_order()):
                    self._settings.enter_context(settings)
            self._within += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._within -= 1
            if not self._within:
                self._settings.close()


_computing = _Computing()
