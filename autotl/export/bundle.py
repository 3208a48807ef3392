"""The bundle: what a search leaves. Weights, plan, preprocessing, classes, metrics and versions; no pickle."""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors.torch import load as deserialize
from safetensors.torch import save as serialize
from torch import Tensor

from autotl.backbones.catalogue import Catalogue
from autotl.data.images import UnreadableImage, decode, prepare
from autotl.engine.device import in_parts
from autotl.engine.exact import exact
from autotl.engine.fit import Fitted
from autotl.engine.heads import LinearHead
from autotl.errors import PluginError, StudyError
from autotl.export.graph import Graph
from autotl.files import as_json, holds_only, replacing, settle, where_it_is, write
from autotl.plan import TransferPlan

BATCH = 32
READS = 4
"""How often a bundle is read that changes meanwhile."""
FILES = (
    "weights.safetensors",
    "plan.json",
    "preprocessing.json",
    "classes.json",
    "metrics.json",
    "versions.json",
)


@dataclass(frozen=True)
class Bundle:
    """A trained model with all that is needed to use it."""

    plan: TransferPlan
    classes: tuple[str, ...]
    metrics: dict[str, Any]
    graph: Graph

    def to(self, device: str) -> Self:
        """This model, moved to a device."""
        self.graph.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return self

    def probabilities(self, images: Tensor) -> Tensor:
        """[N, 3, S, S] uint8, prepared as `plan.input` says → [N, classes], each row adding up to 1."""
        with exact(str(self.graph.device)), torch.inference_mode():
            return in_parts(self.graph, images.to(self.graph.device))

    def predict(self, files: Sequence[Path]) -> Iterator[tuple[Path, "np.ndarray | str"]]:
        """Each file with its probabilities [classes], or with the reason why it cannot be read."""
        for start in range(0, len(files), BATCH):
            pixels = [(file, _read(file, self.plan)) for file in files[start : start + BATCH]]
            images = [value for _, value in pixels if not isinstance(value, str)]
            if images:
                rows = iter(self.probabilities(torch.from_numpy(np.stack(images))).cpu().numpy())
            for file, value in pixels:
                yield file, value if isinstance(value, str) else next(rows)


def check_target(folder: Path) -> None:
    """Raises: StudyError unless the folder is absent, empty or a bundle: nothing else is ever replaced."""
    settle(folder)
    if not holds_only(folder, FILES):
        raise StudyError(f"{folder} holds something that is no bundle; name a new or an empty folder.")


def save(folder: Path, fitted: Fitted, classes: Sequence[str], metrics: dict[str, Any]) -> None:
    """Write a fitted plan as a bundle, which takes the place of the one that lies there.

    Raises: StudyError when the folder holds anything else.
    """
    check_target(folder)
    plan, model = fitted.plan, fitted.model
    assert model.head is not None
    # Copies, as safetensors refuses what two names share.
    weights = {f"backbone.{name}": value.cpu().clone() for name, value in model.stages.state_dict().items()}
    weights |= {"head.weight": model.head.weight.cpu(), "head.bias": model.head.bias.cpu()}
    weights = {name: value.contiguous() for name, value in weights.items()}
    with replacing(folder) as made:
        write(made / "weights.safetensors", serialize(weights))
        write(made / "plan.json", plan.to_json())
        write(made / "preprocessing.json", as_json(plan.input.model_dump(mode="json")))
        write(made / "classes.json", as_json(list(classes)))
        write(made / "versions.json", as_json(plan.requires))
        describe(made, metrics)


def describe(folder: Path, metrics: dict[str, Any]) -> None:
    """Write what was measured into a bundle."""
    write(folder / "metrics.json", as_json(metrics))


def plan_of(folder: Path) -> TransferPlan | None:
    """The plan of the bundle that lies there, None where there is none."""
    file = where_it_is(folder) / "plan.json"
    return TransferPlan.from_json(file.read_text(), name=str(file)) if file.exists() else None


def load(folder: Path, catalogue: Catalogue) -> Bundle:
    """Raises: StudyError for a folder that is no bundle, PlanError or PluginError where it cannot be rebuilt."""
    files = _files(folder)
    plan = TransferPlan.from_json(files["plan.json"], name=str(folder / "plan.json"))
    _require_installed(folder, plan, catalogue)
    stages = catalogue.structure(plan.backbone, plan.input).cut(plan.cut).eval()
    weights = deserialize(files["weights.safetensors"])
    head = LinearHead(weights.pop("head.weight"), weights.pop("head.bias"))
    try:
        stages.load_state_dict({name.removeprefix("backbone."): value for name, value in weights.items()})
    except RuntimeError as error:
        raise StudyError(
            f"{folder} does not fit '{plan.backbone}' as installed here; it was made with "
            f"{', '.join(f'{name} {version[:12]}' for name, version in plan.requires.items())}."
        ) from error
    classes = tuple(json.loads(files["classes.json"]))
    return Bundle(plan, classes, json.loads(files["metrics.json"]), Graph(plan, stages, head))


def _require_installed(folder: Path, plan: TransferPlan, catalogue: Catalogue) -> None:
    """Raises: PluginError, with what to install, when the backbone's family is not here."""
    family = plan.backbone.partition(":")[0]
    if family in catalogue.host.backbones:
        return
    known = ("stages", "autotl", "torch", "torchvision", "timm", "pillow", "scipy")
    names = [f"{name}=={version}" for name, version in plan.requires.items() if name not in known]
    raise PluginError(
        f"{folder} needs backbones of the family '{family}', which is not here or is broken. "
        f"Install its plugin (pip install {' '.join(names)}), and see: autotl doctor"
    )


def _files(folder: Path) -> dict[str, bytes]:
    """The files of one bundle: a search may be replacing it by the next while they are read."""
    for _ in range(READS):
        place = where_it_is(folder)
        try:
            before = (place / "plan.json").read_bytes()
            files = {name: (place / name).read_bytes() for name in FILES}
            if files["plan.json"] == before == (where_it_is(folder) / "plan.json").read_bytes():
                return files
        except FileNotFoundError:
            pass
        time.sleep(0.05)
    missing = [name for name in FILES if not (folder / name).is_file()]
    raise StudyError(f"{folder} is no bundle: {', '.join(missing) or 'something'} missing.")


def _read(file: Path, plan: TransferPlan) -> "np.ndarray | str":
    try:
        return prepare(decode(file.read_bytes()), plan.input)
    except (UnreadableImage, OSError) as error:
        return str(error)
