"""Measures what each stage of a backbone costs: its parameters, and its floating-point operations for one image."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.backends import mha
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from autotl.backbones import compiler
from autotl.backbones.stages import Stages
from autotl.contracts import BackboneInfo, StageInfo
from autotl.plan import Input


def measure(name: str, input: Input, stages: Stages) -> BackboneInfo:
    """Facts about the stages of the backbone `name`, measured on one image of zeros.

    A multiply-add counts as two operations; norms, activations and poolings are not counted.
    """
    seen = 0
    infos = []
    image = torch.zeros(1, 3, input.size, input.size)
    with torch.no_grad(), compiler.unused(), _attention_in_plain_products(), FlopCounterMode(display=False) as counter:
        for boundary, _ in stages.eval().walk(image):
            total = counter.get_total_flops()
            parameters = sum(parameter.numel() for parameter in stages.stage_parameters(boundary.name).values())
            infos.append(StageInfo(**boundary.model_dump(), parameters=parameters, flops=total - seen))
            seen = total
    return BackboneInfo(name=name, input=input, stages=tuple(infos), fingerprint=stages.fingerprint)


@contextmanager
def _attention_in_plain_products() -> Iterator[None]:
    """Without fused attention kernels: torch's counter misses some of them, depending on its version."""
    fast = mha.get_fastpath_enabled()
    mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        mha.set_fastpath_enabled(fast)
