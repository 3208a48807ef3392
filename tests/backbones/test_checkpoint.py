"""Weights files from training scripts, and the tensors that a network gets from them."""

import argparse
import collections
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from autotl import load_weights, read_state
from autotl.backbones.checkpoint import READING, accept
from autotl.backbones.splitting import split
from autotl.errors import WeightsError


class Network(nn.Module):
    """Two stages and a classifier."""

    def __init__(self, classes=2, hidden=None):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.last = nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        layers = [nn.Linear(6, hidden), nn.Linear(hidden, classes)] if hidden else [nn.Linear(6, classes)]
        self.classifier = nn.Sequential(*layers)

    def forward(self, images):
        return self.classifier(self.pool(self.last(self.stem(images))).flatten(1))


def values(model, seed=0):
    """A state dict of a network that somebody has trained."""
    generator = torch.Generator().manual_seed(seed)
    state = model.state_dict()
    return {
        name: torch.rand(value.shape, generator=generator) if value.is_floating_point() else value
        for name, value in state.items()
    }


def under(prefix, state):
    return {f"{prefix}{name}": value for name, value in state.items()}


STATE = values(Network())
OTHER = values(Network(), seed=1)
STAGES = {name: value for name, value in STATE.items() if not name.startswith("classifier")}
OPTIONS = argparse.Namespace(lr=0.1, model="net")


def given(file, network=Network):
    """The stages of a network that was filled from a file, after a check of their weights, and the notes."""
    model = network()
    load_weights(model, file)
    stages = split(model, 32)
    return stages, accept(model, stages)


FORMS = {
    "plain": STATE,
    "state_dict": {"state_dict": STATE},
    "other classes": values(Network(classes=5)) | STAGES,
    "another head": values(Network(hidden=3)) | STAGES,
    "no head": STAGES,
    "parallel": under("module.", STATE),
    "compiled": under("_orig_mod.", STATE),
    "both": {"state_dict": under("module._orig_mod.", STATE)},
    "its parts compiled": {name.replace("stem.", "stem._orig_mod."): value for name, value in STATE.items()},
    "its parts sharded": under(
        "module.", {name.replace(".0.", "._fsdp_wrapped_module.0."): STATE[name] for name in STATE}
    ),
    "part of a module": under("encoder.", STAGES) | {"decoder.weight": torch.zeros(3)},
    "lightning": {"state_dict": under("model.", STATE), "hyper_parameters": {"lr": 0.1}, "epoch": 3},
    "any name": {"net": STATE, "acc": 93.1},
    "optimizer beside it": {"model_state_dict": STATE, "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}}},
    "torchvision's training": {
        "model": OTHER,
        "model_ema": {"n_averaged": torch.tensor(3), **under("module.", STATE)},
        "args": OPTIONS,
    },
    "timm's training": {"arch": "net", "state_dict": OTHER, "state_dict_ema": STATE, "args": OPTIONS},
    "averaged beside it": {"state_dict": under("model.", OTHER) | under("ema_model.", STATE)},
    "twice the same": {"state_dict": under("model.", STATE) | under("backbone.", STATE)},
    "parameters": {name: nn.Parameter(value, value.is_floating_point()) for name, value in STATE.items()},
    "numbers and paths beside it": {
        "model": STATE,
        "best": np.float64(0.9),
        "curve": np.zeros(3),
        "options": argparse.Namespace(output=Path("run")),
        "seen": collections.defaultdict(list),
    },
    "old batch norm": {name: value for name, value in STATE.items() if "num_batches" not in name},
}


@pytest.mark.parametrize("form", FORMS)
def test_the_stages_get_their_weights_from_every_kind_of_file(tmp_path, form):
    file = tmp_path / "weights.pth"
    torch.save(FORMS[form], file)
    stages, _ = given(file)
    for name, value in stages.state_dict().items():
        assert torch.equal(value, STATE[name]), name


def test_safetensors_are_recognised_by_content_and_half_precision_is_converted(tmp_path):
    file = tmp_path / "weights.pth"
    save_file({name: value.half() if value.is_floating_point() else value for name, value in STATE.items()}, file)
    stages, _ = given(file)
    for name, value in stages.state_dict().items():
        assert value.dtype == STATE[name].dtype
        torch.testing.assert_close(value, STATE[name], atol=1e-3, rtol=0)
    torch.save(STATE, tmp_path / "weights.safetensors")
    given(tmp_path / "weights.safetensors")


def test_what_is_not_used_is_named_and_counted(tmp_path):
    file = tmp_path / "weights.pth"
    torch.save({"model_ema": under("net.", values(Network(classes=5))) | {"loss.weight": torch.ones(2)}}, file)
    _, said = given(file)
    assert said == [
        f"14 tensors of {file} (in model_ema 'net.'); not used: 3: classifier.0.weight, classifier.0.bias, loss.weight"
    ]


def test_a_head_that_the_file_does_not_have_has_no_values(tmp_path):
    torch.save(STAGES, tmp_path / "weights.pth")
    model = Network()
    load_weights(model, tmp_path / "weights.pth")
    stages = split(model, 32)
    with torch.no_grad():
        assert stages(torch.rand(1, 3, 32, 32)).isfinite().all()
    with pytest.raises((RuntimeError, NotImplementedError)):  # nothing is computed with random values
        model(torch.rand(1, 3, 32, 32)).sum().item()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda state: state.pop("last.0.bias"), r"have 14 tensors: missing: 1: last.0.bias"),
        (
            lambda state: [state.pop(name) for name in list(state) if name.startswith("last")],
            r"missing: 6: last.0.weight, last.0.bias, last.1.weight …",
        ),
        (
            lambda state: state.update({"last.0.weight": torch.zeros(6, 4, 5, 5)}),
            r"of another shape or type: 1: last.0.weight \(6, 4, 5, 5\) instead of \(6, 4, 3, 3\)",
        ),
        (lambda state: state.update({"stem.3.weight": torch.zeros(4)}), "not in the network: 1: stem.3.weight"),
        (lambda state: state.update({"stem.2.gamma": torch.zeros(4)}), "not in the network: 1: stem.2.gamma"),
        (
            lambda state: state.update({"last.0.weight": (100 * state["last.0.weight"]).to(torch.int8)}),
            r"of another shape or type: 1: last.0.weight int8 instead of float32",
        ),
        (
            lambda state: state.update({"last.0.weight": state["last.0.weight"].to("meta")}),
            "last.0.weight without values",
        ),
        (lambda state: state["last.0.weight"].copy_(torch.nan), "NaN or infinity in 1: last.0.weight"),
    ],
)
def test_a_file_that_does_not_give_the_stages_all_of_their_weights_is_refused(tmp_path, change, says):
    state = {name: value.clone() for name, value in STATE.items()}
    change(state)
    torch.save(under("module.", state), tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match=says):
        given(tmp_path / "weights.pth")


def test_a_network_within_another_is_recognised(tmp_path):
    torch.save({name: value for name, value in STATE.items() if name != "stem.0.weight"}, tmp_path / "weights.pth")

    class Wrapped(nn.Sequential):
        def __init__(self):
            inner = Network()
            load_weights(inner, tmp_path / "weights.pth")
            super().__init__(inner)

    model = Wrapped()
    with pytest.raises(WeightsError, match="missing: 1: stem.0.weight"):
        accept(model, split(model, 32))


def test_another_networks_file_and_one_with_several_are_refused(tmp_path):
    file = tmp_path / "weights.pth"
    for content, says in (
        (
            {"conv.weight": torch.zeros(3)},
            "not have the weights of a Network: it has 1: conv.weight; expected 16: stem.0.weight",
        ),
        ({"student": STATE, "teacher": OTHER}, "several networks that fit, in student, teacher"),
        ({"epoch": 3}, "no state dict"),
        ([STATE], "no state dict but a list"),
    ):
        torch.save(content, file)
        with pytest.raises(WeightsError, match=says):
            load_weights(Network(), file)
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    with pytest.raises(WeightsError, match="git lfs pull"):
        load_weights(Network(), file)


def spring():
    pytest.fail("code in a weights file was run")


class Trap:
    def __reduce__(self):
        return spring, ()


def test_code_in_a_weights_file_is_not_run(tmp_path):
    file = tmp_path / "weights.pth"
    for content in ({"0.weight": Trap()}, Trap(), {"model": Network()}):
        for zipped in (True, False):
            torch.save(content, file, _use_new_zipfile_serialization=zipped)
            with pytest.raises(WeightsError, match=r"code would have to be run \(.+\).*save only the weights"):
                load_weights(Network(), file)
    file.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(WeightsError, match="cannot be read"):
        load_weights(Network(), file)


@pytest.mark.parametrize("zipped", [True, False])
def test_objects_beside_the_weights_are_ignored_and_not_created(tmp_path, zipped):
    file = tmp_path / "weights.pth"
    content = {"model": STATE, "args": argparse.Namespace(hook=Trap(), best=np.float64(1))}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    stages, _ = given(file)
    assert torch.equal(stages.state_dict()["stem.0.weight"], STATE["stem.0.weight"])


def test_an_error_says_what_a_file_is_that_is_no_checkpoint(tmp_path):
    file = tmp_path / "weights.pth"
    torch.save(STATE, file)
    half = file.read_bytes()[: file.stat().st_size // 2]
    for content, says in (
        (b"<!DOCTYPE html><html></html>", "starts with b'<!DOCTYPE ht'"),
        (b"\x08\x08\x12\x07pytorch" + bytes(90), "starts with b'.*save only the weights"),
        (b"", "it is empty"),
        (half, "damaged"),
    ):
        file.write_bytes(content)
        with pytest.raises(WeightsError, match=says):
            load_weights(Network(), file)
    np.savez(file.open("wb"), **{name: value.numpy() for name, value in STATE.items()})
    with pytest.raises(WeightsError, match="an archive that torch.save did not write"):
        load_weights(Network(), file)


def test_weights_of_auxiliary_classifiers_may_be_ignored(tmp_path):
    torch.save({**STATE, "AuxLogits.conv.weight": torch.zeros(1)}, tmp_path / "weights.pth")
    model = Network()
    load_weights(model, tmp_path / "weights.pth", ignore=("AuxLogits.",))
    assert getattr(model, READING).left_over == ()


def test_a_published_layout_is_converted_and_the_networks_own_is_kept(tmp_path):
    def convert(state):
        return {name.replace("body.stem", "stem").replace("body.last", "last"): value for name, value in state.items()}

    file = tmp_path / "weights.pth"
    for state in (under("body.", STAGES), STAGES):
        torch.save(state, file)
        model = Network()
        load_weights(model, file, convert=convert)
        assert torch.equal(model.stem[0].weight, STATE["stem.0.weight"])
    load_weights(model, file, convert=lambda state: {})
    assert torch.equal(model.last[0].weight, STATE["last.0.weight"])


def test_interpolated_tensors_are_reported_and_converted_layouts_are_not(tmp_path):
    published = STATE | {
        "last.0.weight": STATE["last.0.weight"].flatten(),
        "stem.0.weight": torch.zeros(4, 3, 5, 5),
    }

    def convert(state):
        smaller = nn.functional.interpolate(state["stem.0.weight"], 3)
        return dict(state) | {"last.0.weight": state["last.0.weight"].view(6, 4, 3, 3), "stem.0.weight": smaller}

    torch.save(published, tmp_path / "weights.pth")
    model = Network()
    load_weights(model, tmp_path / "weights.pth", convert=convert)
    assert getattr(model, READING).fitted == ("stem.0.weight (4, 3, 5, 5) to (4, 3, 3, 3)",)
    assert "interpolated: 1: stem.0.weight" in str(getattr(model, READING))


@pytest.mark.parametrize("start", [b"\x80", b"PK"])
def test_safetensors_whose_header_has_the_length_of_another_formats_first_bytes(tmp_path, start):
    save_file(STATE, tmp_path / "net.safetensors")
    content = (tmp_path / "net.safetensors").read_bytes()
    header = int.from_bytes(content[:8], "little")
    length = int.from_bytes(start.ljust(2, b"\x06"), "little")  # the first such length that the header fits into
    while length < header:
        length += 1 << 16
    padded = content[8 : 8 + header].ljust(length)
    (tmp_path / "net.safetensors").write_bytes(length.to_bytes(8, "little") + padded + content[8 + header :])
    given(tmp_path / "net.safetensors")


def test_safetensors_that_were_not_copied_whole(tmp_path):
    save_file(STATE, tmp_path / "net.safetensors")
    (tmp_path / "net.safetensors").write_bytes((tmp_path / "net.safetensors").read_bytes()[:100])
    with pytest.raises(WeightsError, match="shorter than its header states"):
        given(tmp_path / "net.safetensors")


def test_names_are_renamed_before_anything_is_searched(tmp_path):
    """By prefixes, one after another, and by a function: names that no common prefix explains."""
    file = tmp_path / "net.pt"
    odd = {name.replace("stem.", "encoder.first.").replace("last.", "encoder.second."): v for name, v in STATE.items()}
    torch.save({"state_dict": under("module.", odd)}, file)
    for rename in (
        {"module.": "", "encoder.first.": "stem.", "encoder.second.": "last."},
        lambda name: name[7:].replace("encoder.first", "stem").replace("encoder.second", "last"),
    ):
        model = Network()
        load_weights(model, file, rename=rename)
        assert all(torch.equal(value, STATE[name]) for name, value in model.state_dict().items())
    with pytest.raises(WeightsError, match="does not have the weights of a Network"):
        load_weights(Network(), file, rename=lambda name: f"other_{name.replace('.', '_')}")
    with pytest.raises(WeightsError, match="two tensors that `rename` calls 'one'; the second one is 'module.encoder"):
        load_weights(Network(), file, rename=lambda name: "one")


def test_a_prefix_chooses_one_of_two_networks(tmp_path):
    file = tmp_path / "pair.pt"
    torch.save({**under("student.", STATE), **under("teacher.", OTHER)}, file)
    with pytest.raises(WeightsError, match="several networks that fit"):
        load_weights(Network(), file)
    model = Network()
    load_weights(model, file, rename={"teacher.": "", "student.": "unused_"})
    assert torch.equal(model.state_dict()["stem.0.weight"], OTHER["stem.0.weight"])


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def test_the_state_dict_in_a_file_is_read(tmp_path):
    file = tmp_path / "net.safetensors"
    save_file(STATE, file)
    assert same(read_state(file), STATE)
    momentum = {"state": {0: {"exp_avg": torch.ones(1)}}}
    torch.save({"model": under("module.", STATE), "optimizer": momentum, "args": OPTIONS, "epoch": 3}, file)
    assert same(read_state(str(file)), STATE)
    torch.save({"model": STATE, "model_ema": OTHER}, file)
    assert same(read_state(file), OTHER)
    assert same(read_state(file, "model"), STATE)
    torch.save({"nets": {"student": STATE, "teacher": OTHER}}, file)
    assert same(read_state(file, "nets.teacher"), OTHER)
    with pytest.raises(WeightsError, match=r"several state dicts of the same size: 'nets.student', 'nets.teacher'"):
        read_state(file)
    with pytest.raises(WeightsError, match=r"no state dict at 'teacher'. It has some at: 'nets.student', 'nets.teach"):
        read_state(file, "teacher")
    with pytest.raises(WeightsError, match="cannot be read"):
        read_state(tmp_path / "missing.pt")
