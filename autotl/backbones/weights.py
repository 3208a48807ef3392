"""Finds and downloads pretrained weights; `checkpoint` reads them.

The order is: the file that the user names, the shipped file, the caches of autotl, the hub and torch, plugins that
provide weights (`provided`), the download server. Nothing here ever replaces pretrained weights by random ones.
"""

import hashlib
import queue
import threading
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal, Self
from urllib.parse import urlparse

from autotl.contracts import ProvidedWeights, WeightsSource
from autotl.errors import WeightsError, missing, one_line
from autotl.plan import Record

if TYPE_CHECKING:
    from torch import Tensor, nn

    from autotl.backbones.checkpoint import Convert, Rename

FILENAME = "model.safetensors"
"""The weights file of a repository on the hub, unless its source names another one."""
REACH_SECONDS = 5.0
"""How long to wait for a server before its backbones, unless named by the user, are skipped. Mirrors and proxies take a
second or two."""
ASK_SECONDS = 10
"""How long to wait for a server other than the hub to report a file's size; the hub's client has its own timeout."""
_silent: set[str] = set()
"""Servers that did not answer within `REACH_SECONDS`: each is waited for only once."""


@dataclass(frozen=True)
class Given:
    """A weights file that the user gave for a backbone."""

    path: Path
    upto: str | None = None
    """The last stage with weights, None for all. A bundle has none after its cut."""
    terms: str = ""
    """The terms of its weights, if the file came with some."""


class Provenance(Record):
    """Where a file in autotl's cache came from."""

    file: str
    sha256: str
    published: str
    """The SHA-256 of the file that its provider has: another one, if it was converted."""
    converted: bool
    provider: str
    distribution: str
    version: str
    license: str
    """Terms that the provider states."""

    @property
    def owner(self) -> dict[str, str]:
        return {self.distribution: self.version}

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}"


@dataclass(frozen=True)
class WeightsFile:
    """A weights file on this machine, its hash, and where it was found."""

    path: Path
    sha256: str
    origin: Literal["named", "shipped", "cache", "downloaded"]
    stamp: tuple[int, ...]
    """Inode, size and modification time: they show cheaply whether the file has changed."""
    provenance: Provenance | None = None
    """Of a file that a plugin provided."""

    @classmethod
    def at(
        cls,
        path: Path,
        origin: Literal["named", "shipped", "cache", "downloaded"],
        provenance: Provenance | None = None,
    ) -> Self:
        stamp = _stamp(path)
        return cls(path, file_hash(path), origin, stamp, provenance)

    @property
    def found(self) -> str:
        """How it came to this machine."""
        return f"{self.origin}, from {self.provenance}" if self.provenance else self.origin

    @property
    def changed(self) -> bool:
        """Whether the file has changed since it was hashed."""
        return not self.path.is_file() or _stamp(self.path) != self.stamp


def find(name: str, source: WeightsSource, named: Path | None = None) -> WeightsFile | None:
    """The weights of backbone `name` on this machine, None if there are none.

    Raises: WeightsError if the file that the user or the plugin names does not exist, or if it has another hash than
    `source` states.
    """
    if named is not None:
        if not named.is_file():
            why = f"{str(named)!r} is a folder." if named.exists() else missing(named)
            raise WeightsError(f"No weights for '{name}': {why}")
        return WeightsFile.at(named, "named")
    path = source.file or _cached(source)
    if path is None:
        return None
    if not path.is_file():
        raise WeightsError(
            f"The weights of '{name}' should have come with its plugin, but {path} does not exist: "
            "reinstall the plugin, or report this to its author."
        )
    return _checked(name, source, WeightsFile.at(path, "shipped" if source.file else "cache"))


def fetch(name: str, source: WeightsSource) -> WeightsFile:
    """Download the weights of backbone `name` into the cache of the hub or of torch.

    Raises: WeightsError if the server does not answer in time, or refuses.
    """
    try:
        ask(source)  # first, because the hub's client retries a download from a silent server for a minute
    except Exception as error:
        raise WeightsError(
            f"The weights of '{name}' are not on this machine, and {server(source)} is out of reach or refuses: "
            f"{one_line(error, 200).rstrip('.')}. On a machine with internet access run: autotl weights fetch {name}   "
            f"then copy the file that it prints to this machine and use --weights {name}=FILE"
        ) from error
    try:
        if source.repo:
            path = from_hub(source)
        else:
            path = _torch_cache(source)
            path.parent.mkdir(parents=True, exist_ok=True)
            download(source, path)
    except Exception as error:
        raise WeightsError(f"The weights of '{name}' could not be downloaded: {one_line(error, 300)}") from error
    return _checked(name, source, WeightsFile.at(path, "downloaded"))


def from_hub(source: WeightsSource) -> Path:
    """The file in the hub's cache, downloaded if necessary."""
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(str(source.repo), source.filename or FILENAME))


def download(source: WeightsSource, file: Path) -> None:
    """Download from the `url` of a source; a file that is incomplete or has another hash is not kept."""
    import torch

    torch.hub.download_url_to_file(str(source.url), str(file), hash_prefix=source.sha256, progress=False)


def download_bytes(source: WeightsSource) -> int | None:
    """Bytes that `fetch` would download, None if the server does not report it."""
    try:
        return ask(source)
    except Exception:
        return None


def reachable(source: WeightsSource) -> bool:
    """Whether these weights can be downloaded; answers within `REACH_SECONDS`."""
    if server(source) in _silent:
        return False
    answers: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def answer() -> None:
        try:
            ask(source)
        except Exception:
            answers.put(False)
        else:
            answers.put(True)

    # A DNS lookup ignores timeouts, so the wait is bounded from outside.
    threading.Thread(target=answer, daemon=True).start()
    try:
        return answers.get(timeout=REACH_SECONDS)
    except queue.Empty:
        _silent.add(server(source))
        return False


def ask(source: WeightsSource) -> int | None:
    """Size of a weights file in bytes, None if the server does not report it.

    Uses the client that would download it, because that one respects mirrors, proxies and offline mode.

    Raises: what that client raises if the server does not answer, or if the hub refuses.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, is_offline_mode

    if source.repo:
        return get_hf_file_metadata(hf_hub_url(source.repo, source.filename or FILENAME)).size
    if is_offline_mode() and not isinstance(source, ProvidedWeights):  # a server of a plugin may be internal
        raise WeightsError("HF_HUB_OFFLINE is set.")
    request = urllib.request.Request(str(source.url), method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=ASK_SECONDS) as answer:
            length = answer.headers["Content-Length"]
            return int(length) if length else None
    except urllib.error.HTTPError:  # the server answers; it may allow the download although it refuses HEAD
        return None


def load_weights(
    model: "nn.Module",
    file: Path,
    *,
    ignore: Sequence[str] = (),
    convert: "Convert | None" = None,
    rename: "Rename | None" = None,
) -> None:
    """Load weights into `model` from a file: safetensors, a state dict, or a training checkpoint that contains one.

    Names may have a common prefix, such as `module.`, and be in a nested dict. Averaged weights (`model_ema`) are
    preferred to others. Half-precision values are converted to the model's type. Names that start with one of `ignore`
    are skipped. `convert` maps published names and shapes to the network's own.

    `rename` replaces prefixes of the file's names before anything else, one after another: `{"model.student.": ""}`
    strips one, `{"encoder.": "stages."}` replaces one. It may also be a function from a name to the new one.

    A tensor that the file lacks, or has in another shape, loses its values: it is moved to torch's device `meta`, so
    that computing with it is an error, and a random value never replaces a pretrained one. In the classifier, which
    autotl discards, this has no effect; a stage with such a tensor is refused.

    Raises: WeightsError if the file cannot be read, has nothing of this network, or if `rename` gives two tensors the
    same name.
    """
    from autotl.backbones.checkpoint import fill  # it imports torch; plugins import this module when they load

    fill(model, file, ignore, convert, rename)


def read_state(file: str | Path, key: str | None = None) -> "dict[str, Tensor]":
    """The state dict in a file, as tensors by name: safetensors, a state dict, or a training checkpoint with some.

    No code in the file is run. Of several state dicts it is the one with the most tensors, and of averaged weights
    (`model_ema`) and others the averaged ones; `key` names another one, by its keys with dots, such as
    `"teacher.backbone"`. What torch puts before the names of wrapped networks, such as `module.`, is removed.

    Raises: WeightsError if the file cannot be read or has no such state dict, or if several of them are as large.
    """
    from autotl.backbones.checkpoint import state_in

    return state_in(Path(file), key)


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _stamp(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _checked(name: str, source: WeightsSource, found: WeightsFile) -> WeightsFile:
    if source.sha256 and not found.sha256.startswith(source.sha256):
        raise WeightsError(
            f"The weights of '{name}' at {found.path} are damaged or not the right ones: "
            f"SHA-256 {found.sha256[:12]}…, expected {source.sha256[:12]}…. Delete the file and get it again."
        )
    return found


def _cached(source: WeightsSource) -> Path | None:
    if source.repo:
        from huggingface_hub import try_to_load_from_cache

        path = try_to_load_from_cache(source.repo, source.filename or FILENAME)
        return Path(path) if isinstance(path, str) else None
    path = _torch_cache(source)
    return path if path.is_file() else None


def _torch_cache(source: WeightsSource) -> Path:
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints" / PurePosixPath(str(source.url)).name


def server(source: WeightsSource) -> str:
    """Scheme and host of the server that weights are downloaded from."""
    if source.repo:
        from huggingface_hub.constants import ENDPOINT

        return ENDPOINT
    url = urlparse(str(source.url))
    return f"{url.scheme}://{url.netloc}"
