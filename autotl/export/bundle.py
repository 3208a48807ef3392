"""The bundle: what a search leaves. Weights, plan, preprocessing, classes, metrics and versions; no pickle."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file
from safetensors.torch import save as serialize

from autotl.backbones.catalogue import Catalogue
from autotl.backbones.stages import Stages
from autotl.data.images import UnreadableImage, decode, prepare
from autotl.engine.features import normalise, on_device, pool
from autotl.engine.fit import Fitted
from autotl.engine.heads import LinearHead
from autotl.errors import DataError, StudyError
from autotl.files import write
from autotl.plan import TransferPlan

if TYPE_CHECKING:
    from torch import Tensor

BATCH = 32
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
    stages: Stages
    head: LinearHead

    def probabilities(self, images: "Tensor") -> "Tensor":
        """[N, 3, S, S] uint8, prepared as `plan.input` says → [N, classes], each row adding up to 1."""
        with torch.inference_mode():
            value = self.stages(normalise(images, self.plan.input))
            return self.head(pool(value, self.stages.boundaries[-1], self.plan.head.pooling)).softmax(1)

    def to(self, device: str) -> "Bundle":
        head = LinearHead(self.head.weight.to(device), self.head.bias.to(device))
        return Bundle(self.plan, self.classes, self.metrics, on_device(self.stages, device), head)

    def predict(self, files: Sequence[Path]) -> Iterator[tuple[Path, "np.ndarray | str"]]:
        """Each file with its probabilities [classes], or with the reason why it cannot be read."""
        device = self.head.weight.device
        for start in range(0, len(files), BATCH):
            pixels = [(file, _read(file, self.plan)) for file in files[start : start + BATCH]]
            images = [value for _, value in pixels if not isinstance(value, str)]
            if images:
                rows = iter(self.probabilities(torch.from_numpy(np.stack(images)).to(device)).cpu().numpy())
            for file, value in pixels:
                yield file, value if isinstance(value, str) else next(rows)


def check_target(folder: Path) -> None:
    """Raises: StudyError unless the folder is absent, empty or a bundle: nothing else is ever replaced."""
    if folder.exists() and (not folder.is_dir() or not {file.name for file in folder.iterdir()} <= set(FILES)):
        raise StudyError(f"{folder} holds something that is no bundle; name a new or an empty folder.")


def save(folder: Path, fitted: Fitted, classes: Sequence[str], metrics: dict[str, Any]) -> None:
    """Write a fitted plan as a bundle.

    Raises: StudyError when the folder holds anything else.
    """
    check_target(folder)
    plan, catalogue = fitted.plan, fitted.bench.features.catalogue
    stages = catalogue.build(plan.backbone, plan.weights).cut(plan.cut)
    # Copies, as safetensors refuses what two names share.
    weights = {f"backbone.{name}": value.clone().contiguous() for name, value in stages.state_dict().items()}
    weights["head.weight"], weights["head.bias"] = fitted.head.weight.cpu(), fitted.head.bias.cpu()
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "weights.safetensors", serialize(weights))
    write(folder / "plan.json", plan.to_json())
    write(folder / "preprocessing.json", _json(plan.input.model_dump(mode="json")))
    write(folder / "classes.json", _json(list(classes)))
    write(folder / "versions.json", _json(plan.requires))
    describe(folder, metrics)


def describe(folder: Path, metrics: dict[str, Any]) -> None:
    """Write what was measured into a bundle; last of all, so that a bundle which has it is whole."""
    write(folder / "metrics.json", _json(metrics))


def load(folder: Path, catalogue: Catalogue) -> Bundle:
    """Raises: StudyError for a folder that is no bundle, PlanError or PluginError where it cannot be rebuilt."""
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise StudyError(f"{folder} is no bundle: {', '.join(missing)} missing.")
    plan = TransferPlan.from_json((folder / "plan.json").read_text(), name=str(folder / "plan.json"))
    stages = catalogue.structure(plan.backbone).cut(plan.cut).eval()
    weights = load_file(folder / "weights.safetensors")
    head = LinearHead(weights.pop("head.weight"), weights.pop("head.bias"))
    try:
        stages.load_state_dict({name.removeprefix("backbone."): value for name, value in weights.items()})
    except RuntimeError as error:
        raise StudyError(
            f"{folder} does not fit '{plan.backbone}' as installed here; it was made with "
            f"{', '.join(f'{name} {version[:12]}' for name, version in plan.requires.items())}."
        ) from error
    classes = tuple(json.loads((folder / "classes.json").read_text()))
    metrics = json.loads((folder / "metrics.json").read_text())
    return Bundle(plan, classes, metrics, stages, head)


def _read(file: Path, plan: TransferPlan) -> "np.ndarray | str":
    try:
        return prepare(decode(file.read_bytes(), str(file)), plan.input)
    except (UnreadableImage, DataError, OSError) as error:
        return str(error)


def _json(value: Any) -> str:
    return json.dumps(value, indent=2) + "\n"
