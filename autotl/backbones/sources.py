"""Hashes the source code that computes a network: an edit may change every number without changing a version."""

import hashlib
from collections.abc import Collection, Iterable
from importlib.util import find_spec
from pathlib import Path


def packages_of(classes: Iterable[type], versioned: Collection[str]) -> tuple[str, ...]:
    """The top-level packages that define these classes and their bases, except those in `versioned`."""
    known = {name.replace("-", "_") for name in versioned}
    found = {base.__module__.partition(".")[0] for each in classes for base in each.__mro__}
    return tuple(sorted(found - known - {"builtins"}))


def hash_of(packages: Iterable[str]) -> str:
    """SHA-256, in hex, of every Python file of these packages, wherever they are installed."""
    listing = hashlib.sha256()
    for package in packages:
        for name, file in _files(package):
            listing.update(f"{package} {name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return listing.hexdigest()


def _files(package: str) -> list[tuple[str, Path]]:
    """Python files by their paths within the package; empty for a package without files, such as a notebook's."""
    try:
        spec = find_spec(package)
    except ValueError:  # defined in a notebook or a script
        spec = None
    if spec is None:
        return []
    if not spec.submodule_search_locations:
        return [("", Path(spec.origin))] if spec.origin and spec.origin.endswith(".py") else []
    folders = map(Path, spec.submodule_search_locations)
    return sorted((file.relative_to(folder).as_posix(), file) for folder in folders for file in folder.rglob("*.py"))
