import pickle
import time

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from autotl.backbones import weights
from autotl.contracts import WeightsSource
from autotl.errors import WeightsError


def network():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))


@pytest.fixture
def state():
    return {name: torch.rand_like(value.float()) for name, value in network().state_dict().items()}


@pytest.mark.parametrize("form", ["safetensors", "pth", "state_dict in pth", "float16"])
def test_weights_are_read_in_every_form(tmp_path, state, form):
    file = tmp_path / ("weights.pth" if "pth" in form else "weights.safetensors")
    if form == "safetensors":
        save_file(state, file)
    elif form == "float16":
        save_file({name: value.half() for name, value in state.items()}, file)
    else:
        torch.save({"state_dict": state} if "in" in form else state, file)
    model = network()
    weights.load_weights(model, file)
    for name in ("0.weight", "1.running_mean", "2.bias"):
        torch.testing.assert_close(model.state_dict()[name], state[name], atol=1e-3 if form == "float16" else 0, rtol=0)
        assert model.state_dict()[name].dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda state: state.pop("0.bias"), "lacks 0.bias"),
        (lambda state: state.update(extra=torch.zeros(1)), "unknown extra"),
        (lambda state: state.update({"2.weight": torch.zeros(5, 4)}), r"2.weight \(5, 4\) instead of \(2, 4\)"),
    ],
)
def test_weights_that_do_not_fit_are_refused_and_nothing_is_loaded(tmp_path, state, change, says):
    change(state)
    save_file(state, tmp_path / "weights.safetensors")
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(WeightsError, match=says):
        weights.load_weights(model, tmp_path / "weights.safetensors")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_side_exits_may_be_passed_over(tmp_path, state):
    state["AuxLogits.conv.weight"] = torch.zeros(1)
    save_file(state, tmp_path / "weights.safetensors")
    weights.load_weights(network(), tmp_path / "weights.safetensors", ignore=("AuxLogits.",))


class Trap:
    def __reduce__(self):
        return pytest.fail, ("code in a weights file was run",)


def test_code_in_a_weights_file_is_not_run(tmp_path):
    file = tmp_path / "weights.pth"
    file.write_bytes(pickle.dumps({"0.weight": Trap()}, protocol=2))
    with pytest.raises(WeightsError, match="cannot be read"):
        weights.read_state(file)
    torch.save({"model": nn.Linear(2, 2).state_dict(), "epoch": 3}, file)
    with pytest.raises(WeightsError, match="no state dict"):
        weights.read_state(file)


def test_a_file_with_another_hash_is_refused(tmp_path, state):
    file = tmp_path / "weights.safetensors"
    save_file(state, file)
    source = WeightsSource(file=file, sha256=weights.file_hash(file))
    found = weights.find("autotl:net", source)
    assert (found.path, found.origin) == (file, "shipped")
    damaged = bytearray(file.read_bytes())
    damaged[-1] ^= 1
    file.write_bytes(damaged)
    with pytest.raises(WeightsError, match="damaged or not the right ones"):
        weights.find("autotl:net", source)


def test_torchs_cache_is_found_and_its_hash_checked(tmp_path, state):
    cache = tmp_path / "torch" / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.save(state, cache / "net.pth")
    digest = weights.file_hash(cache / "net.pth")[:8]
    (cache / "net.pth").rename(cache / f"net-{digest}.pth")
    source = WeightsSource(url=f"https://unreachable.invalid/net-{digest}.pth", sha256=digest)
    assert weights.find("torchvision:net", source).origin == "cache"
    wrong = WeightsSource(url=source.url, sha256="00000000")
    with pytest.raises(WeightsError, match="damaged"):
        weights.find("torchvision:net", wrong)
    assert weights.find("torchvision:other", WeightsSource(url="https://unreachable.invalid/other.pth")) is None


def test_the_hubs_cache_is_found(tmp_path, state, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    revision = "0" * 40
    folder = tmp_path / "hub" / "models--someone--net"
    (folder / "snapshots" / revision).mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(revision)
    save_file(state, folder / "snapshots" / revision / "model.safetensors")
    import huggingface_hub

    path = huggingface_hub.try_to_load_from_cache("someone/net", "model.safetensors", cache_dir=str(tmp_path / "hub"))
    assert path  # the folder is what the hub's library takes for a cache
    monkeypatch.setattr(
        huggingface_hub,
        "try_to_load_from_cache",
        lambda repo, filename: path if repo == "someone/net" else None,
    )
    assert weights.find("timm:net", WeightsSource(repo="someone/net")).origin == "cache"
    assert weights.find("timm:other", WeightsSource(repo="someone/other")) is None


def test_without_network_the_answer_comes_within_a_second(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    weights.reachable.cache_clear()
    began = time.perf_counter()
    # A test address (RFC 5737) that nobody answers at; where a proxy refuses it, that is an answer too.
    weights.reachable("https://192.0.2.1")
    assert time.perf_counter() - began < 1.5
    weights.reachable.cache_clear()


def test_offline_is_said_with_what_to_do():
    weights.reachable.cache_clear()
    with pytest.raises(WeightsError, match=r"autotl weights fetch timm:net.*--weights timm:net=FILE"):
        weights.fetch("timm:net", WeightsSource(repo="someone/net"))
