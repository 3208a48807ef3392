"""The bundle, a search's result: weights, plan, preprocessing, classes, metrics and versions; no pickle.

It includes the SHA-256 of its files. Loading checks all of its content, because it may be damaged or untrusted.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Annotated, Any, Self, TypeVar

import numpy as np
import torch
from PIL import Image
from pydantic import AfterValidator, Field, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as deserialize
from safetensors.torch import save as serialize
from torch import Tensor

from autotl.backbones.catalogue import RANDOM, Catalogue
from autotl.backbones.weights import Given
from autotl.data import images
from autotl.data.images import UnreadableImage
from autotl.data.pixels import alone_if_huge, read_file
from autotl.engine.exact import exact
from autotl.engine.head_kinds import restored
from autotl.engine.memory import Memory
from autotl.errors import PlanError, PluginError, StudyError, WeightsError, one_line
from autotl.export import card
from autotl.export.graph import Graph
from autotl.files import as_json, holds_only, read_regular, replacing, settle, where_it_is, write
from autotl.plan import Input, TransferPlan
from autotl.registry import CONTENT, on_stderr, to_install

if TYPE_CHECKING:
    from autotl.engine.fit import Fitted

BATCH = 32
READS = 4
"""How many times to read a bundle that changes while it is read."""
WEIGHTS = "weights.safetensors"
HEAD = "head."
"""What the names of the head's tensors start with."""
CARRIED = (
    WEIGHTS,
    "plan.json",
    "preprocessing.json",
    "classes.json",
    "metrics.json",
    "versions.json",
    "LICENSE",
)
HASHES = "hashes.json"
"""The file with the SHA-256 of each of them."""
README = "README.md"
"""The model card. Users may edit it: autotl does not read it."""
FILES = (*CARRIED, HASHES, README)
USE = "    autotl predict . photo.jpg"
"""The usage example in the model card."""
LARGEST = {WEIGHTS: 1 << 36}
"""The most bytes of a file; other files are JSON or text of at most `LARGEST_TEXT`."""
LARGEST_TEXT = 1 << 24

Source = Path | Image.Image
"""An image file, or an image in memory."""
_one_in_memory = Lock()
"""Images in memory are prepared one at a time: two of them may be the same object, which is decoded when it is used."""
T = TypeVar("T")


def _usable(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        raise ValueError("two classes have the same name")
    if not all(name.isprintable() for name in names):
        raise ValueError("a class name has unprintable characters")
    return names


_CLASSES = TypeAdapter(Annotated[tuple[str, ...], Field(min_length=2), AfterValidator(_usable)])
_METRICS = TypeAdapter(card.Metrics)
_SHA256 = TypeAdapter(dict[str, str])


@dataclass(frozen=True)
class Bundle:
    """A trained model with everything needed to use it."""

    plan: TransferPlan
    classes: tuple[str, ...]
    metrics: dict[str, Any]
    license: str
    """The terms of its weights."""
    graph: Graph

    def to(self, device: str) -> Self:
        """This model, moved to a device."""
        self.graph.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return self

    def probabilities(self, images: Tensor) -> Tensor:
        """[N, 3, S, S] uint8, prepared according to `plan.input` → [N, classes]; each row sums to 1."""
        device = str(self.graph.device)
        with exact(device), torch.inference_mode(), on_stderr():
            return Memory(device).in_parts(self.graph, images.to(device))

    def predict(self, sources: Sequence[Source]) -> Iterator["np.ndarray | str"]:
        """For each image its probabilities, [classes], or the reason why it has none."""
        prepared = partial(_pixels, preparation=self.plan.input)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for start in range(0, len(sources), BATCH):
                with images.without_warnings():
                    pixels = list(pool.map(prepared, sources[start : start + BATCH]))
                readable = [value for value in pixels if not isinstance(value, str)]
                if readable:
                    rows = iter(self.probabilities(torch.from_numpy(np.stack(readable))).cpu().numpy())
                for value in pixels:
                    yield value if isinstance(value, str) else _finite(next(rows))


def check_target(folder: Path) -> None:
    """Raises: StudyError unless the folder is missing, empty or a bundle: nothing else is ever replaced."""
    settle(folder)
    if not holds_only(folder, FILES, mark="plan.json"):
        raise StudyError(f"{folder} has files that are not a bundle's; use a new or empty folder.")


def save(folder: Path, fitted: "Fitted", classes: Sequence[str], metrics: dict[str, Any]) -> None:
    """Write a fitted plan as a bundle; an existing bundle in the folder is replaced.

    Raises: StudyError if the folder has anything else.
    """
    check_target(folder)
    plan, model = fitted.plan, fitted.model
    assert model.head is not None
    # Copies, because safetensors refuses tensors that share memory.
    weights = {f"backbone.{name}": value.cpu().clone() for name, value in model.stages.state_dict().items()}
    weights |= {f"{HEAD}{name}": value.cpu().clone() for name, value in model.head.state_dict().items()}
    contents: dict[str, str | bytes] = {
        WEIGHTS: serialize({name: value.contiguous() for name, value in weights.items()}),
        "plan.json": plan.to_json(),
        "preprocessing.json": as_json(plan.input.model_dump(mode="json")),
        "classes.json": as_json(list(classes)),
        "metrics.json": as_json(metrics),
        "versions.json": as_json(plan.requires),
        "LICENSE": card.license(plan, model.bench.catalogue),
    }
    with replacing(folder) as made:
        _write(made, {name: text.encode() if isinstance(text, str) else text for name, text in contents.items()})


def describe(folder: Path, metrics: dict[str, Any]) -> None:
    """Write metrics into a bundle."""
    settle(folder)
    contents = {**_files(folder), "metrics.json": as_json(metrics).encode()}
    with replacing(folder) as made:
        _write(made, contents)


def copy(source: Path, folder: Path) -> None:
    """Copy the bundle in `source` into an empty folder: only its own files, as regular files without links.

    Raises: StudyError if the bundle is damaged.
    """
    _write(folder, _files(source))


def plan_of(folder: Path) -> TransferPlan | None:
    """The plan of the bundle in a folder, None if there is no bundle or it is damaged."""
    found = validation_of(folder)
    return found[0] if found else None


def validation_of(folder: Path) -> tuple[TransferPlan, dict[str, float]] | None:
    """The plan of the bundle in a folder and its metrics on `val`; None as in `plan_of`."""
    if not where_it_is(folder).exists():
        return None
    try:
        files = _files(folder)
        plan = TransferPlan.from_json(files["plan.json"])
        _parsed(_METRICS, folder, files, "metrics.json")
        return plan, json.loads(files["metrics.json"])["validation"]
    except (StudyError, PlanError):
        return None


def given(named: Mapping[str, Path]) -> dict[str, Given]:
    """The weights that the user named for backbones: files, or bundles with that backbone.

    Raises: StudyError or PlanError if a folder is not a bundle or is damaged, WeightsError if it has another backbone.
    """
    return {name: _given(name, path) if path.is_dir() else Given(path) for name, path in named.items()}


def _given(name: str, folder: Path) -> Given:
    files = _files(folder)
    plan = TransferPlan.from_json(files["plan.json"], name=str(folder / "plan.json"))
    backbone = plan.backbone.removesuffix(RANDOM)
    if backbone != name:
        raise WeightsError(f"{folder} has weights of '{backbone}', not of '{name}'. Use --weights {backbone}={folder}")
    terms = files["LICENSE"].decode(errors="replace")
    return Given(where_it_is(folder) / WEIGHTS, plan.cut, terms)


def load(folder: Path, catalogue: Catalogue) -> Bundle:
    """Raises: StudyError if it is not a bundle or damaged, PlanError or PluginError if the model cannot be rebuilt."""
    files = _files(folder)
    plan = TransferPlan.from_json(files["plan.json"], name=str(folder / "plan.json"))
    classes = _parsed(_CLASSES, folder, files, "classes.json")
    if Input.from_json(files["preprocessing.json"], name=str(folder / "preprocessing.json")) != plan.input:
        raise _damaged(folder, "preprocessing.json differs from its plan")
    _parsed(_METRICS, folder, files, "metrics.json")
    _require_installed(folder, plan, catalogue)
    graph = _graph(folder, plan, files[WEIGHTS], catalogue)
    licence = files["LICENSE"].decode(errors="replace")
    made = Bundle(plan, classes, json.loads(files["metrics.json"]), licence, graph)
    _try_out(made, folder)
    return made


def _graph(folder: Path, plan: TransferPlan, content: bytes, catalogue: Catalogue) -> Graph:
    stages = catalogue.structure(plan.backbone, plan.input).cut(plan.cut).eval()
    try:
        weights = deserialize(content)
    except SafetensorError as error:
        raise _damaged(folder, f"{WEIGHTS} cannot be read: {error}") from None
    of_head = {name.removeprefix(HEAD): weights.pop(name) for name in list(weights) if name.startswith(HEAD)}
    try:
        head = restored(plan.head, of_head)
    except KeyError as error:
        raise _damaged(folder, f"its head is {plan.head.kind}, but {HEAD}{error.args[0]} is missing or extra") from None
    try:
        stages.load_state_dict({name.removeprefix("backbone."): value for name, value in weights.items()})
    except RuntimeError as error:
        raise StudyError(
            f"{folder} does not fit the installed version of '{plan.backbone}'; it was made with "
            f"{', '.join(f'{name} {version[:12]}' for name, version in plan.requires.items())}."
        ) from error
    return Graph(plan, stages, head)


def _try_out(made: Bundle, folder: Path) -> None:
    """Raises: StudyError if the model does not give a probability for each class."""
    size = made.plan.input.size
    noise = torch.randint(0, 256, (1, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    try:
        found = made.probabilities(noise)
    except RuntimeError as error:
        raise _damaged(folder, f"its head does not fit its features: {one_line(error, 200)}") from error
    if found.shape != (1, len(made.classes)):
        raise _damaged(folder, f"its head has {found.shape[1]} classes, but classes.json has {len(made.classes)}")
    if not found.isfinite().all():
        raise _damaged(folder, "its weights give NaN instead of probabilities")


def _parsed(kind: TypeAdapter[T], folder: Path, files: Mapping[str, bytes], name: str) -> T:
    try:
        return kind.validate_json(files[name], strict=True)
    except ValidationError as error:
        raise _damaged(folder, f"{name}: {error.errors()[0]['msg']}") from None


def _damaged(folder: Path, why: str) -> StudyError:
    return StudyError(
        f"{folder} is damaged: {why}. Get it again; if it belongs to a study, rerun the search to make it again."
    )


def _require_installed(folder: Path, plan: TransferPlan, catalogue: Catalogue) -> None:
    """Raises: PluginError, with what to install, if the backbone's family is not installed."""
    family = plan.backbone.partition(":")[0]
    if family in catalogue.host.backbones:
        catalogue.card(plan.backbone)  # raises for an unknown backbone, with the closest known name
        owner = catalogue.owner(plan.backbone)
        wanted = plan.requires.get(owner.distribution, owner.version)
        if owner.file and wanted != owner.version:
            raise PluginError(
                f"{folder} was trained with {owner.distribution} {wanted}, but {owner.file} is {owner.version} now. "
                f"Restore the file, or name a copy of it: --plugin {owner.distribution}"
            )
        return
    files = [name for name, version in plan.requires.items() if version.startswith(CONTENT)]
    if files:
        raise PluginError(
            f"{folder} needs backbones of the family '{family}', which one of these files registered: "
            f"{', '.join(files)}. It does not exist any more or is broken: name it with --plugin FILE.py"
        )
    known = ("stages", "autotl", "torch", "torchvision", "timm", "pillow", "scipy")
    others = {name: version for name, version in plan.requires.items() if name not in known}
    raise PluginError(
        f"{folder} needs backbones of the family '{family}', whose plugin is not installed or is broken. "
        f"Install it{to_install(others)}, then check with: autotl doctor"
    )


def _write(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write a bundle's files, with their hashes and the model card."""
    for name in CARRIED:
        write(folder / name, contents[name])
    write(folder / HASHES, as_json({name: _sha256(contents[name]) for name in CARRIED}))
    plan = TransferPlan.from_json(contents["plan.json"])
    metrics = card.Metrics.model_validate_json(contents["metrics.json"])
    write(folder / README, card.readme(plan, json.loads(contents["classes.json"]), metrics, USE))


def _files(folder: Path) -> dict[str, bytes]:
    """A bundle's files, checked. Repeats if the check fails, because a search may be replacing the bundle.

    Raises: StudyError.
    """
    for _ in range(READS):
        try:
            return _checked(where_it_is(folder), folder)
        except StudyError as error:
            wrong = error
            time.sleep(0.05)
    raise wrong


def _checked(place: Path, folder: Path) -> dict[str, bytes]:
    """`place` is where the bundle `folder` is at the moment."""
    missing = [name for name in (*CARRIED, HASHES) if not (place / name).exists()]
    if missing:
        raise StudyError(f"{folder} is not a bundle: {', '.join(missing)} missing.")
    contents = {}
    for name in (*CARRIED, HASHES):
        try:
            contents[name] = read_regular(place / name, LARGEST.get(name, LARGEST_TEXT))
        except OSError as error:
            raise _damaged(folder, f"{name} cannot be read: {error.strerror}") from None
    hashes = _parsed(_SHA256, folder, contents, HASHES)
    for name in CARRIED:
        if hashes.get(name) != _sha256(contents[name]):
            raise _damaged(folder, f"{name} has changed since it was written: its SHA-256 differs")
    return contents


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _pixels(source: Source, preparation: Input) -> "np.ndarray | str":
    try:
        image = images.open_image(read_file(source)) if isinstance(source, Path) else source
        with nullcontext() if isinstance(source, Path) else _one_in_memory, alone_if_huge(image):
            return images.fit(images.upright(image), preparation)
    except UnreadableImage as error:
        return str(error)


def _finite(row: np.ndarray) -> "np.ndarray | str":
    """The model's probabilities for an image, or why they are invalid."""
    return row if np.isfinite(row).all() else "the model gives NaN instead of probabilities for it"
