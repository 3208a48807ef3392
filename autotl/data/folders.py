"""Reading a folder of images: which of its sub-folders are classes and which are splits."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from mimetypes import MimeTypes
from pathlib import Path

from autotl.data.listing import Found, Layout, Listing, some
from autotl.data.names import is_fold, one_form, split_of, splits_within
from autotl.data.split import Split
from autotl.data.walk import Walk
from autotl.errors import DataError

SHAPES = (
    "Allowed are a folder with a sub-folder for each class, a folder with train/, val/ and test/ of such "
    "sub-folders, or a CSV or Parquet manifest with the columns path and label."
)
_TYPES = MimeTypes()  # Python's own table, because that of the machine may differ
_TEXTS = ("readme", "readme.md", "license", "licence", "copying")
"""Texts without a known suffix."""


@dataclass
class _Level:
    """A folder whose sub-folders are the classes, judged by this folder alone."""

    folder: str
    beside: list[str] = field(default_factory=list)
    """The files directly in it."""
    classes: dict[str, list[str]] = field(default_factory=dict)
    """The files below each of its sub-folders."""

    @property
    def labelled(self) -> bool:
        return any(self.classes.values())

    @property
    def empty(self) -> bool:
        return not self.labelled and not self.beside


def read_folder(root: Path) -> Listing:
    """The labelled files of a folder.

    Raises: DataError for one that has neither classes nor splits, or is ambiguous.
    """
    walk = Walk(root)
    beside, tops = walk.look()
    splits = {top: _level(walk, top) for top in tops if split_of(top)}
    level = _Level("", beside, {top: list(walk.files(top)) for top in tops if top not in splits})
    named = [top for top, split in splits.items() if not split.empty]
    classes = [top for top, files in level.classes.items() if files]
    if level.beside and not level.labelled and not named:
        raise DataError(f"{str(root)!r} has {len(level.beside)} files but no class folders. {SHAPES}")
    # Unlike the other names of splits, `train` may be a class.
    if level.labelled and any(splits[top].labelled or top.casefold() != "train" for top in named):
        raise DataError(
            f"{str(root)!r} is ambiguous: it has names of splits ({some(named)}) and other names ({some(classes)}). "
            "Move or rename the folders of one kind."
        )
    if named and not level.labelled:
        return _splits(walk, {top: splits[top] for top in named}, [*level.classes, *(splits.keys() - named)], beside)
    if len(set().union(*map(splits_within, classes))) > 1 and all(map(splits_within, classes)):
        raise DataError(
            f"{str(root)!r} is ambiguous: {some(classes)} look like splits by a part of their names. If they are "
            f"splits, rename them to train, val and test, or search only one of them. If they are classes, list their "
            f"files in a CSV with the columns path and label."
        )
    level.classes |= {top: split.beside for top, split in splits.items()}  # a class `train` beside a class `bus`
    _require_classes(walk.root, level)
    return _listing(walk, "class folders", {"": "train"}, [level], [])


def _level(walk: Walk, folder: str) -> _Level:
    """The folder of a split. Nested names as in unpacked archives, `seg_train/seg_train/`, count as one folder."""
    beside, folders = walk.look(folder)
    if len(folders) == 1 and split_of(folders[0].rpartition("/")[2]) == split_of(folder.rpartition("/")[2]):
        inner = _level(walk, folders[0])
        return _Level(inner.folder, beside + inner.beside, inner.classes)
    return _Level(folder, beside, {path: list(walk.files(path)) for path in folders})


def _splits(walk: Walk, levels: Mapping[str, _Level], empty: Sequence[str], beside: Sequence[str]) -> Listing:
    root, folders = walk.root, sorted(levels)
    split_in = {top: split for top in folders if (split := split_of(top))}
    if len(set(split_in.values())) < len(folders):
        raise DataError(f"Two of {some(folders)} in {str(root)!r} are the same split. Merge them, or rename one.")
    if "train" not in split_in.values():
        holding = " with images" * any(split_of(folder) == "train" for folder in empty)
        raise DataError(
            f"{str(root)!r} has {some(folders)} but no train folder{holding}. Add train/, or, if these are classes, "
            f"rename them."
        )
    for top, level in levels.items():
        if not level.labelled:
            raise DataError(
                f"{str(root / top)!r} has files but no class folders, so their labels are unknown. Sort "
                f"them into a sub-folder for each class, or move {top!r} elsewhere."
            )
        _require_classes(root, level)
    given = {level.folder: split_in[top] for top, level in levels.items()}
    return _listing(walk, "split folders", given, [*levels.values(), _Level("", list(beside))], empty)


def _listing(
    walk: Walk, layout: Layout, splits: Mapping[str, Split], levels: Sequence[_Level], empty: Sequence[str]
) -> Listing:
    """`splits`: the split of each folder that contains classes."""
    found = [
        Found(path, one_form(folder.rpartition("/")[2]), splits[level.folder])
        for level in levels
        for folder, files in level.classes.items()
        for path in files
    ]
    bare = [folder for level in levels for folder, files in level.classes.items() if not files]
    return Listing(
        walk.root,
        tuple(sorted(found, key=lambda file: file.path)),
        layout=layout,
        read_as=tuple(sorted((folder, split) for folder, split in splits.items() if folder)),
        unlabelled=tuple(sorted(path for level in levels for path in level.beside)),
        empty=tuple(sorted([*empty, *bare])),
        litter=tuple(sorted(set(walk.litter))),
        remarks=tuple(_divided(levels)),
    )


def _divided(levels: Sequence[_Level]) -> Iterator[str]:
    """A remark on class folders whose images are in sub-folders."""
    each = [(folder, _sub_folders(folder, files)) for level in levels for folder, files in level.classes.items()]
    several = [(folder, names) for folder, names in each if len(names) > 1]
    if several:
        yield (
            f"{some([folder for folder, _ in several])} have images in sub-folders such as {min(several[0][1])!r}, "
            f"which count neither as classes nor as groups. If they should, list the files in a CSV with the columns "
            f"path, label and group"
        )


def _require_classes(root: Path, level: _Level) -> None:
    """Raises: DataError if folders contain no images themselves and share names of sub-folders: they may be splits.

    `amazon/images/mug` is read like `amazon/mug`.
    """
    inner = {folder: _sub_folders(folder, files) for folder, files in level.classes.items() if files}
    times = Counter(name for names in inner.values() for name in names)
    shared = {name for name, folders in times.items() if folders > 1}
    sharing = [folder for folder, names in inner.items() if names & shared]
    mostly = any(2 * len(inner[folder] & shared) > len(inner[folder]) for folder in sharing)
    if len(times) > 1 and mostly and 2 * len(sharing) >= len(inner):
        raise DataError(
            f"{str(root / level.folder)!r} is ambiguous: {some([path.rpartition('/')[2] for path in sharing])} have no "
            f"images of their own and share sub-folders such as {some(sorted(shared))}. {_which(sharing, shared)} If "
            f"the folders are the classes, or groups such as patients, list their files in a CSV with the columns "
            f"path, label and group."
        )


def _which(folders: Sequence[str], shared: Collection[str]) -> str:
    """What to do if the folders are not classes."""
    if all(map(split_of, shared)):
        return "If the sub-folders are splits, move them to the top, as train/CLASS, or search only one of the folders."
    if all(is_fold(folder.rpartition("/")[2]) for folder in folders):
        return "Folds are not splits: put one into test/ and the others into train/, or all of them into train/."
    return "If the sub-folders are the classes, rename the folders to train, val and test, or search only one of them."


def _sub_folders(folder: str, files: Sequence[str]) -> set[str]:
    """The names of sub-folders with images, in a form to compare; empty if the folder contains images itself.

    A single sub-folder is replaced by its own sub-folders, if it has any.
    """
    inside = [path[len(folder) + 1 :].split("/") for path in files if _may_be_image(path.rpartition("/")[2])]
    found = set[str]()
    for depth in range(max(map(len, inside), default=0)):
        if any(len(parts) == depth + 1 for parts in inside) or len(found) > 1:
            break
        found = {one_form(parts[depth]).casefold() for parts in inside}
    return found


def _may_be_image(name: str) -> bool:
    """Whether its name is that of an image; files are not opened here."""
    kind, _ = _TYPES.guess_type(name)
    return kind.startswith("image/") if kind else name.casefold() not in _TEXTS
