import math

import pytest
import torch

from autotl.backbones.catalogue import Catalogue
from autotl.backbones.stages import Stages
from autotl.engine import precision
from autotl.engine.memory import Memory
from autotl.engine.precision import WORTH, Arithmetic
from autotl.errors import TrainingError

USUAL = ("float32", "channels_last")


@pytest.fixture
def catalogue(host, tmp_path):
    return Catalogue(host, tmp_path / "cache")


@pytest.fixture
def fastest(catalogue):
    input = catalogue.card("tiny:net").input
    return lambda: precision.fastest(catalogue.structure("tiny:net", input), input, Memory("cpu"))


@pytest.fixture
def take(monkeypatch):
    """Let a step of each way take the given seconds."""

    def pretend(seconds):
        def step(stages, images, dtype, device):
            assert images.shape == (precision.BATCH["cpu"], 3, 32, 32)
            assert stages.training
            last = images.is_contiguous(memory_format=torch.channels_last)
            weight = stages.state_dict()["1.0.weight"]
            assert weight.is_contiguous(memory_format=torch.channels_last) == last
            times = seconds[dtype, "channels_last" if last else "contiguous"]
            return times.pop(0) if len(times) > 1 else times[0]

        monkeypatch.setattr(precision, "_step_seconds", step)

    return pretend


def times(**faster):
    """One second for every way except those named."""
    ways = [(dtype, layout) for dtype in ("float32", "bfloat16") for layout in ("contiguous", "channels_last")]
    return {(dtype, layout): [faster.get(f"{dtype}_{layout}", 1.0)] for dtype, layout in ways}


@pytest.mark.parametrize(
    "way",
    [("float32", "contiguous"), ("bfloat16", "contiguous"), ("bfloat16", "channels_last"), USUAL],
)
def test_the_fastest_way_is_chosen(fastest, take, way):
    take(times(**{"_".join(way): 0.5}))
    assert fastest() == Arithmetic(*way, 0.5 / precision.BATCH["cpu"])


def test_the_usual_way_stays_unless_another_is_clearly_faster(fastest, take):
    take(times(bfloat16_contiguous=WORTH + 0.01))
    assert fastest() == Arithmetic(*USUAL, 1 / precision.BATCH["cpu"])
    take(times(bfloat16_contiguous=WORTH - 0.01))
    assert fastest().compute_dtype == "bfloat16"


def test_the_shortest_of_several_steps_counts(fastest, take):
    seconds = times()
    seconds["bfloat16", "channels_last"] = [9.0, 0.2, 9.0]  # slow once, then as usual
    take(seconds)
    assert fastest() == Arithmetic("bfloat16", "channels_last", 0.2 / precision.BATCH["cpu"])


def test_a_precision_that_a_device_does_not_support_is_not_chosen(fastest, catalogue, monkeypatch):
    really = Stages.forward

    def forward(self, images, to=None, *, start=None):
        if torch.is_autocast_enabled("cpu"):
            raise RuntimeError("not implemented for 'BFloat16'")
        return really(self, images, to, start=start)

    monkeypatch.setattr(Stages, "forward", forward)
    chosen = fastest()
    assert chosen.compute_dtype == "float32"
    assert 0 < chosen.image_seconds < 1
    input = catalogue.card("tiny:net").input
    stages = catalogue.structure("tiny:net", input)
    images = torch.zeros(1, 3, 32, 32)
    assert precision._step_seconds(stages, images, "bfloat16", "cpu") == math.inf
    assert 0 < precision._step_seconds(stages, images, "float32", "cpu") < 5


def test_a_lack_of_memory_does_not_count_as_unsupported(fastest, monkeypatch):
    monkeypatch.setattr(Stages, "forward", lambda *_, **__: torch.empty(10**15))
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        fastest()


def test_if_memory_is_short_fewer_images_are_timed(fastest, monkeypatch):
    seen = []
    really = Stages.forward

    def forward(self, images, to=None, *, start=None):
        seen.append(len(images))
        if len(images) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return really(self, images, to, start=start)

    monkeypatch.setattr(Stages, "forward", forward)
    most = 2
    assert 0 < fastest().image_seconds < 1
    assert sorted(set(seen)) == [2, 4, 8]
    most = 1
    with pytest.raises(TrainingError, match="not even one image fits"):
        fastest()


def test_steps_go_forward_and_backward_and_leave_no_gradients(catalogue):
    stages = catalogue.structure("tiny:net", catalogue.card("tiny:net").input)
    backward = []
    stages.stage_parameters("0.2")["0.0.weight"].register_hook(lambda gradient: backward.append(gradient.norm()))
    precision._step_seconds(stages, torch.rand(2, 3, 32, 32), "bfloat16", "cpu")
    assert len(backward) == 1
    assert all(parameter.grad is None for parameter in stages.parameters())


def test_a_network_without_parameters_can_be_timed(catalogue):
    chosen = precision.choose(catalogue, "reference:edges", Memory("cpu"), catalogue.cache_dir)
    assert 0 < chosen.image_seconds < 1


def test_a_machine_is_measured_once(host, tmp_path, monkeypatch):
    measured = []

    def fastest(stages, input, memory):
        measured.append(memory.device)
        return Arithmetic("bfloat16", "contiguous", 0.125 * len(measured))

    monkeypatch.setattr(precision, "fastest", fastest)

    def choose(name="tiny:net"):
        where = (Catalogue(host, tmp_path / "cache"), name, Memory("cpu"), tmp_path / "cache")
        return precision.stored(*where) or precision.choose(*where)

    assert choose() == choose() == Arithmetic("bfloat16", "contiguous", 0.125)
    assert len(measured) == 1
    choose("reference:edges")  # another network
    assert len(measured) == 2
    monkeypatch.setattr(precision, "_name_of", lambda device: "another machine")
    assert choose().image_seconds == 0.375
    assert len(measured) == 3
    for file in (tmp_path / "cache/arithmetic").iterdir():
        file.write_bytes(file.read_bytes()[:-1])  # damaged
    assert choose().image_seconds == 0.5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_multiplications_are_in_the_type_and_weights_in_float32(dtype):
    layer = torch.nn.Conv2d(3, 4, 3)
    with precision.computing(dtype, "cpu"):
        value = layer(torch.rand(1, 3, 8, 8))
    assert value.dtype == precision.DTYPES[dtype]
    assert layer.weight.dtype == torch.float32
