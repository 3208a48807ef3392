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
    "attention": (True, False, False, False),
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
