"""Weights that plugins provide: checked, converted if necessary, and kept in autotl's cache."""

import fnmatch
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from urllib.error import URLError
from urllib.parse import quote, urlparse

from filelock import FileLock

from autotl.backbones import weights
from autotl.backbones.weights import Provenance, WeightsFile
from autotl.contracts import ProvidedWeights, WeightsProvider
from autotl.errors import AutotlError, PlanError, PluginError, WeightsError, one_line, reason
from autotl.files import seal, unseal
from autotl.host import Host
from autotl.registry import Entry, Owner

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Offer:
    """The weights of one backbone, as one provider has them."""

    name: str
    entry: Entry
    source: ProvidedWeights

    @property
    def owner(self) -> Owner:
        return self.entry.owner

    @property
    def reachable(self) -> bool:
        """Whether they seem to be available now; answers within `weights.REACH_SECONDS`."""
        return bool(self.source.file or self.source.fetch) or weights.reachable(self.source)

    def check(self) -> None:
        """Check that a local file is the right one.

        Raises: PluginError.
        """
        if self.source.file:
            with self._answering(self.source.file.parent):
                _hash_of(self.source.file, self.source)

    def write(self, folder: Path) -> tuple[Path, str]:
        """Write the file into a folder, as the backbone's family reads it; returned with the published one's SHA-256.

        Raises: PluginError if that fails, or if the published file is not the right one.
        """
        source = self.source
        with self._answering(folder):
            published = _published(source, folder)
            sha256 = _hash_of(published, source)
            if source.convert is not None:
                file = folder / "weights.safetensors"
                _save(source.convert(weights.read_state(published)), file)
            else:
                file = folder / f"weights{published.suffix or '.safetensors'}"
                (shutil.move if published.parent == folder else shutil.copyfile)(published, file)
        return file, sha256

    def fault(self, error: BaseException, folder: Path) -> PluginError:
        """An error about the file, or about what was made of it in a folder that will be deleted."""
        why = re.sub(rf"{re.escape(str(folder))}/[^\s:;,]+", lambda found: _place(self.source), one_line(error))
        return self.owner.fault(_what(self.entry), f"{_how(self.name)}: {why}")

    @contextmanager
    def _answering(self, folder: Path) -> Iterator[None]:
        try:
            with self.owner.answers_for(_what(self.entry), _how(self.name)):
                yield
        except WeightsError as error:
            raise self.fault(error, folder) from error


class Provided:
    """What the installed plugins provide, and what the cache has of it.

    `note` is called for a damaged file in the cache, `skip` for a plugin that fails; each once.
    """

    def __init__(
        self, host: Host, cache_dir: Path, note: Callable[[str], None], skip: Callable[[PluginError], None]
    ) -> None:
        self._host = host
        self._place = cache_dir / "weights"
        self._note, self._skip = note, skip
        self._said: set[str] = set()

    def names(self) -> list[str]:
        """The backbones that providers name in full."""
        found: dict[str, None] = {}
        for entry in self._host.weights:
            try:
                found |= dict.fromkeys(name for name in names_of(entry) if set(name).isdisjoint("*?["))
            except PluginError as error:
                self._report(error)
        return list(found)

    def offers(self, name: str) -> Iterator[Offer]:
        """The weights of a backbone, as each provider has them."""
        for entry in self._host.weights:
            try:
                offer = offer_of(entry, name)
            except PluginError as error:
                self._report(error)
            else:
                if offer:
                    yield offer

    def file(self, name: str) -> WeightsFile | None:
        """The file in the cache that a plugin provided earlier.

        None if there is none, if it is damaged, or if another version of the plugin converted it.
        """
        folder = self._folder(name)
        text = unseal(folder / "provenance.json")
        try:
            known = Provenance.from_json(text) if text else None
        except PlanError:  # of another version of autotl
            return None
        if known is None or self._is_outdated(known) or not (folder / known.file).is_file():
            return None
        found = WeightsFile.at(folder / known.file, "cache", known)
        if found.sha256 == known.sha256:
            return found
        problem = f"Warning: {found.path} is damaged and is not used."
        if problem not in self._said:
            self._said.add(problem)
            self._note(problem)
        return None

    def obtain(self, name: str, fits: Callable[[Path], object]) -> WeightsFile | None:
        """The weights of a backbone from the first provider that has them, None if none has.

        `fits` raises an AutotlError if a file is not one of the backbone.
        """
        for offer in self.offers(name):
            try:
                return self._kept(offer, fits)
            except PluginError as error:
                self._report(error)
        return None

    def _kept(self, offer: Offer, fits: Callable[[Path], object]) -> WeightsFile:
        """Raises: PluginError if the provider fails, or if its file cannot be used."""
        folder, owner = self._folder(offer.name), offer.owner
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"), TemporaryDirectory(dir=folder) as place:
            if found := self.file(offer.name):  # another process was faster
                return found
            file, published = offer.write(Path(place))
            try:
                fits(file)
            except AutotlError as error:
                why = error.__cause__ if isinstance(error.__cause__, WeightsError) else error
                raise offer.fault(why, Path(place)) from error
            known = Provenance(
                file=file.name,
                sha256=weights.file_hash(file),
                published=published,
                converted=offer.source.convert is not None,
                provider=offer.entry.name,
                distribution=owner.distribution,
                version=owner.version,
                license=one_line(offer.source.license or ""),
            )
            file.replace(folder / known.file)
            seal(folder / "provenance.json", known.to_json())
        return WeightsFile.at(folder / known.file, "cache", known)

    def _folder(self, name: str) -> Path:
        return self._place / quote(name, safe="")

    def _is_outdated(self, known: Provenance) -> bool:
        if not known.converted or known.provider not in self._host.weights:
            return False
        owner = self._host.weights[known.provider].owner
        return owner.distribution == known.distribution and owner.version != known.version

    def _report(self, error: PluginError) -> None:
        if str(error) not in self._said:
            self._said.add(str(error))
            self._skip(error)


def names_of(entry: Entry) -> list[str]:
    """The names and globs of the backbones that a provider has weights of.

    Raises: PluginError.
    """
    with entry.owner.answers_for(_what(entry), "cannot be listed"):
        provider: WeightsProvider = entry.item
        names = list(provider.names())
        if wrong := [name for name in names if not isinstance(name, str)]:
            raise TypeError(f"it lists {wrong[0]!r}, which is not a string")
    return names


def offer_of(entry: Entry, name: str) -> Offer | None:
    """The weights of a backbone, as one provider has them.

    Raises: PluginError.
    """
    names = names_of(entry)
    if not any(fnmatch.fnmatchcase(name, pattern) for pattern in names):
        return None
    with entry.owner.answers_for(_what(entry), _how(name)):
        try:
            source = entry.item.source(name)
        except KeyError:
            if name in names:
                raise
            return None
        if not isinstance(source, ProvidedWeights):
            raise TypeError(f"its source returned {type(source).__name__}, not ProvidedWeights")
        if sum(map(bool, (source.file, source.repo, source.url, source.fetch))) != 1:
            raise ValueError("its source must have one of file, repo, url and fetch")
        if source.file and not isinstance(source.file, Path):
            raise TypeError(f"its file must be a Path, not {source.file!r}")
        if source.file and not source.file.is_file():
            raise FileNotFoundError(f"{source.file} does not exist")
    return Offer(name, entry, source)


def _published(source: ProvidedWeights, folder: Path) -> Path:
    """The published file; one that is not on this machine is downloaded into the folder."""
    if source.file:
        return source.file
    if source.repo:
        return weights.from_hub(source)
    file = folder / f"published{PurePosixPath(urlparse(source.url or '').path).suffix}"
    if source.fetch:
        source.fetch(file)
        return file
    try:
        weights.ask(source)  # it has a timeout, the download has none
        weights.download(source, file)
    except URLError as error:
        raise WeightsError(f"{source.url}: {reason(error)}") from error
    return file


def _hash_of(file: Path, source: ProvidedWeights) -> str:
    """Raises: WeightsError if there is no file, or if it has another hash than its provider states."""
    if not file.is_file():
        raise WeightsError("its fetch wrote no file.")
    sha256 = weights.file_hash(file)
    if source.sha256 and not sha256.startswith(source.sha256):
        raise WeightsError(
            f"{_place(source)} is damaged or not the right file: SHA-256 {sha256[:12]}…, expected "
            f"{source.sha256[:12]}…. Install or get it again."
        )
    return sha256


def _save(state: Mapping[str, "Tensor"], file: Path) -> None:
    from safetensors.torch import save_file

    # Copies, because safetensors refuses tensors that share memory.
    save_file({name: value.contiguous().clone() for name, value in state.items()}, file)


def _place(source: ProvidedWeights) -> str:
    """How messages name the published file."""
    return str(source.file or source.url or source.repo or "the file that its fetch wrote")


def _what(entry: Entry) -> str:
    return f"Provider of weights '{entry.name}'"


def _how(name: str) -> str:
    return f"cannot provide '{name}'"
