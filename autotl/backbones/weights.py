"""Pretrained weights: where they lie and where they can be had; `checkpoint` reads them.

The order is: the file the user names, the shipped file, the local caches of the hub and of torch,
the hub itself. Nothing here ever puts random weights in the place of pretrained ones.
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

from autotl.contracts import WeightsSource
from autotl.errors import WeightsError, one_line

if TYPE_CHECKING:
    from torch import nn

    from autotl.backbones.checkpoint import Convert

REACH_SECONDS = 5.0
"""How long a server may take to answer before what nobody named is left out; mirrors and proxies take a second or two.
"""
ASK_SECONDS = 10
"""How long one that is not the hub may take to say how large a file is; of the hub its own client knows."""
_silent: set[str] = set()
"""Servers that did not answer in that time: each is waited for once."""


@dataclass(frozen=True)
class Given:
    """A file of weights that the user names for a backbone."""

    path: Path
    upto: str | None = None
    """The last stage that there are weights for, None: all. A network that was trained has none beyond its cut."""
    terms: str = ""
    """The terms of its weights, where the file came with some."""


@dataclass(frozen=True)
class WeightsFile:
    """A weights file on this machine, its hash, and where it was found."""

    path: Path
    sha256: str
    origin: Literal["named", "shipped", "cache", "downloaded"]
    stamp: tuple[int, ...]
    """What changes with the file, and can be asked for at any time."""

    @classmethod
    def at(cls, path: Path, origin: Literal["named", "shipped", "cache", "downloaded"]) -> Self:
        stamp = _stamp(path)
        return cls(path, file_hash(path), origin, stamp)

    @property
    def changed(self) -> bool:
        """Whether it is not the file any more that was hashed."""
        return not self.path.is_file() or _stamp(self.path) != self.stamp


def find(name: str, source: WeightsSource, named: Path | None = None) -> WeightsFile | None:
    """The weights of backbone `name` if they lie on this machine, None if they do not.

    Raises: WeightsError when a file is there but missing what it should be: not found where the user
    said, or with another hash than `source` states.
    """
    if named is not None:
        if not named.is_file():
            raise WeightsError(f"No weights for '{name}' at {named}: there is no such file.")
        return WeightsFile.at(named, "named")
    path = source.file or _cached(source)
    if path is None:
        return None
    if not path.is_file():
        raise WeightsError(
            f"The weights of '{name}' should have come with its plugin, at {path}, and are not there: "
            "install it again, or tell its author."
        )
    return _checked(name, source, WeightsFile.at(path, "shipped" if source.file else "cache"))


def fetch(name: str, source: WeightsSource) -> WeightsFile:
    """Download the weights of backbone `name` into the cache of the hub or of torch.

    Raises: WeightsError when the server does not answer, as long as its client waits, or says no.
    """
    try:
        _ask(source)  # once: told to download, the hub's client asks a silent server for a minute
    except Exception as error:
        raise WeightsError(
            f"The weights of '{name}' are not on this machine and {server(source)} is out of reach or refuses: "
            f"{one_line(error, 200).rstrip('.')}. On a machine with network run: autotl weights fetch {name}   "
            f"then copy the file that it prints and say --weights {name}=FILE"
        ) from error
    try:
        if source.repo:
            from huggingface_hub import hf_hub_download

            path = Path(hf_hub_download(source.repo, source.filename or "model.safetensors"))
        else:
            import torch

            path = _torch_cache(source)
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(str(source.url), str(path), hash_prefix=source.sha256, progress=False)
    except Exception as error:
        raise WeightsError(f"The weights of '{name}' could not be downloaded: {one_line(error, 300)}") from error
    return _checked(name, source, WeightsFile.at(path, "downloaded"))


def download_bytes(source: WeightsSource) -> int | None:
    """How much `fetch` would download, None when the server does not say."""
    try:
        return _ask(source)
    except Exception:
        return None


def reachable(source: WeightsSource) -> bool:
    """Whether the server that has these weights would give them; known within `REACH_SECONDS`."""
    if server(source) in _silent:
        return False
    answers: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def ask() -> None:
        try:
            _ask(source)
        except Exception:
            answers.put(False)
        else:
            answers.put(True)

    # Looking up a name heeds no timeout, so the wait is bounded from outside.
    threading.Thread(target=ask, daemon=True).start()
    try:
        return answers.get(timeout=REACH_SECONDS)
    except queue.Empty:
        _silent.add(server(source))
        return False


def _ask(source: WeightsSource) -> int | None:
    """How many bytes a file of weights has, None where its server does not say.

    It is asked by the client that would download it: that one knows of mirrors, proxies and being offline.

    Raises: whatever that client raises where the server is silent, and the hub's where it refuses.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, is_offline_mode

    if source.repo:
        return get_hf_file_metadata(hf_hub_url(source.repo, source.filename or "model.safetensors")).size
    if is_offline_mode():
        raise WeightsError("HF_HUB_OFFLINE is set.")
    request = urllib.request.Request(str(source.url), method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=ASK_SECONDS) as answer:
            length = answer.headers["Content-Length"]
            return int(length) if length else None
    except urllib.error.HTTPError:  # it is there, and may give what it does not tell of
        return None


def load_weights(
    model: "nn.Module", file: Path, *, ignore: Sequence[str] = (), convert: "Convert | None" = None
) -> None:
    """Fill `model` from a file of weights: safetensors, a state dict, or a checkpoint of a training that holds one.

    Names may have something in common before them, such as `module.`, and stand in a table of any name; where a
    checkpoint has averaged weights beside the others (`model_ema`), these are taken. Half-precision values are
    converted to the model's type. Entries whose names begin with one of `ignore` are passed over. `convert` makes the
    network's own names and shapes of those under which its weights were published.

    A tensor that the file does not have, or has in another shape, loses its values: it is moved to torch's device
    `meta`. Among what autotl throws away, the classifier, that does no harm; a stage that lacks one is refused. So a
    random value never takes the place of a pretrained one: whoever computes with such a tensor gets an error.

    Raises: WeightsError for what cannot be read, and where nothing in it belongs to this network.
    """
    from autotl.backbones.checkpoint import fill  # which needs torch, and this module is imported by plugins

    fill(model, file, ignore, convert)


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

        path = try_to_load_from_cache(source.repo, source.filename or "model.safetensors")
        return Path(path) if isinstance(path, str) else None
    path = _torch_cache(source)
    return path if path.is_file() else None


def _torch_cache(source: WeightsSource) -> Path:
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints" / PurePosixPath(str(source.url)).name


def server(source: WeightsSource) -> str:
    """Scheme and host of where weights are downloaded from."""
    if source.repo:
        from huggingface_hub.constants import ENDPOINT

        return ENDPOINT
    url = urlparse(str(source.url))
    return f"{url.scheme}://{url.netloc}"
