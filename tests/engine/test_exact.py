import os
import threading
import time
from contextlib import suppress

import pytest
import torch

import autotl
from autotl.builtin import logistic
from autotl.engine import exact as room
from autotl.engine.exact import exact
from autotl.engine.model import Model
from autotl.export.graph import Graph
from autotl.testing.lab import Lab, linear_probe

SWITCHES = (
    torch.backends,
    torch.backends.cudnn,
    torch.backends.cuda.matmul,
    torch.backends.cudnn.conv,
    torch.backends.cudnn.rnn,
)
WITHIN = {
    "precision": ["none"] * 5,
    "attention": (True, False, True, False),
    "deterministic": (1, False),
    "workspace": ":4096:8",
}


def settings():
    cuda = torch.backends.cuda
    return {
        "precision": [switch.fp32_precision for switch in SWITCHES],
        "attention": (
            cuda.math_sdp_enabled(),
            cuda.flash_sdp_enabled(),
            cuda.mem_efficient_sdp_enabled(),
            cuda.cudnn_sdp_enabled(),
        ),
        "deterministic": (
            torch.get_deterministic_debug_mode(),
            torch.utils.deterministic.fill_uninitialized_memory,
        ),
        "workspace": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    }


def older_names():
    return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32, torch.get_float32_matmul_precision()


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch):
    """Restore all settings after each test."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # monkeypatch restores it even if a test changes it
    del os.environ["CUBLAS_WORKSPACE_CONFIG"]
    torch.backends.cudnn.allow_tf32 = True
    before = settings()
    yield
    torch.set_deterministic_debug_mode("default")
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cuda.enable_flash_sdp(True)
    for switch, precision in zip(SWITCHES, before["precision"], strict=True):
        switch.fp32_precision = precision
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
    assert settings() == before


def nothing():
    """As after the import of torch."""


def older():
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.allow_tf32 = False


def strict():
    torch.set_deterministic_debug_mode("error")
    torch.backends.cuda.enable_flash_sdp(False)
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":16:8"


@pytest.mark.parametrize("caller", [nothing, older, strict])
def test_the_callers_settings_are_restored(caller):
    caller()
    before, named = settings(), older_names()
    workspace = before["workspace"] or ":4096:8"
    with suppress(ZeroDivisionError), exact("cuda"):
        assert settings() == {**WITHIN, "workspace": workspace}
        assert not torch.backends.cudnn.allow_tf32
        with exact("cuda:1"):
            pass
        assert settings() == {**WITHIN, "workspace": workspace}
        _ = 1 / 0
    assert settings() == before
    assert older_names() == named


def test_a_switch_that_follows_the_general_one_does_so_again():
    torch.backends.fp32_precision = "tf32"
    with exact("cuda"):
        assert settings() == WITHIN
    assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    torch.backends.fp32_precision = "ieee"
    assert torch.backends.cuda.matmul.fp32_precision == "ieee"


def test_on_a_cpu_nothing_is_set():
    before = settings()
    with exact("cpu"):
        assert settings() == before


def test_the_last_of_several_threads_restores():
    before = settings()
    first_may_end, seen = threading.Event(), []

    def first():
        with exact("cuda"):
            first_may_end.wait(10)

    thread = threading.Thread(target=first)
    thread.start()
    while settings() == before:
        time.sleep(0.001)
    with exact("cuda"):
        first_may_end.set()
        thread.join()
        seen.append(settings())
    assert seen == [WITHIN]
    assert settings() == before


CPU_ATTENTION = "_scaled_dot_product_flash_attention_for_cpu_backward"


def gradients(device, dtype, masked, shape=(8, 6, 197, 64)):
    """Of queries, keys and values, and of the mask if there is one."""
    draw = torch.Generator().manual_seed(0)
    given = [torch.randn(shape, generator=draw).to(device, dtype).requires_grad_() for _ in range(3)]
    mask = torch.randn(shape[-2], shape[-2], generator=draw).to(device, dtype) if masked else None
    if mask is not None:
        given.append(mask.expand(shape[0], shape[1], -1, -1).contiguous().requires_grad_())
    found = torch.nn.functional.scaled_dot_product_attention(*given[:3], attn_mask=given[3] if masked else None)
    found.float().square().sum().backward()
    return [each.grad for each in given]


def test_an_operator_runs_in_the_strict_mode_alone(monkeypatch):
    modes, really = [], torch.set_deterministic_debug_mode
    given = {"device": "cpu", "dtype": torch.float32, "masked": False, "shape": (2, 3, 17, 64)}
    with exact("cuda"):
        torch.backends.cuda.enable_flash_sdp(True)  # the name of the CPU's fused kernel, too
        usual = gradients(**given)
        monkeypatch.setattr(torch, "set_deterministic_debug_mode", lambda mode: modes.append(mode) or really(mode))
        for _ in range(2):
            with room._strictly(CPU_ATTENTION, "CPU"):
                assert all(map(torch.equal, gradients(**given), usual))
            assert modes == ["error", "warn"]
            assert settings()["deterministic"] == WITHIN["deterministic"]
            gradients(**given)
            assert modes == ["error", "warn"]  # torch's own kernel again
            modes.clear()


def test_the_operator_of_attention_gets_and_gives_what_torch_passes():
    """On the CPU, which has no kernel of its own for it: without a mask torch passes None, and gets None for it."""
    seen, one = [], torch.ones(2)

    def kernel(
        gradient, query, key, value, mask, out, sums, seed, offset, dropout, wanted, causal=False, *, scale=None
    ):
        seen.append((mask, dropout, wanted, causal, scale, torch.get_deterministic_debug_mode()))
        return gradient, 2 * gradient, 3 * gradient, None

    library = torch.library.Library("aten", "IMPL")
    library.impl(room.ATTENTION, kernel, "CPU")
    with exact("cuda"), room._strictly(room.ATTENTION, "CPU"):
        operator = getattr(torch.ops.aten, room.ATTENTION)
        found = operator(one, one, one, one, None, one, one, one, one, 0.1, [True, True, True, False], scale=0.5)
        assert settings() == WITHIN
    assert seen == [(None, 0.1, [True, True, True, False], False, 0.5, 2)]
    assert [value if value is None else value[0].item() for value in found] == [1, 2, 3, None]


def test_an_error_in_an_operator_leaves_the_mode():
    operator, value = getattr(torch.ops.aten, CPU_ATTENTION), torch.randn(1, 1, 4, 8)
    with exact("cuda"), room._strictly(CPU_ATTENTION, "CPU"):
        with pytest.raises((RuntimeError, IndexError)):
            operator(value[0, 0], value[0, 0], value[0, 0], value[0, 0], value, value, 0.0, False)
        assert settings() == WITHIN


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
def test_on_a_gpu_attention_has_the_same_gradients_twice(cuda, dtype, masked, recwarn):
    with exact(cuda):
        first = gradients(cuda, dtype, masked)
        for _ in range(5):
            assert all(map(torch.equal, gradients(cuda, dtype, masked), first))
        assert settings() == WITHIN
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            by_math = gradients(cuda, dtype, masked)
    assert not any("non-deterministic" in str(warning.message) for warning in recwarn)
    tolerance = {"rtol": 1e-3, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.05}
    for one, other in zip(first, by_math, strict=True):
        torch.testing.assert_close(one, other, **tolerance)


@pytest.mark.gpu
def test_on_a_gpu_attention_is_fused(cuda):
    """A kernel that is allowed but does not support the values would be replaced by the math kernel without a word."""
    draw = torch.randn(8, 6, 197, 64, device=cuda, requires_grad=True)
    with exact(cuda):
        found = torch.nn.functional.scaled_dot_product_attention(draw, draw, draw)
    assert "EfficientAttention" in found.grad_fn.name()


@pytest.fixture
def watch(monkeypatch):
    """`watch(owner, method)`: the settings at each call from then on; the CPU counts as a GPU."""
    monkeypatch.setattr(room, "kind", lambda device: "cuda")

    def spy(owner, method):
        seen, really = [], getattr(owner, method)
        monkeypatch.setattr(owner, method, lambda *given: seen.append(settings()) or really(*given))
        return seen

    return spy


def test_search_and_predictions_leave_torch_as_it_was(stripes, watch):
    before, seen = settings(), watch(Graph, "forward")
    options = {"backbones": ["reference:pixels"], "strategies": ["linear-probe"], "device": "cpu", "mlflow": False}
    found = autotl.search(stripes, trials=1, reruns=0, compare=False, verbose=False, **options)
    assert settings() == before
    searched = len(seen)
    autotl.load(found.folder, device="cpu").predict(stripes / "down")
    assert settings() == before
    assert len(seen) > searched > 0
    assert all(each == WITHIN for each in seen)


def test_a_training_alone_leaves_torch_as_it_was(tmp_path, watch):
    before, seen = settings(), watch(Model, "features")
    lab = Lab(logistic, tmp_path)
    fitted = lab.fit(lab.plan(linear_probe("2.1")))
    fitted.logits("test")
    assert settings() == before
    assert len(seen) > 1
    assert all(each == WITHIN for each in seen)
