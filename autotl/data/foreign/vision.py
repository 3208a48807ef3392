"""Reading data sets that torchvision has downloaded, with its own classes.

Of these classes only CIFAR's read pickles, and only after checking each file against torchvision's checksum.
"""

import inspect
import io
import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autotl.data.foreign.samples import Sample, Source, Tell, in_class_folders
from autotl.data.pixels import LARGEST_FILE
from autotl.errors import DataError, reason, unknown
from autotl.files import read_regular

_Splits = Mapping[str, Mapping[str, Any]]
_FLAG: _Splits = {"train": {"train": True}, "test": {"train": False}}
_WHOLE: _Splits = {"": {}}


def _named(train: str = "train", val: str = "", test: str = "test") -> _Splits:
    names = {"train": train, "val": val, "test": test}
    return {folder: {"split": name} for folder, name in names.items() if name}


@dataclass(frozen=True)
class Known:
    """A class of torchvision, and the path below its root by which it is recognised."""

    name: str
    mark: str
    splits: _Splits
    """The arguments of each split; the only key is empty if there are no splits."""
    remark: str = ""
    """A note on what is skipped."""
    files: Callable[[Any], list[Path]] | None = None
    """Its image files, for a class that does not return them otherwise."""
    arguments: Mapping[str, Any] = field(default_factory=dict)


KNOWN = (
    Known("CIFAR10", "cifar-10-batches-py", _FLAG),
    Known("CIFAR100", "cifar-100-python", _FLAG),
    Known("MNIST", "MNIST/raw", _FLAG),
    Known("FashionMNIST", "FashionMNIST/raw", _FLAG),
    Known("KMNIST", "KMNIST/raw", _FLAG),
    Known("USPS", "usps.bz2", _FLAG),
    Known("STL10", "stl10_binary", _named(), "STL10's images without a label are skipped."),
    Known("SVHN", "train_32x32.mat", _named(), "SVHN's split 'extra' is skipped."),
    Known("Flowers102", "flowers-102", _named(val="val")),
    Known("OxfordIIITPet", "oxford-iiit-pet", _named(train="trainval"), files=lambda data: data._images),
    Known("Food101", "food-101", _named()),
    Known("DTD", "dtd/dtd", _named(val="val"), "The splits are the first of DTD's ten."),
    Known("FGVCAircraft", "fgvc-aircraft-2013b", _named(val="val")),
    Known("StanfordCars", "stanford_cars", _named()),
    Known("GTSRB", "gtsrb/GTSRB", _named(), files=lambda data: [path for path, _ in data._samples]),
    Known("Country211", "country211/valid", _named(val="valid")),
    Known("RenderedSST2", "rendered-sst2", _named(val="val")),
    Known("Imagenette", "imagenette2", _named(val="val", test="")),
    Known("Imagenette", "imagenette2-320", _named(val="val", test=""), arguments={"size": "320px"}),
    Known("Imagenette", "imagenette2-160", _named(val="val", test=""), arguments={"size": "160px"}),
    Known("EuroSAT", "eurosat/2750", _WHOLE),
    Known("SUN397", "SUN397/ClassName.txt", _WHOLE),
    Known("Caltech101", "caltech101/101_ObjectCategories", _WHOLE),
    Known("Caltech256", "caltech256/256_ObjectCategories", _WHOLE),
)


def at(path: Path) -> tuple[str, Path] | None:
    """The name and the root of the data set if a path is its root, or its folder in the root."""
    for known in KNOWN:
        for root in (path, path.parent):
            if (root / known.mark).exists() and (root == path or path.name == Path(known.mark).parts[0]):
                return known.name, root
    return None


def read(name: str, root: Path, tell: Tell) -> Source:
    """The data set of torchvision with this name below `root`. Nothing is downloaded.

    Raises: DataError.
    """
    marks = [known for known in KNOWN if known.name == name]
    if not marks:
        raise DataError(unknown("torchvision data set", name, sorted({known.name for known in KNOWN})))
    known = next((each for each in marks if (root / each.mark).exists()), None)
    if known is None:
        wanted = " or ".join(repr(each.mark) for each in marks)
        raise DataError(
            f"There is no {wanted} in {str(root)!r}. Use the root that {name} was downloaded to: --root DIR"
        )
    with _torchvision(known, root):
        parts = {split: _open(known, root, arguments) for split, arguments in known.splits.items()}
    if known.remark:
        tell(known.remark)
    samples = (sample for split, data in parts.items() for sample in _samples(known, root, split, data))
    return Source(f"torchvision's {name}", sum(map(len, parts.values())), in_class_folders(samples, tell), None)


def _open(known: Known, root: Path, arguments: Mapping[str, Any]) -> Any:
    import torchvision

    made = getattr(torchvision.datasets, known.name)
    chosen = {**known.arguments, **arguments}
    if "loader" in inspect.signature(made).parameters:
        chosen["loader"] = Path  # the file itself, rather than its pixels
    return made(root, **chosen)


def _samples(known: Known, root: Path, split: str, data: Any) -> Iterator[Sample]:
    classes = getattr(data, "classes", None) or getattr(data, "categories", None)
    files = known.files(data) if known.files else None
    for number in range(len(data)):
        with _torchvision(known, root):
            image, target = data[number]
            at = operator.index(target)
            file = files[number] if files else image if isinstance(image, Path) else getattr(image, "filename", "")
            content, suffix = _file(Path(file)) if file else (_png(image), ".png")
        yield Sample(split, classes[at] if classes else str(at), content, suffix)


def _file(file: Path) -> tuple[bytes, str]:
    return read_regular(file, LARGEST_FILE), file.suffix


def _png(image: Any) -> bytes:
    """An image of Pillow's that was made from an array."""
    out = io.BytesIO()
    image.save(out, "png")
    return out.getvalue()


@contextmanager
def _torchvision(known: Known, root: Path) -> Iterator[None]:
    """Turns torchvision's errors, which are of any kind for damaged files, into DataErrors."""
    try:
        yield
    except Exception as error:
        raise DataError(
            f"torchvision cannot read {known.name} in {str(root)!r}: {reason(error)}. "
            f"Let torchvision download it again."
        ) from None
