import errno

import optuna
import pytest
import torch

from autotl.errors import PlanError, StudyError
from autotl.study.machine import one_line_each


def no_memory():
    """The error of torch if the computer's own memory is full."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)
    return caught.value


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/data/x"), r"No space left on device \(/data/x\)\."),
        (MemoryError(), "^Out of memory.*without the largest backbones"),
        (no_memory(), "^Out of memory.*without the largest backbones"),
        (torch.OutOfMemoryError("CUDA out of memory"), "^Out of memory.*without the largest backbones"),
        (
            torch.AcceleratorError("CUDA error: device-side assert\nand more"),
            "The device failed: CUDA error: device-side",
        ),
        (optuna.exceptions.StorageInternalError("away"), "Optuna's storage of study 'mine' failed: away"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_an_error_that_a_user_can_fix_is_one_line_that_says_that_nothing_is_lost(error, says):
    with pytest.raises(StudyError, match=says) as caught, one_line_each("mine"):
        raise error
    assert "Finished trials are saved" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [PlanError("a plan"), RuntimeError("a bug"), KeyboardInterrupt()])
def test_all_other_errors_are_raised(error):
    with pytest.raises(type(error)) as caught, one_line_each("mine"):
        raise error
    assert caught.value is error
