"""Which device the numbers are made on."""

import os

from autotl.errors import StudyError


def resolve(name: str) -> str:
    """`auto` → `cuda` where there is one, else `cpu`; any other name must be a device that works here.

    Raises: StudyError for a device that is not here: nothing falls back silently.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.partition(":")[0] not in ("cpu", "cuda", "mps"):
        raise StudyError(f"Unknown device '{name}'. Known: auto, cpu, cuda, cuda:1 …, mps.")
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise StudyError(f"Device '{name}' cannot be used here: {reason} Use --device auto or cpu.") from None
    if name != "cpu":
        # What a plan calls float32 is float32: TF32 keeps ten bits of the fraction.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        # The same plan gives the same numbers.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    return name
