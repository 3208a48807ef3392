"""The catalogue: every backbone of the installed families by its full name, ready to be built.

A name is `family:architecture[.tag]`. Only an appended `@random` selects random weights.
"""

import fnmatch
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from autotl.backbones import compiler, sources
from autotl.backbones import weights as weights_files
from autotl.backbones.provided import Offer, Provided
from autotl.backbones.weights import Given, WeightsFile
from autotl.contracts import BackboneInfo, Family, ModelCard, WeightsSource
from autotl.errors import PlanError, PluginError, WeightsError, unknown
from autotl.files import seal, unseal
from autotl.host import Host
from autotl.plan import Input, Network, Record, digest
from autotl.registry import Entry, Owner, on_stderr

if TYPE_CHECKING:
    from torch import nn

    from autotl.backbones.splitting import Traced
    from autotl.backbones.stages import Stages

RANDOM = "@random"
FORMAT = 3
"""Increase it when networks are split or measured in another way although no version changes."""
_AFTER = {"none": "", "random": ":<seed>", "sha256": ":<hex>"}


class Facts(Record):
    """What tracing a network found, and the hashes that tell whether it is still valid."""

    info: BackboneInfo
    graph: str
    """The hash of the traced graph."""
    packages: tuple[str, ...]
    """The packages with its code, except those whose version is recorded."""
    source: str
    """The hash of their source."""


def _raised(error: PluginError) -> None:
    raise error


class Catalogue:
    """Backbones by name.

    `named` maps full names to weights files that the user gave; `note` is called once for each with what was read from
    it. `skip` is called with the error of each provider of weights that fails, before the next one is asked. Facts
    about stages are kept as JSON under `cache_dir`, so that a network is traced only once.
    """

    def __init__(
        self,
        host: Host,
        cache_dir: Path,
        named: Mapping[str, Given] | None = None,
        note: Callable[[str], None] = lambda text: None,
        skip: Callable[[PluginError], None] = _raised,
    ) -> None:
        self.host = host
        self.provided = Provided(host, cache_dir, note, skip)
        self.cache_dir = cache_dir
        self.named = dict(named or {})
        self._note = note
        self._noted: set[str] = set()
        self._files: dict[str, WeightsFile] = {}
        self._cards: dict[str, ModelCard] = {}
        self._facts: dict[tuple[str, int], Facts] = {}
        self._traced: dict[tuple[str, str, int], Traced] = {}
        for name in self.named:
            if self.card(name).weights is None or name.endswith(RANDOM):
                raise WeightsError(f"--weights {name}=…: '{name}' does not use a weights file.")

    def expand(self, patterns: Iterable[str]) -> list[str]:
        """Full names for names and globs such as `timm:resnet*`, each once, in order.

        Raises: PluginError for a name or a glob that matches nothing.
        """
        found: dict[str, None] = {}
        for pattern in patterns:
            if any(sign in pattern for sign in "*?["):
                found.update(dict.fromkeys(self._glob(pattern)))
            else:
                self.card(pattern)
                found[pattern] = None
        return list(found)

    def _glob(self, pattern: str) -> list[str]:
        prefix, rest, random = _parse(pattern)
        found = [
            f"{entry.name}:{name}{RANDOM if random else ''}"
            for entry in self.host.backbones.match(prefix)
            for name in self.names(entry.name)
            if fnmatch.fnmatchcase(name, rest)
        ]
        if not found:
            raise PluginError(f"No backbone matches '{pattern}'. List them: autotl plugins backbones '{prefix}:*'")
        return found

    def names(self, family: str) -> list[str]:
        """The names that a family lists, without its prefix."""
        entry = self.host.backbones[family]
        with entry.owner.answers_for(f"Backbone family '{family}'", "cannot be listed"):
            names = list(_family(entry).names())
            if wrong := [name for name in names if not isinstance(name, str)]:
                raise TypeError(f"it lists {wrong[0]!r}, which is not a string")
        return names

    def owner(self, name: str) -> Owner:
        """The plugin that provides a backbone."""
        return self.host.backbones[_parse(name)[0]].owner

    def card(self, name: str) -> ModelCard:
        """Raises: PluginError for an unknown family or backbone, with the closest known name."""
        if name not in self._cards:
            self._cards[name] = self._read_card(name)
        return self._cards[name]

    def _read_card(self, name: str) -> ModelCard:
        prefix, rest, random = _parse(name)
        entry = self.host.backbones[prefix]
        with entry.owner.answers_for(f"Backbone '{prefix}:{rest}'", "has no card"):
            try:
                card = _family(entry).card(rest)
            except KeyError:
                known = self.names(prefix)
                if rest in known:
                    raise
                hint = f'List them: autotl plugins backbones "{prefix}:*"'
                raise PluginError(
                    unknown("backbone", f"{prefix}:{rest}", [f"{prefix}:{other}" for other in known], hint)
                ) from None
            if not isinstance(card, ModelCard):
                raise TypeError(f"{type(card).__name__} is not a ModelCard")
        return replace(card, source="nothing: random weights", note="") if random else card

    def available(self, name: str) -> bool:
        """Whether the backbone can be built without downloading anything."""
        if self._kind(name) != "sha256" or self.file(name) is not None:
            return True
        return any(offer.source.file for offer in self.provided.offers(name))

    def reachable(self, name: str) -> bool:
        """Whether the backbone's weights are on this machine or can be downloaded; answers within seconds."""
        if self.available(name) or any(offer.reachable for offer in self.provided.offers(name)):
            return True
        return weights_files.reachable(self._source(name))

    def obtain(self, name: str) -> None:
        """Get the backbone's weights from a plugin or download them, unless they are already on this machine.

        Raises: WeightsError if they are not available.
        """
        if self._kind(name) != "sha256" or self.file(name) is not None:
            return
        provided = self.provided.obtain(name, lambda file: self._split(name, self.card(name).input, file, seed=0))
        self._files[name] = provided or weights_files.fetch(name, self._source(name))

    def weights(self, name: str, seed: int) -> str:
        """The weights as a plan records them: `sha256:<hex>`, `random:<seed>` or `none`."""
        kind = self._kind(name)
        if kind != "sha256":
            return f"random:{seed}" if kind == "random" else "none"
        self.obtain(name)
        return f"sha256:{self._files[name].sha256}"

    def network(self, name: str, seed: int, input: Input | None = None) -> Network:
        """A backbone with its weights, by default at its own input."""
        return Network(name, self.weights(name, seed), input or self.card(name).input)

    def at_random(self, network: Network, seed: int) -> Network:
        """The same network with random weights; unchanged if it has no pretrained weights."""
        if self._kind(network.backbone) != "sha256":
            return network
        return Network(network.backbone + RANDOM, f"random:{seed}", network.input)

    def is_pretrained(self, name: str) -> bool:
        """Whether its weights were learned: neither random nor part of its code."""
        return self._kind(name) == "sha256"

    def inputs(self, name: str) -> list[Input]:
        """A backbone's input preparations: its own, and those for its other sizes."""
        card = self.card(name)
        return [card.input, *(card.input.at(size) for size in card.sizes)]

    def offer(self, name: str) -> Offer | None:
        """Where `obtain` looks first for weights that are not on this machine: the first plugin that has them."""
        return next(self.provided.offers(name), None)

    def download_bytes(self, name: str) -> int | None:
        """Bytes that `obtain` would download, None if that is not known."""
        offer = self.offer(name)
        source = offer.source if offer else self._source(name)
        return weights_files.download_bytes(source) if source.url or source.repo else None

    def file(self, name: str) -> WeightsFile | None:
        """The weights file of a backbone, None if it has none or the file is not on this machine."""
        found = self._files.get(name)
        if found is None or found.changed:
            found = self._found(name) if self._kind(name) == "sha256" else None
            if found:
                self._files[name] = found
        return found

    def _found(self, name: str) -> WeightsFile | None:
        source, named = self._source(name), self.named.get(name)
        if named or source.file:
            return weights_files.find(name, source, named.path if named else None)
        return self.provided.file(name) or weights_files.find(name, source)

    def build(self, network: Network) -> "Stages":
        """The backbone's stages on the CPU, with the weights that a plan recorded.

        Raises: WeightsError if the weights on this machine have another hash.
        """
        name = network.backbone
        kind, _, value = network.weights.partition(":")
        expected = self._kind(name)
        if kind != expected or (kind == "random" and not value.isdecimal()):
            raise PlanError(f"The weights of '{name}' must be '{expected}{_AFTER[expected]}', not '{network.weights}'.")
        if kind == "sha256":
            have = self.weights(name, seed=0)
            if have != network.weights:
                raise WeightsError(
                    f"The plan needs '{name}' with weights {network.weights[:19]}…, but this machine has "
                    f"{have[:19]}…. Use --weights {name}=FILE with the file that the plan was made with."
                )
            stages = self._split(name, network.input, self._files[name].path, seed=0)
        else:
            stages = self._split(name, network.input, None, seed=int(value or 0))
        if stages.graph != self.facts(name, network.input).graph:
            # The code that builds it has changed without a change of version or source.
            size = network.input.size
            self._facts[name, size] = self._measured(name, size, self.structure(name, network.input))
        return stages.cut(self.info(name, network.input).names[-1])

    def structure(self, name: str, input: Input) -> "Stages":
        """The backbone's stages on the CPU with placeholder weights, to be filled from a bundle."""
        return self._split(name, input, None, seed=0)

    def info(self, name: str, input: Input | None = None) -> BackboneInfo:
        """The backbone's stages with their costs and shapes, up to the last one that has weights.

        The fingerprint is always that of all stages.

        Raises: WeightsError if the named weights end at a stage that this backbone does not have.
        """
        info = self.facts(name, input or self.card(name).input).info
        named = self.named.get(name)
        if named is None or named.upto is None:
            return info
        if named.upto not in info.names:
            raise WeightsError(f"{named.path} ends with the stage '{named.upto}', which '{name}' does not have.")
        return info.model_copy(update={"stages": info.upto(named.upto)})

    def facts(self, name: str, input: Input) -> Facts:
        """Facts about the network; it is traced once per size, later they are read from disk."""
        size = input.size
        if (name, size) not in self._facts:
            self._facts[name, size] = self._stored_facts(name, size) or self._measured(
                name, size, self.structure(name, input)
            )
        return self._facts[name, size]

    def _stored_facts(self, name: str, size: int) -> Facts | None:
        """Facts from disk; None if there are none, they are damaged, or the source has been edited since."""
        text = unseal(self._facts_file(name, size))
        facts = Facts.from_json(text) if text else None
        return facts if facts and facts.source == sources.hash_of(facts.packages) else None

    def _measured(self, name: str, size: int, stages: "Stages") -> Facts:
        from autotl.backbones.costs import measure

        family = _family(self.host.backbones[_parse(name)[0]])
        classes = [type(family), *map(type, stages.modules())]
        packages = sources.packages_of(classes, ["autotl", "torch", *self.card(name).libraries])
        with self.owner(name).answers_for(f"Backbone '{name}'", "fails on images"):
            info = measure(name, self.card(name).input.at(size), stages)
        facts = Facts(
            info=info,
            graph=stages.graph,
            packages=packages,
            source=sources.hash_of(packages),
        )
        seal(self._facts_file(name, size), facts.to_json())
        return facts

    def _facts_file(self, name: str, size: int) -> Path:
        input = self.card(name).input.at(size)
        key = digest({"name": name, "input": input.model_dump(), "versions": self._versions(name), "format": FORMAT})
        return self.cache_dir / "info" / key

    def requires(self, name: str) -> dict[str, str]:
        """Versions of the libraries that the backbone's numbers depend on, and `stages`: the hash of its stage list."""
        return {**self._versions(name), "stages": self.info(name).fingerprint}

    def _versions(self, name: str) -> dict[str, str]:
        owner = self.owner(name)
        libraries = ("autotl", "torch", "pillow", "scipy", *self.card(name).libraries)
        with owner.answers_for(f"Backbone '{name}'", "names a library that is not installed"):
            return {owner.distribution: owner.version, **{library: _version(library) for library in libraries}}

    def _kind(self, name: str) -> Literal["none", "random", "sha256"]:
        """How a plan records the backbone's weights."""
        if name.endswith(RANDOM):
            return "random"
        return "none" if self.card(name).weights is None else "sha256"

    def _source(self, name: str) -> WeightsSource:
        source = self.card(name).weights
        assert source is not None, f"{name} has no weights to look for"
        return source

    def _split(self, name: str, input: Input, file: Path | None, seed: int) -> "Stages":
        import torch

        from autotl.backbones.splitting import Traced, split

        prefix, rest, _ = _parse(name)
        entry = self.host.backbones[prefix]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # only the CPU's: the network is built there
            try:
                with entry.owner.answers_for(f"Backbone '{name}'", "cannot be built"), compiler.unused():
                    model = _family(entry).build(rest, file).float().eval()
            except WeightsError as error:
                raise _unusable(name, error) from error
        key = prefix, rest, input.size
        traced = self._traced.get(key)
        try:
            with on_stderr():
                stages = (traced and traced.stages(model)) or split(model, input.size)
        except PluginError as error:
            raise entry.owner.fault(f"Backbone '{name}'", f"cannot be used: {error}") from error
        self._traced[key] = Traced(model, stages)
        if file:
            self._accept(name, model, stages)
        return stages

    def _accept(self, name: str, model: "nn.Module", stages: "Stages") -> None:
        """Raises: WeightsError if the weights file lacks a tensor of a stage that is kept."""
        from autotl.backbones.checkpoint import accept

        named = self.named.get(name)
        try:
            read = accept(model, stages.cut(named.upto) if named and named.upto else stages)
        except WeightsError as error:
            raise _unusable(name, error) from error
        if named and name not in self._noted:
            self._noted.add(name)
            end = f"; they end with {named.upto}, and so does the backbone" if named.upto else ""
            for line in read:
                self._note(f"Weights of {name}: {line}{end}")


def _unusable(name: str, error: WeightsError) -> WeightsError:
    return WeightsError(f"The weights of '{name}' cannot be used: {error}")


@cache
def _version(library: str) -> str:
    return metadata.version(library)


@cache
def _parse(name: str) -> tuple[str, str, bool]:
    """`family:architecture[.tag][@random]` → family, architecture with tag, and whether weights are random."""
    prefix, colon, rest = name.partition(":")
    if not colon or not rest:
        raise PluginError(
            f"'{name}' is not a backbone's name: use family:architecture[.tag], such as 'torchvision:resnet18'. "
            "List them: autotl plugins backbones"
        )
    return prefix, rest.removesuffix(RANDOM), rest.endswith(RANDOM)


def _family(entry: Entry) -> Family:
    with compiler.unused():
        family: Family = entry.item
    return family
