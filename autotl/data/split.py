"""Assigning images to the splits.

train        trains the weights
early_stop   selects the epoch; split off from train if train has enough images
val          selects among trials: the user's validation split, or split off from train
test         tests the winner, once: the user's, or split off from train
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Literal, get_args

import numpy as np

from autotl.data import copies
from autotl.errors import DataError

Split = Literal["train", "early_stop", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
OPEN: tuple[Split, ...] = ("train", "early_stop", "val")
"""All except the sealed test split."""

SHARES: dict[Split, float] = {"test": 0.20, "val": 0.20, "early_stop": 0.15}
"""The share of each class that a split takes from what the previous splits left."""

LEAST_EARLY_STOP = 3
"""The least images of every class for a useful early_stop split."""

TRIES = 10
"""How many orders of the images are tried for a further division."""


@dataclass(frozen=True)
class Member:
    """An image to be split. `given` is the user's split, train by default.

    `picture` is the number of its cluster of copies and near-copies; None: it has none except those of the same `sha`.
    """

    sha: str
    label: str
    given: Split = "train"
    group: str | None = None
    picture: int | None = None


def assign(members: Sequence[Member], *, seed: int, previous: Mapping[str, Split] | None = None) -> list[Split]:
    """The split of each member: stratified by class, the same for the same images, seed and given splits.

    Copies of a picture, and the images of a group, are a unit and get one split. With `previous`, splits by image hash,
    nothing is split off: known images keep their splits, and new ones join train unless their split is given.

    Raises: DataError for a class that is too small, and for a unit that cannot be in one split.
    """
    units = _units(members, seed)
    if previous is None:
        _give(units, members)
        _split_off(units)
    else:
        _restore(units, members, previous)
    splits: list[Split] = ["train"] * len(members)
    for unit in units:
        for at in unit.members:
            splits[at] = unit.split
    return splits


def divisions(members: Sequence[Member], *, seed: int) -> Iterator[list[Split]]:
    """Further divisions of the images outside the test split, without end: in each the split of each member.

    `given` is the study's own split. Each division splits off `val`, and `early_stop` if there is one, from units in a
    random order, those first that were in `val` of the fewest divisions before. If a class that a split had would be
    missing there, which groups of several classes can cause, the division is the same as the one before.
    """
    units = _units(members, seed)
    _give(units, members)
    pool = [unit for unit in units if unit.split != "test"]
    for number in count(1):
        _divide_again(pool, f"{seed}:{number}")
        splits = [member.given for member in members]
        for unit in pool:
            for at in unit.members:
                splits[at] = unit.split
        yield splits


def _divide_again(pool: Sequence["_Unit"], seed: str) -> None:
    before = {split: [unit for unit in pool if unit.split == split] for split in OPEN}
    for unit in before["val"]:
        unit.judged += 1
    for attempt in range(TRIES):
        left = sorted(pool, key=lambda unit: (unit.judged, unit.rank(f"{seed}:{attempt}")))
        for unit in left:
            unit.split = "train"
        for split in ("val", "early_stop"):
            if before[split]:
                left = _move(_take(left, SHARES[split], keep=1), split, left)
        now = {split: [unit for unit in pool if unit.split == split] for split in OPEN}
        if all(_images(before[split]).keys() <= _images(now[split]).keys() for split in OPEN):
            return
    for split, those in before.items():
        for unit in those:
            unit.split = split


def unit_numbers(members: Sequence[Member]) -> np.ndarray:
    """[N] the unit number of each member: members that share a picture or a group, directly or through others.

    The members of a unit are not independent observations.
    """
    pictures = [member.sha if member.picture is None else member.picture for member in members]
    return copies.units(pictures, (member.group for member in members))


@dataclass
class _Unit:
    """Members, by position, that stay together, and their counts by class."""

    members: list[int]
    labels: Counter[str]
    first: str
    """The smallest hash of its images."""
    split: Split = "train"
    judged: int = 0
    """In how many divisions it was in val."""

    def rank(self, seed: object) -> str:
        """Its place in a random order that depends only on the seed and the images."""
        return hashlib.sha256(f"{seed}:{self.first}".encode()).hexdigest()


def _units(members: Sequence[Member], seed: int) -> list[_Unit]:
    """The units in an order that depends only on the seed and the images."""
    together = defaultdict(list)
    for at, number in enumerate(unit_numbers(members).tolist()):
        together[number].append(at)
    units = [
        _Unit(ats, Counter(members[at].label for at in ats), min(members[at].sha for at in ats))
        for ats in together.values()
    ]
    return sorted(units, key=lambda unit: unit.rank(seed))


def _give(units: Iterable[_Unit], members: Sequence[Member]) -> None:
    for unit in units:
        given = {members[at].given for at in unit.members}
        unit.split = _only(given, unit, members, "Give them one split, or remove the splits.")


def _restore(units: Sequence[_Unit], members: Sequence[Member], previous: Mapping[str, Split]) -> None:
    for unit in units:
        stored = {previous[sha] for at in unit.members if (sha := members[at].sha) in previous}
        given = {members[at].given for at in unit.members}
        unit.split = _only(stored or given, unit, members, "Start a new study to split them again: --study NAME")
    empty = {"train", "val", "test"} - {unit.split for unit in units}
    if empty:
        known = sum(member.sha in previous for member in members)
        raise DataError(
            f"No image is left in {', '.join(sorted(empty))}: of {len(members)} images {known} are among the "
            f"{len(previous)} of the stored split. Use the study's data, or start a new study: --study NAME"
        )


def _only(splits: set[Split], unit: _Unit, members: Sequence[Member], advice: str) -> Split:
    if len(splits) > 1:
        groups = sorted({repr(group) for at in unit.members if (group := members[at].group) is not None})
        of = f" of group {groups[0]}" if groups else ""
        raise DataError(
            f"{len(unit.members)} images{of} must be in one split but are in {', '.join(sorted(splits))}. {advice}"
        )
    (split,) = splits
    return split


def _split_off(units: Sequence[_Unit]) -> None:
    given = {unit.split for unit in units}
    wanted: list[Split] = [split for split in ("test", "val") if split not in given]
    pool = [unit for unit in units if unit.split == "train"]
    _require(pool, least=len(wanted) + 1)
    for done, split in enumerate(wanted):
        # Each later split, and train, needs a unit of every class.
        taken = _take(pool, SHARES[split], keep=len(wanted) - done)
        lacking = sorted(_images(pool).keys() - _images(taken).keys())
        if lacking:
            raise DataError(
                f"Class {lacking[0]!r} cannot be divided between {', '.join(wanted)} and train: it has too few groups, "
                f"or groups with other classes. Use smaller groups, or assign the splits yourself."
            )
        pool = _move(taken, split, pool)
    taken = _take(pool, SHARES["early_stop"], keep=1)
    images = _images(taken)
    if all(images[label] >= LEAST_EARLY_STOP for label in _images(pool)):
        _move(taken, "early_stop", pool)


def _require(pool: Sequence[_Unit], least: int) -> None:
    units = _distinct(pool)
    small = sorted(label for label in units if units[label] < least)
    if small:
        others = f" (and {len(small) - 1} more)" if len(small) > 1 else ""
        raise DataError(
            f"Class {small[0]!r}{others} is too small to be split: it has {units[small[0]]} of at least {least} "
            f"images (copies and near-copies of a picture, and a group, count as one). Add images, remove the class, "
            f"or provide your own val and test splits."
        )


def _take(pool: Sequence[_Unit], share: float, keep: int) -> list[_Unit]:
    """Units with about `share` and at least one image of each class, such that `keep` units of it are left."""
    target = {label: max(1, round(share * count)) for label, count in _images(pool).items()}
    short, left = Counter(target), _distinct(pool)
    taken = []

    def closer(unit: _Unit) -> bool:
        return sum(abs(short[label]) - abs(short[label] - n) for label, n in unit.labels.items()) > 0

    def first(unit: _Unit) -> bool:
        return any(short[label] == target[label] for label in unit.labels)

    def take(unit: _Unit) -> None:
        if all(left[label] > keep for label in unit.labels):
            short.subtract(unit.labels)
            left.subtract(unit.labels.keys())
            taken.append(unit)

    for unit in filter(closer, pool):
        take(unit)
    # If every unit of a class overshoots, its smallest is better than none.
    for unit in filter(first, sorted(pool, key=lambda unit: unit.labels.total())):
        take(unit)
    return taken


def _images(units: Iterable[_Unit]) -> Counter[str]:
    """How many images of each class the units have."""
    return Counter(label for unit in units for label in unit.labels.elements())


def _distinct(units: Iterable[_Unit]) -> Counter[str]:
    """How many of the units have images of each class."""
    return Counter(label for unit in units for label in unit.labels)


def _move(taken: Sequence[_Unit], split: Split, pool: Sequence[_Unit]) -> list[_Unit]:
    """The pool after moving `taken` to `split`."""
    for unit in taken:
        unit.split = split
    return [unit for unit in pool if unit.split == "train"]
