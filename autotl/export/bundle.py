"""The bundle, a search's result: weights, plan, preprocessing, classes, metrics and versions; no pickle.

That of an ensemble has the weights and plans of several models. It includes the SHA-256 of its files. Loading checks
all of its content, because it may be damaged or untrusted.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Annotated, Any, Self

import numpy as np
import torch
from PIL import Image
from pydantic import AfterValidator, Field, TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load as deserialize
from safetensors.torch import save as serialize
from torch import Tensor

from autotl.backbones.catalogue import RANDOM, Catalogue
from autotl.backbones.weights import Given
from autotl.data import images
from autotl.data.images import UnreadableImage
from autotl.data.pixels import alone_if_huge, read_file
from autotl.engine.calibration import Calibration
from autotl.engine.exact import exact
from autotl.engine.head_kinds import restored
from autotl.engine.memory import Memory
from autotl.errors import PlanError, PluginError, StudyError, WeightsError, one_line
from autotl.export import card
from autotl.export.contents import FILES, WEIGHTS, damaged, parsed, read_files, write_files
from autotl.export.graph import AnyGraph, Average, Graph
from autotl.files import as_json, holds_only, replacing, settle, where_it_is
from autotl.plan import Ensemble, Input, Made, TransferPlan, inputs_of, made_by
from autotl.registry import CONTENT, on_stderr, to_install

if TYPE_CHECKING:
    from autotl.engine.fit import Fitted

BATCH = 32
HEAD = "head."
"""What the names of the head's tensors start with."""
TEMPERATURE = f"{HEAD}temperature"
"""The name of the temperature of the model's probabilities, [1] float64, if it is not 1."""
MEMBER = "member{}."
"""What the names of an ensemble's tensors start with, by the number of the model, from 1."""

Source = Path | Image.Image
"""An image file, or an image in memory."""
_one_in_memory = Lock()
"""Images in memory are prepared one at a time: two of them may be the same object, which is decoded when it is used."""


def _usable(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        raise ValueError("two classes have the same name")
    if not all(name.isprintable() for name in names):
        raise ValueError("a class name has unprintable characters")
    return names


_CLASSES = TypeAdapter(Annotated[tuple[str, ...], Field(min_length=2), AfterValidator(_usable)])
_METRICS = TypeAdapter(card.Metrics)
_INPUTS = TypeAdapter(tuple[Input, ...])


@dataclass(frozen=True)
class Bundle:
    """A trained model, or an ensemble, with everything needed to use it."""

    plan: Made
    classes: tuple[str, ...]
    metrics: dict[str, Any]
    license: str
    """The terms of its weights."""
    graph: AnyGraph

    @property
    def calibration(self) -> Calibration | None:
        """None for a bundle without one, such as an older one."""
        found = self.metrics.get("calibration")
        return Calibration.model_validate(found) if found else None

    def to(self, device: str) -> Self:
        """This model, moved to a device."""
        self.graph.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return self

    def probabilities(self, *images: Tensor) -> Tensor:
        """[N, 3, S, S] uint8, prepared according to each of `graph.inputs` → [N, classes]; each row sums to 1."""
        device = str(self.graph.device)
        with exact(device), torch.inference_mode(), on_stderr():
            return Memory(device).in_parts(self.graph, *(each.to(device) for each in images))

    def predict(self, sources: Sequence[Source]) -> Iterator["np.ndarray | str"]:
        """For each image its probabilities, [classes], or the reason why it has none."""
        prepared = partial(_pixels, inputs=self.graph.inputs)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for start in range(0, len(sources), BATCH):
                with images.without_warnings():
                    pixels = list(pool.map(prepared, sources[start : start + BATCH]))
                readable = [value for value in pixels if not isinstance(value, str)]
                if readable:
                    batches = (torch.from_numpy(np.stack(each)) for each in zip(*readable, strict=True))
                    rows = iter(self.probabilities(*batches).cpu().numpy())
                for value in pixels:
                    yield value if isinstance(value, str) else _finite(next(rows))


def check_target(folder: Path) -> None:
    """Raises: StudyError unless the folder is missing, empty or a bundle: nothing else is ever replaced."""
    settle(folder)
    if not holds_only(folder, FILES, mark="plan.json"):
        raise StudyError(f"{folder} has files that are not a bundle's; use a new or empty folder.")


def save(
    folder: Path,
    fitted: "Fitted",
    classes: Sequence[str],
    metrics: dict[str, Any],
    calibration: Calibration | None = None,
) -> None:
    """Write a fitted plan as a bundle, with the temperature of `calibration`; an existing bundle in the folder is
    replaced.

    Raises: StudyError if the folder has anything else.
    """
    plan, model = fitted.plan, fitted.model
    assert model.head is not None
    # Copies, because safetensors refuses tensors that share memory.
    weights = {f"backbone.{name}": value.cpu().clone() for name, value in model.stages.state_dict().items()}
    weights |= {f"{HEAD}{name}": value.cpu().clone() for name, value in model.head.state_dict().items()}
    terms = card.license(plan, model.bench.catalogue)
    _save(folder, plan, weights, as_json(list(classes)), metrics, terms, calibration)


def join(
    folder: Path, members: Sequence[Path], metrics: dict[str, Any], calibration: Calibration | None = None
) -> None:
    """Write the bundle of an ensemble from those of its models, which have the same classes; as `save`.

    Only the mean of the models has a temperature.

    Raises: StudyError as `save`, or if one of them is damaged.
    """
    each = [read_files(member) for member in members]
    weights = {
        f"{MEMBER.format(number)}{name}": value
        for number, files in enumerate(each, 1)
        for name, value in deserialize(files[WEIGHTS]).items()
        if name != TEMPERATURE
    }
    made = Ensemble(members=tuple(TransferPlan.from_json(files["plan.json"]) for files in each))
    terms = card.together([files["LICENSE"].decode() for files in each])
    _save(folder, made, weights, each[0]["classes.json"].decode(), metrics, terms, calibration)


def _save(
    folder: Path,
    made: Made,
    weights: dict[str, Tensor],
    classes: str,
    metrics: dict[str, Any],
    terms: str,
    calibration: Calibration | None,
) -> None:
    check_target(folder)
    if calibration:
        metrics = {**metrics, "calibration": calibration.model_dump(mode="json")}
        if calibration.temperature != 1:
            weights[TEMPERATURE] = torch.tensor([calibration.temperature], dtype=torch.float64)
    versions = {name: version for plan in made.members for name, version in plan.requires.items()}
    if len(made.members) > 1:
        del versions["stages"]  # each plan has its own
    contents: dict[str, str | bytes] = {
        WEIGHTS: serialize({name: value.contiguous() for name, value in weights.items()}),
        "plan.json": made.to_json(),
        "preprocessing.json": preparation(made),
        "classes.json": classes,
        "metrics.json": as_json(metrics),
        "versions.json": as_json(versions),
        "LICENSE": terms,
    }
    with replacing(folder) as place:
        write_files(place, {name: text.encode() if isinstance(text, str) else text for name, text in contents.items()})


def preparation(made: Made) -> str:
    """`preprocessing.json`: how an image is prepared, or, for models with different inputs, a list of that."""
    first, *others = (input.model_dump(mode="json") for input in inputs_of(made))
    return as_json([first, *others] if others else first)


def describe(folder: Path, metrics: dict[str, Any]) -> None:
    """Write metrics into a bundle; its calibration stays."""
    settle(folder)
    files = read_files(folder)
    if calibration := parsed(_METRICS, folder, files, "metrics.json").calibration:
        metrics = {**metrics, "calibration": calibration.model_dump(mode="json")}
    contents = {**files, "metrics.json": as_json(metrics).encode()}
    with replacing(folder) as made:
        write_files(made, contents)


def copy(source: Path, folder: Path) -> None:
    """Copy the bundle in `source` into an empty folder: only its own files, as regular files without links.

    Raises: StudyError if the bundle is damaged.
    """
    write_files(folder, read_files(source))


def plan_of(folder: Path) -> Made | None:
    """The plan of the bundle in a folder, or those of its ensemble; None if there is no bundle or it is damaged."""
    found = validation_of(folder)
    return found[0] if found else None


def validation_of(folder: Path) -> tuple[Made, dict[str, float]] | None:
    """The plan of the bundle in a folder and its metrics on `val`; None as in `plan_of`."""
    if not where_it_is(folder).exists():
        return None
    try:
        files = read_files(folder)
        made = made_by(files["plan.json"])
        parsed(_METRICS, folder, files, "metrics.json")
        return made, json.loads(files["metrics.json"])["validation"]
    except (StudyError, PlanError):
        return None


def calibration_of(folder: Path) -> Calibration | None:
    """The calibration of a bundle's model, if it has one.

    Raises: StudyError if the bundle is damaged.
    """
    return parsed(_METRICS, folder, read_files(folder), "metrics.json").calibration


def given(named: Mapping[str, Path]) -> dict[str, Given]:
    """The weights that the user named for backbones: files, or bundles with that backbone.

    Raises: StudyError or PlanError if a folder is not a bundle or is damaged, WeightsError if it has another backbone.
    """
    return {name: _given(name, path) if path.is_dir() else Given(path) for name, path in named.items()}


def _given(name: str, folder: Path) -> Given:
    files = read_files(folder)
    plan = made_by(files["plan.json"], name=str(folder / "plan.json"))
    if isinstance(plan, Ensemble):
        raise WeightsError(
            f"{folder} is an ensemble of {len(plan.members)} models, none of which is the weights of '{name}' alone. "
            "Use the bundle of one model, such as a folder in members/ of its study."
        )
    backbone = plan.backbone.removesuffix(RANDOM)
    if backbone != name:
        raise WeightsError(f"{folder} has weights of '{backbone}', not of '{name}'. Use --weights {backbone}={folder}")
    terms = files["LICENSE"].decode(errors="replace")
    return Given(where_it_is(folder) / WEIGHTS, plan.cut, terms)


def load(folder: Path, catalogue: Catalogue) -> Bundle:
    """Raises: StudyError if it is not a bundle or damaged, PlanError or PluginError if the model cannot be rebuilt."""
    files = read_files(folder)
    made = made_by(files["plan.json"], name=str(folder / "plan.json"))
    classes = parsed(_CLASSES, folder, files, "classes.json")
    if _prepared(folder, files) != inputs_of(made):
        raise damaged(folder, "preprocessing.json differs from its plan")
    parsed(_METRICS, folder, files, "metrics.json")
    for plan in made.members:
        _require_installed(folder, plan, catalogue)
    weights, temperature = _weights(folder, made, files[WEIGHTS])
    graphs = [_graph(folder, plan, own, catalogue) for plan, own in zip(made.members, weights, strict=True)]
    if len(graphs) > 1:
        graph: AnyGraph = Average(graphs, temperature)
    else:
        (graph,) = graphs
        graph.temperature = temperature
    licence = files["LICENSE"].decode(errors="replace")
    loaded = Bundle(made, classes, json.loads(files["metrics.json"]), licence, graph)
    _try_out(loaded, folder)
    return loaded


def _prepared(folder: Path, files: Mapping[str, bytes]) -> tuple[Input, ...]:
    name = "preprocessing.json"
    if files[name].lstrip().startswith(b"["):
        return parsed(_INPUTS, folder, files, name)
    return (Input.from_json(files[name], name=str(folder / name)),)


def _weights(folder: Path, made: Made, content: bytes) -> tuple[list[dict[str, Tensor]], float]:
    """The tensors of each model by name, and the temperature."""
    try:
        every = deserialize(content)
    except SafetensorError as error:
        raise damaged(folder, f"{WEIGHTS} cannot be read: {error}") from None
    temperature = _temperature(folder, every.pop(TEMPERATURE, None))
    if isinstance(made, TransferPlan):
        return [every], temperature
    starts = [MEMBER.format(number) for number in range(1, len(made.members) + 1)]
    found = [{name.removeprefix(start): every[name] for name in every if name.startswith(start)} for start in starts]
    if sum(map(len, found)) < len(every):
        raise damaged(folder, f"{WEIGHTS} has tensors of no model in plan.json")
    return found, temperature


def _temperature(folder: Path, stored: Tensor | None) -> float:
    if stored is None:
        return 1.0
    if stored.shape != (1,) or not 0 < float(stored) < math.inf:
        raise damaged(folder, f"{TEMPERATURE} is not a positive number")
    return float(stored)


def _graph(folder: Path, plan: TransferPlan, weights: dict[str, Tensor], catalogue: Catalogue) -> Graph:
    stages = catalogue.structure(plan.backbone, plan.input).cut(plan.cut).eval()
    of_head = {name.removeprefix(HEAD): weights.pop(name) for name in list(weights) if name.startswith(HEAD)}
    try:
        head = restored(plan.head, of_head)
    except KeyError as error:
        raise damaged(folder, f"its head is {plan.head.kind}, but {HEAD}{error.args[0]} is missing or extra") from None
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
    draw = torch.Generator().manual_seed(0)
    shapes = ((1, 3, input.size, input.size) for input in made.graph.inputs)
    noise = (torch.randint(0, 256, shape, dtype=torch.uint8, generator=draw) for shape in shapes)
    try:
        found = made.probabilities(*noise)
    except RuntimeError as error:
        raise damaged(folder, f"its head does not fit its features: {one_line(error, 200)}") from error
    if found.shape != (1, len(made.classes)):
        raise damaged(folder, f"its head has {found.shape[1]} classes, but classes.json has {len(made.classes)}")
    if not found.isfinite().all():
        raise damaged(folder, "its weights give NaN instead of probabilities")


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


def _pixels(source: Source, inputs: Sequence[Input]) -> "list[np.ndarray] | str":
    try:
        image = images.open_image(read_file(source)) if isinstance(source, Path) else source
        with nullcontext() if isinstance(source, Path) else _one_in_memory, alone_if_huge(image):
            upright = images.upright(image)
            return [images.fit(upright, input) for input in inputs]
    except UnreadableImage as error:
        return str(error)


def _finite(row: np.ndarray) -> "np.ndarray | str":
    """The model's probabilities for an image, or why they are invalid."""
    return row if np.isfinite(row).all() else "the model gives NaN instead of probabilities for it"
