"""Checks of this machine for `autotl doctor`: what is installed, what is wrong, and what to do."""

import os
import platform
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from autotl.backbones import provided
from autotl.backbones.catalogue import Catalogue
from autotl.errors import AutotlError, PluginError, one_line
from autotl.host import Host
from autotl.registry import Entry, Owner
from autotl.study import pool
from autotl.tracking.folder import studies

FREE = 2_000_000_000
"""Bytes below which a disk is called full."""


@dataclass(frozen=True)
class Check:
    """The result of one check; `advice` says what to do if something is wrong or missing."""

    what: str
    found: str
    advice: str = ""
    wrong: bool = False
    """Whether it prevents a search from working; a missing optional part is not wrong."""


def checks(host: Host, home: Path, cache_dir: Path) -> Iterator[Check]:
    """All checks, in the order in which a search needs the things."""
    yield Check("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield from _libraries()
    yield from _devices()
    found = len(list(studies(home)))
    yield _folder("workspace", home, f"{found} {'study' if found == 1 else 'studies'}")
    yield _folder("cache", cache_dir, f"{_bytes(cache_dir) / 1e9:.1f} GB")
    catalogue = Catalogue(host, cache_dir, skip=lambda error: None)  # `_plugins` reports it
    yield from _weights(catalogue)
    yield from _plugins(catalogue)


def _libraries() -> Iterator[Check]:
    yield Check("autotl", metadata.version("autotl"))
    extras: dict[str, list[tuple[str, str]]] = {}
    for requirement in map(Requirement, metadata.requires("autotl") or ()):
        named = re.search(r"extra == ['\"](\w+)", str(requirement.marker))
        problem = _unmet(requirement)
        if named:
            requirement.marker = None  # which the advice need not repeat
            extras.setdefault(named[1], []).extend([(problem, f"'{requirement}'")] if problem else [])
        elif problem:
            yield Check(requirement.name, problem, f"pip install '{requirement}'", wrong=True)
        else:
            yield Check(requirement.name, metadata.version(requirement.name))
    for extra, problems in extras.items():
        if extra != "dev":
            unmet = "; ".join(problem for problem, _ in problems)
            advice = " ".join(["pip install", *(requirement for _, requirement in problems)]) if problems else ""
            yield Check(f"extra {extra}", unmet or "installed", advice)


def _unmet(requirement: Requirement) -> str:
    """What is wrong with the installed version; empty if it fits."""
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return f"{requirement.name} is not installed"
    fits = requirement.specifier.contains(version, prereleases=True)
    return "" if fits else f"{requirement.name} {version} is installed, {requirement.specifier} is needed"


def _devices() -> Iterator[Check]:
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(index)
            yield Check(f"cuda:{index}", f"{facts.name}, {facts.total_memory / 1e9:.0f} GB")
    elif shutil.which("nvidia-smi"):
        yield Check(
            "cuda",
            f"a driver is installed, but torch {torch.__version__} finds no device",
            "install a build of torch for this driver's CUDA version",
            wrong=True,
        )
    else:
        yield Check("cuda", "no device")
    if torch.backends.mps.is_available():
        yield Check("mps", "available")
    yield Check("threads of torch", f"{torch.get_num_threads()} of {os.cpu_count()} cores")


def _folder(what: str, folder: Path, holds: str) -> Check:
    there = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    option = {"workspace": "--home", "cache": "--cache-dir"}[what]
    if not os.access(there, os.W_OK):
        return Check(what, f"{folder}: cannot be written", f"choose another folder: {option} DIR", wrong=True)
    free = shutil.disk_usage(there).free
    advice = f"free some space, or choose another folder: {option} DIR" if free < FREE else ""
    return Check(what, f"{folder}: {holds}, {free / 1e9:.0f} GB free", advice, wrong=free < FREE)


def _bytes(folder: Path) -> int:
    total = 0
    for file in folder.rglob("*"):
        with suppress(FileNotFoundError):  # a search may be running there
            total += file.stat().st_size if file.is_file() else 0
    return total


def _weights(catalogue: Catalogue) -> Iterator[Check]:
    broken: list[PluginError] = []
    for name in pool.usual(catalogue, broken.append):
        try:
            file = catalogue.file(name)
        except PluginError as error:
            broken.append(error)
            continue
        except AutotlError as error:
            yield Check(name, one_line(error), "reinstall autotl", wrong=True)
            continue
        if file:
            yield Check(name, f"on this machine ({file.found}), {file.path.stat().st_size / 1e6:.1f} MB")
        elif offer := catalogue.offer(name):
            yield Check(name, f"provided by {offer.owner.distribution} {offer.owner.version}")
        else:
            yield Check(name, "not on this machine", f"autotl weights fetch {name}")
    for problem in broken:
        yield Check("backbones", one_line(problem), "see the plugins below", wrong=True)


def _plugins(catalogue: Catalogue) -> Iterator[Check]:
    host = catalogue.host
    for owner in host.owners:
        registered = {
            kind: [entry for entry in registry if entry.owner == owner] for kind, registry in host.registries.items()
        }
        names = [f"{kind} {', '.join(e.name for e in entries)}" for kind, entries in registered.items() if entries]
        if not names:
            lacks = "it has no function such as register_strategies that is marked with @autotl.hookimpl"
            yield _broken(owner, f"{owner} registers nothing: {lacks}")
            continue
        yield Check(f"plugin {owner.plugin}", f"{owner.distribution} {owner.version}: {'; '.join(names)}")
        for kind, entries in registered.items():
            for entry in entries:
                try:
                    if kind == "backbones":
                        _whole(entry, catalogue)
                    elif kind == "weights":
                        _provides(entry)
                    else:
                        _ = entry.item
                except AutotlError as error:
                    yield _broken(owner, error)
    for name in sorted(host.blocked - {problem.owner.plugin for problem in host.problems}):
        yield Check(f"plugin {name}", "disabled by AUTOTL_DISABLE_PLUGINS")
    for problem in host.problems:
        name = problem.owner.plugin
        if name in host.blocked:
            yield Check(f"plugin {name}", problem.reason, "correct AUTOTL_DISABLE_PLUGINS", wrong=True)
        else:
            yield _broken(problem.owner, problem)


def _whole(family: Entry, catalogue: Catalogue) -> None:
    """Raises: AutotlError for a family that cannot be listed, or whose package lacks weights that it should contain."""
    names = catalogue.names(family.name)
    for name in names if family.owner.distribution != "autotl" else ():
        weights = catalogue.card(f"{family.name}:{name}").weights
        if weights and weights.file:
            catalogue.file(f"{family.name}:{name}")


def _provides(provider: Entry) -> None:
    """Raises: AutotlError for a provider of weights that fails, or whose files are missing or damaged."""
    for name in provided.names_of(provider):
        if offer := provided.offer_of(provider, name):
            offer.check()


def _broken(owner: Owner, problem: object) -> Check:
    advice = f"report it to its author, update it, or pip uninstall {owner.distribution}"
    if owner.file:
        advice = "fix the file"
    return Check(f"plugin {owner.plugin}", str(problem), advice, wrong=True)
