"""Weights that plugins provide: asked after the caches and before the network, checked, converted once."""

import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from safetensors.torch import load_file, save_file

from autotl import Input, ModelCard, ProvidedWeights, WeightsSource, hookimpl, load_weights
from autotl.backbones.catalogue import Catalogue
from autotl.backbones.weights import Given, file_hash
from autotl.errors import PluginError, WeightsError
from autotl.host import Host
from autotl.registry import Owner
from autotl.testing.lab import TinyFamily, TinyNetwork

NAME = "far:net"
WHO = r"Provider of weights 'mine' of plugin 'mine' \(autotl-mine 1.0, entry point autotl_mine\)"


class Far(TinyFamily):
    """Tiny networks whose weights are on a server that is out of reach."""

    def card(self, name):
        if name not in self.more:
            raise KeyError(name)
        preparation = Input(size=32, resize=32, interpolation="bilinear", mean=(0.5,) * 3, std=(0.25,) * 3)
        source = WeightsSource(url=f"https://unreachable.invalid/{name}.pth")
        return ModelCard(input=preparation, weights=source, source="stripes", license="CC0")

    def build(self, name, weights):
        network = TinyNetwork(self.more[name])
        if weights is not None:
            load_weights(network, weights)
        return network


class FarPlugin:
    @hookimpl
    def register_backbones(self, register):
        register("far", Far, summary="For a test")


class Plugin:
    """Provides `source`: what is returned, or a function that is called with the backbone's name."""

    def __init__(self, source, names=(NAME,)):
        self.asked = []
        self._names, self._source = names, source

    @hookimpl
    def register_weights(self, register):
        register("mine", lambda: self, summary="For a test")

    def names(self):
        return self._names

    def source(self, name):
        self.asked.append(name)
        return self._source(name) if callable(self._source) else self._source


@pytest.fixture
def published(tmp_path):
    """A state dict under other names, as torch saves it."""
    torch.manual_seed(3)
    state = {f"net.{name}_": value for name, value in TinyNetwork().state_dict().items()}
    torch.save(state, tmp_path / "published.pth")
    return tmp_path / "published.pth"


@pytest.fixture
def plain(tmp_path):
    """A file that the family reads as it is."""
    torch.manual_seed(3)
    save_file(TinyNetwork().state_dict(), tmp_path / "plain.safetensors")
    return tmp_path / "plain.safetensors"


def converted(state):
    return {name.removeprefix("net.").removesuffix("_"): value for name, value in state.items()}


class Machine:
    """A cache, and what is reported; each catalogue is that of another process."""

    def __init__(self, folder):
        self.cache, self.skipped, self.notes = folder, [], []

    def catalogue(self, *plugins, version="1.0", named=None, strict=False):
        host = Host()
        for entry in list(host.weights):  # of installed plugins
            host.weights.drop(entry.owner)
        host.add(FarPlugin(), "far")
        for at, plugin in enumerate(plugins):
            name = "mine" if at == 0 else f"mine{at}"
            host._add(plugin, Owner(name, f"autotl-{name}", version, f"autotl_{name}"))
        assert not host.problems
        skip = {} if strict else {"skip": self.skipped.append}
        return Catalogue(host, self.cache, named, self.notes.append, **skip)


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path / "cache")


def state_of(catalogue):
    return catalogue.build(catalogue.network(NAME, seed=0)).state_dict()


def test_a_published_file_is_converted_once_into_the_cache(machine, published):
    plugin = Plugin(ProvidedWeights(file=published, sha256=file_hash(published), convert=converted, license="MIT"))
    one = machine.catalogue(plugin)
    assert one.file(NAME) is None and one.available(NAME) and one.reachable(NAME)
    expected = converted(torch.load(published))
    assert all(torch.equal(value, expected[name]) for name, value in state_of(one).items())
    file = one.file(NAME)
    assert file.path.is_relative_to(machine.cache) and load_file(file.path).keys() == expected.keys()
    assert (file.origin, str(file.provenance)) == ("cache", "autotl-mine 1.0")
    assert (file.provenance.published, file.provenance.license) == (file_hash(published), "MIT")
    assert list(file.path.parent.glob("tmp*")) == []

    published.unlink()
    plugin.asked.clear()
    for again in (machine.catalogue(plugin), machine.catalogue()):  # also without the plugin
        assert again.weights(NAME, seed=0) == f"sha256:{file.sha256}"
    assert not plugin.asked and not machine.skipped


def test_a_file_that_needs_no_conversion_keeps_its_bytes_and_its_hash(machine, plain):
    catalogue = machine.catalogue(Plugin(ProvidedWeights(file=plain)))
    assert catalogue.weights(NAME, seed=0) == f"sha256:{file_hash(plain)}"
    assert catalogue.file(NAME).path.read_bytes() == plain.read_bytes()
    assert catalogue.file(NAME).path.is_relative_to(machine.cache)


def test_a_file_that_fetch_wrote(machine, plain):
    plugin = Plugin(ProvidedWeights(fetch=lambda file: shutil.copy(plain, file), sha256=file_hash(plain)))
    catalogue = machine.catalogue(plugin)
    assert not catalogue.available(NAME) and catalogue.reachable(NAME)
    assert catalogue.download_bytes(NAME) is None
    catalogue.obtain(NAME)
    assert catalogue.file(NAME).sha256 == file_hash(plain)


def test_two_processes_fetch_once(machine, plain):
    fetched, inside = [], threading.Barrier(2, timeout=60)

    def fetch(file):
        fetched.append(file)
        time.sleep(0.5)
        shutil.copy(plain, file)

    def obtain():
        catalogue = machine.catalogue(Plugin(ProvidedWeights(fetch=fetch)))
        inside.wait()
        catalogue.obtain(NAME)
        return catalogue.file(NAME).sha256

    with ThreadPoolExecutor(2) as pool:
        hashes = [task.result() for task in [pool.submit(obtain), pool.submit(obtain)]]
    assert hashes == [file_hash(plain)] * 2 and len(fetched) == 1


@contextmanager
def server(folder):
    """The address of a server of the files in a folder."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    handler.log_message = lambda *words: None
    made = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{made.server_port}"
    finally:
        made.shutdown()
        made.server_close()


@pytest.fixture
def no_proxy(monkeypatch):
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


def test_a_server_of_ones_own_is_used_although_the_hub_is_off(machine, plain, no_proxy):
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    with server(plain.parent) as address:
        catalogue = machine.catalogue(Plugin(ProvidedWeights(url=f"{address}/plain.safetensors")))
        assert not catalogue.available(NAME) and catalogue.reachable(NAME)
        assert catalogue.download_bytes(NAME) == plain.stat().st_size
        catalogue.obtain(NAME)
        assert catalogue.file(NAME).sha256 == file_hash(plain)
        lost = machine.catalogue(Plugin(ProvidedWeights(url=f"{address}/gone.pth"), names=["far:*"]))
        with pytest.raises(WeightsError, match="weights fetch far:deep"):
            lost.obtain("far:deep")
        assert f"{address}/gone.pth: HTTPError: HTTP Error 404" in str(machine.skipped.pop())
    away = machine.catalogue(Plugin(ProvidedWeights(url=f"{address}/plain.safetensors"), names=["far:deep"]))
    assert not away.reachable("far:deep")


def test_what_is_here_already_comes_first(machine, plain, published, tmp_path, monkeypatch):
    plugin = Plugin(ProvidedWeights(file=published, convert=converted))
    other = tmp_path / "other.safetensors"
    save_file({name: value + 1 for name, value in load_file(plain).items()}, other)
    named = machine.catalogue(plugin, named={NAME: Given(other)})
    assert named.weights(NAME, seed=0) == f"sha256:{file_hash(other)}"
    torchs = tmp_path / "torch" / "hub" / "checkpoints" / "net.pth"
    torchs.parent.mkdir(parents=True)
    torch.save(load_file(plain), torchs)
    assert machine.catalogue(plugin).weights(NAME, seed=0) == f"sha256:{file_hash(torchs)}"
    assert not plugin.asked
    torchs.unlink()
    provided = machine.catalogue(plugin).weights(NAME, seed=0)
    torch.save(load_file(plain), torchs)  # what a plugin provided stays what it was
    assert machine.catalogue(plugin).weights(NAME, seed=0) == provided


def test_another_version_of_the_plugin_converts_again_and_only_if_it_converts(machine, plain, published):
    def shifted(state):
        return {name: value + 1 for name, value in converted(state).items()}

    first = machine.catalogue(Plugin(ProvidedWeights(file=published, convert=converted))).weights(NAME, seed=0)
    fixed = Plugin(ProvidedWeights(file=published, convert=shifted))
    assert machine.catalogue(fixed).weights(NAME, seed=0) == first
    assert machine.catalogue(fixed, version="1.1").weights(NAME, seed=0) != first
    shutil.rmtree(machine.cache / "weights")
    machine.catalogue(Plugin(ProvidedWeights(file=plain))).obtain(NAME)
    later = Plugin(ProvidedWeights(file=plain))
    machine.catalogue(later, version="1.1").obtain(NAME)
    assert not later.asked


def test_a_damaged_file_in_the_cache_is_provided_again(machine, plain):
    machine.catalogue(Plugin(ProvidedWeights(file=plain))).obtain(NAME)
    file = machine.catalogue().file(NAME).path
    file.write_bytes(b"damaged" + file.read_bytes()[7:])
    assert machine.catalogue().file(NAME) is None
    assert machine.notes.pop() == f"Warning: {file} is damaged and is not used."
    again = machine.catalogue(Plugin(ProvidedWeights(file=plain)))
    assert again.weights(NAME, seed=0) == f"sha256:{file_hash(plain)}"
    (file.parent / "provenance.json").write_text("{}")
    assert machine.catalogue().file(NAME) is None


def fetches_nothing(file):
    pass


def fails(*words):
    raise ConnectionError("no route to the bucket")


WRONG = {
    "a damaged file": (
        lambda file: ProvidedWeights(file=file, sha256="0" * 64),
        r"plain.safetensors is damaged or not the right file: SHA-256 \w{12}…, expected 0",
    ),
    "no file": (lambda file: ProvidedWeights(file=file.with_name("gone.pth")), "gone.pth does not exist"),
    "no weights": (
        lambda file: ProvidedWeights(file=file.with_name("text.pth"), convert=converted),
        "text.pth cannot be read as safetensors or as a checkpoint",
    ),
    "another network": (
        lambda file: ProvidedWeights(file=file.with_name("other.pth")),
        "other.pth does not have the weights of a TinyNetwork",
    ),
    "half a network": (
        lambda file: ProvidedWeights(file=file, convert=lambda state: dict([*state.items()][:6])),
        r"plain.safetensors does not fit a TinyNetwork.*missing: ",
    ),
    "a conversion that fails": (lambda file: ProvidedWeights(file=file, convert=lambda state: state["x"]), "KeyError"),
    "no tensors": (lambda file: ProvidedWeights(file=file, convert=lambda state: {"a": 1}), "AttributeError"),
    "no weights in a bucket": (
        lambda file: ProvidedWeights(fetch=lambda path: path.write_text("weights"), convert=converted),
        "the file that its fetch wrote cannot be read as safetensors or as a checkpoint",
    ),
    "nothing fetched": (lambda file: ProvidedWeights(fetch=fetches_nothing), "its fetch wrote no file"),
    "a bucket that is away": (lambda file: ProvidedWeights(fetch=fails), "ConnectionError: no route to the bucket"),
    "no place": (lambda file: ProvidedWeights(), "ValueError: its source must have one of file, repo, url and fetch"),
    "two places": (lambda file: ProvidedWeights(file=file, url="https://x.invalid"), "must have one of file, repo"),
    "a text": (lambda file: ProvidedWeights(file=str(file)), "TypeError: its file must be a Path, not '/"),
    "another class": (lambda file: WeightsSource(file=file), "its source returned WeightsSource, not ProvidedWeights"),
    "an error": (lambda file: fails, "ConnectionError: no route"),
    "a name that it lists and does not know": (lambda file: {}.__getitem__, "KeyError: 'far:net'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_fails_is_named_and_the_next_one_is_asked(machine, plain, case):
    make, says = WRONG[case]
    (plain.parent / "text.pth").write_text("weights")
    torch.save({"conv.weight": torch.zeros(3)}, plain.parent / "other.pth")

    class Second(Plugin):
        @hookimpl
        def register_weights(self, register):
            register("second", lambda: self, summary="For a test")

    broken, second = Plugin(make(plain)), Second(ProvidedWeights(file=plain))
    catalogue = machine.catalogue(broken, second)
    assert catalogue.weights(NAME, seed=0) == f"sha256:{file_hash(plain)}"
    (problem,) = machine.skipped
    assert isinstance(problem, PluginError)
    with pytest.raises(PluginError, match=f"{WHO} cannot provide 'far:net': .*{says}"):
        raise problem
    assert "\n" not in str(problem) and str(machine.cache) not in str(problem)
    assert catalogue.file(NAME).provenance.provider == "second"

    shutil.rmtree(machine.cache / "weights")
    with pytest.raises(WeightsError, match="are not on this machine, and https://unreachable.invalid is out of reach"):
        machine.catalogue(Plugin(make(plain))).obtain(NAME)
    with pytest.raises(PluginError, match=WHO):
        machine.catalogue(Plugin(make(plain)), strict=True).obtain(NAME)


@pytest.mark.parametrize("names", [fails, lambda: 5, lambda: [5]])
def test_a_provider_that_cannot_be_listed_is_skipped_once(machine, names):
    plugin = Plugin(None)
    plugin.names = names
    catalogue = machine.catalogue(plugin)
    for _ in range(2):
        assert not catalogue.available(NAME) and catalogue.provided.names() == []
    (problem,) = machine.skipped
    with pytest.raises(PluginError, match=f"{WHO} cannot be listed: "):
        raise problem


def test_globs_are_offers_unless_the_plugin_does_not_know_the_name(machine, plain):
    def source(name):
        return {NAME: ProvidedWeights(file=plain)}[name]

    catalogue = machine.catalogue(Plugin(source, names=["far:*"]))
    assert catalogue.available(NAME) and not catalogue.available("far:deep")
    assert catalogue.provided.names() == [] and not machine.skipped


def test_random_weights_are_nobodys_to_provide(machine, plain):
    plugin = Plugin(ProvidedWeights(file=plain), names=["*"])
    catalogue = machine.catalogue(plugin)
    for name in (f"{NAME}@random", "reference:pixels"):
        catalogue.obtain(name)
        assert catalogue.file(name) is None
    assert not plugin.asked


def test_no_code_in_a_file_is_run(machine, tmp_path, capsys):
    torch.save({"state_dict": TinyNetwork().state_dict(), "args": Evil()}, tmp_path / "evil.pth")
    machine.catalogue(Plugin(ProvidedWeights(file=tmp_path / "evil.pth", convert=dict))).obtain(NAME)
    assert "ran" not in capsys.readouterr().out
    torch.load(tmp_path / "evil.pth", weights_only=False)
    assert "ran" in capsys.readouterr().out


class Evil:
    def __reduce__(self):
        return print, ("ran",)
