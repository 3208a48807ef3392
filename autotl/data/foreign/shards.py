"""Reading WebDataset shards: tar archives where the members of a sample are adjacent and share a name before a dot."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, islice
from pathlib import Path

from autotl.data.foreign.archives import Member, members
from autotl.data.foreign.samples import (
    IMAGE_SUFFIXES,
    LABELS,
    Sample,
    Source,
    Tell,
    in_class_folders,
    label_column,
    label_text,
    split_files,
)
from autotl.errors import DataError, reason

_KEY = re.compile(r"((?:.*/)?[^./]+)\.([^/]*)")
_LOOKED_AT = 200
"""How many of the first members are read to recognise a shard."""


def is_shard(file: Path, said: str | None) -> bool:
    """Whether a tar archive starts with images that have their labels beside them."""
    found: dict[str, set[str]] = {}
    for member in islice(members(file), _LOOKED_AT):
        if isinstance(member, Member) and (name := _KEY.fullmatch(member.name)):
            suffix = name[2].lower()
            if suffix == "json" and not _has_label(member.read(), said):
                continue
            found.setdefault(name[1], set()).add(suffix)
    return any(_images(suffixes) and suffixes & {"cls", "json"} for suffixes in found.values())


def read(files: Sequence[Path], said: str | None, tell: Tell) -> Source:
    """The samples of shards, with splits from the names of the shards.

    `said`: the key of the class in each sample's JSON.

    Raises: DataError.
    """
    splits = split_files(files, tell)
    total = sum(
        isinstance(member, Member) and Path(member.name).suffix.lower() in IMAGE_SUFFIXES
        for file in splits
        for member in members(file)
    )
    samples = (sample for file, split in splits.items() for sample in _samples(file, split, said))
    size = sum(file.stat().st_size for file in files)
    return Source("WebDataset", total, in_class_folders(samples, tell), size)


def _samples(file: Path, split: str, said: str | None) -> Iterator[Sample]:
    named = (
        (member, name)
        for member in members(file)
        if isinstance(member, Member) and (name := _KEY.fullmatch(member.name))
    )
    for key, group in groupby(named, lambda pair: pair[1][1]):
        parts = {}
        for member, name in group:
            suffix = name[2].lower()
            if suffix in ("cls", "json") or f".{suffix}" in IMAGE_SUFFIXES:
                parts[suffix] = member.read()
        where = f"{key!r} of {str(file)!r}"
        images = _images(parts)
        if len(images) > 1:
            raise DataError(f"{where} has several images: {', '.join(images)}. Only one per sample is supported.")
        suffix = images[0] if images else ""
        yield Sample(split, _label(parts, said, where), parts.get(suffix), f".{suffix}")


def _images(suffixes: Iterable[str]) -> list[str]:
    return sorted(suffix for suffix in suffixes if f".{suffix}" in IMAGE_SUFFIXES)


def _label(parts: dict[str, bytes], said: str | None, where: str) -> str | None:
    try:
        if "cls" in parts and said is None:
            return label_text(parts["cls"].decode().strip())
        if "json" in parts:
            table = json.loads(parts["json"])
            return label_text(table[label_column(table, said, where)])
    except (ValueError, RecursionError, TypeError) as error:
        raise DataError(f"The label of {where} cannot be read: {reason(error)}.") from None
    return None


def _has_label(content: bytes, said: str | None) -> bool:
    try:
        table = json.loads(content)
    except (ValueError, RecursionError):
        return False
    return isinstance(table, dict) and any(name in table for name in ([said] if said else LABELS))
