import os
import pickle
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

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


class Mirror(BaseHTTPRequestHandler):
    """A stand-in for a mirror of the hub, or for a proxy before it: it answers every question, some time later."""

    delay = 0.0
    content = b"weights"

    def do_HEAD(self):
        time.sleep(self.delay)
        self.send_response(200)
        for name, value in (("ETag", '"1"'), ("X-Repo-Commit", "0" * 40), ("Content-Length", str(len(self.content)))):
            self.send_header(name, value)
        self.end_headers()

    def do_GET(self):
        self.do_HEAD()
        self.wfile.write(self.content)

    def log_message(self, *args):
        pass


@pytest.fixture
def mirror(monkeypatch):
    """The address of a server, while the hub's client believes that it may use the network."""
    from huggingface_hub import close_session, constants

    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(weights, "_silent", set())
    close_session()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Mirror)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    close_session()


HUB = WeightsSource(repo="someone/net")


def at(monkeypatch, endpoint):
    from huggingface_hub import constants, file_download

    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    for module in (constants, file_download):
        if hasattr(module, "HUGGINGFACE_CO_URL_TEMPLATE"):
            monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def test_a_mirror_that_answers_slowly_is_within_reach(mirror, monkeypatch):
    at(monkeypatch, mirror)
    monkeypatch.setattr(Mirror, "delay", 1.1)
    assert weights.reachable(HUB)


def test_a_hub_behind_a_proxy_for_everything_is_within_reach_and_fetched_from(mirror, monkeypatch, tmp_path):
    from huggingface_hub import constants

    at(monkeypatch, "http://hub.invalid")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert not weights.reachable(HUB)
    from huggingface_hub import close_session

    close_session()  # what it knows of proxies it has read by then
    monkeypatch.setenv("ALL_PROXY", mirror)
    assert weights.reachable(HUB)
    assert weights.download_bytes(HUB) == len(Mirror.content)
    found = weights.fetch("timm:net", HUB)
    assert (found.path.read_bytes(), found.origin) == (Mirror.content, "downloaded")


def test_a_silent_server_is_waited_for_once_and_not_for_long_but_asked_again_where_it_is_named(mirror, monkeypatch):
    at(monkeypatch, mirror)
    monkeypatch.setattr(weights, "REACH_SECONDS", 0.2)
    monkeypatch.setattr(Mirror, "delay", 0.6)
    began = time.perf_counter()
    assert not weights.reachable(HUB)
    assert not weights.reachable(WeightsSource(repo="someone/other"))
    assert time.perf_counter() - began < 0.4
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repo, filename: __file__)
    assert weights.fetch("timm:net", HUB).origin == "downloaded"


def test_offline_is_said_with_what_to_do():
    began = time.perf_counter()
    for source in (HUB, WeightsSource(url="https://unreachable.invalid/net.pth")):
        assert not weights.reachable(source)
        with pytest.raises(WeightsError, match=r"HF_HUB_OFFLINE.*weights fetch timm:net.*--weights timm:net=FILE"):
            weights.fetch("timm:net", source)
    assert time.perf_counter() - began < 1
