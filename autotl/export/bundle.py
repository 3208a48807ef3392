"""The bundle: what a search leaves. Weights, plan, preprocessing, classes, metrics and versions; no pickle."""

import json
import shutil
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
    _settle(folder)
    if folder.exists() and (not folder.is_dir() or not {*_visible(folder)} <= set(FILES)):
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
    # Beside it first: whoever reads the bundle meanwhile, or kills this process, never has half of two.
    made, old = _beside(folder)
    for left in (made, old):
        shutil.rmtree(left, ignore_errors=True)
    made.mkdir(parents=True)
    write(made / "weights.safetensors", serialize(weights))
    write(made / "plan.json", plan.to_json())
    write(made / "preprocessing.json", _json(plan.input.model_dump(mode="json")))
    write(made / "classes.json", _json(list(classes)))
    write(made / "versions.json", _json(plan.requires))
    describe(made, metrics)
    if folder.exists():
        folder.rename(old)
    made.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def describe(folder: Path, metrics: dict[str, Any]) -> None:
    """Write what was measured into a bundle."""
    write(folder / "metrics.json", _json(metrics))


def plan_of(folder: Path) -> TransferPlan | None:
    """The plan of the bundle that lies there, None where there is none."""
    _settle(folder)
    file = folder / "plan.json"
    return TransferPlan.from_json(file.read_text(), name=str(file)) if file.exists() else None


def load(folder: Path, catalogue: Catalogue) -> Bundle:
    """Raises: StudyError for a folder that is no bundle, PlanError or PluginError where it cannot be rebuilt."""
    _settle(folder)
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise StudyError(f"{folder} is no bundle: {', '.join(missing)} missing.")
    plan = plan_of(folder)
    assert plan is not None
    stages = catalogue.structure(plan.backbone, plan.input).cut(plan.cut).eval()
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


def _settle(folder: Path) -> None:
    """Put back what a process that was killed while replacing the bundle had laid aside."""
    _, old = _beside(folder)
    if old.exists() and not folder.exists():
        old.rename(folder)


def _beside(folder: Path) -> tuple[Path, Path]:
    """Where a new bundle is made, and where the one that it replaces is laid."""
    return folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")


def _visible(folder: Path) -> Iterator[str]:
    return (file.name for file in folder.iterdir() if not file.name.startswith("."))


def _read(file: Path, plan: TransferPlan) -> "np.ndarray | str":
    try:
        return prepare(decode(file.read_bytes(), str(file)), plan.input)
    except (UnreadableImage, DataError, OSError) as error:
        return str(error)


def _json(value: Any) -> str:
    return json.dumps(value, indent=2) + "\n"
