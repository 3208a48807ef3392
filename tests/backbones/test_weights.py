import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from safetensors.torch import save_file

from autotl.backbones import weights
from autotl.contracts import WeightsSource
from autotl.errors import WeightsError


@pytest.fixture
def state():
    return {"0.weight": torch.rand(4, 3, 3, 3)}


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


def test_a_file_that_was_replaced_is_noticed(tmp_path, state):
    file = tmp_path / "weights.safetensors"
    save_file(state, file)
    found = weights.find("autotl:net", WeightsSource(), named=file)
    assert not found.changed
    save_file({"0.weight": state["0.weight"] + 1}, file)
    assert found.changed


class Mirror(BaseHTTPRequestHandler):
    """A mirror of the hub, or a proxy before it, that answers every request after a delay."""

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

    close_session()  # it has read the settings of proxies already
    monkeypatch.setenv("ALL_PROXY", mirror)
    assert weights.reachable(HUB)
    assert weights.download_bytes(HUB) == len(Mirror.content)
    found = weights.fetch("timm:net", HUB)
    assert (found.path.read_bytes(), found.origin) == (Mirror.content, "downloaded")


def test_a_silent_server_is_tried_once_and_briefly_but_again_if_its_backbone_is_named(mirror, monkeypatch):
    at(monkeypatch, mirror)
    monkeypatch.setattr(weights, "REACH_SECONDS", 0.2)
    monkeypatch.setattr(Mirror, "delay", 0.6)
    began = time.perf_counter()
    assert not weights.reachable(HUB)
    assert not weights.reachable(WeightsSource(repo="someone/other"))
    assert time.perf_counter() - began < 0.4
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repo, filename: __file__)
    assert weights.fetch("timm:net", HUB).origin == "downloaded"


def test_the_offline_error_says_what_to_do():
    began = time.perf_counter()
    for source in (HUB, WeightsSource(url="https://unreachable.invalid/net.pth")):
        assert not weights.reachable(source)
        with pytest.raises(WeightsError, match=r"HF_HUB_OFFLINE.*weights fetch timm:net.*--weights timm:net=FILE"):
            weights.fetch("timm:net", source)
    assert time.perf_counter() - began < 1
