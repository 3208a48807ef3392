"""Exporting: a model for those who do not have autotl, compared on real image files before it is handed over."""

import runpy
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch

from autotl.errors import StudyError
from autotl.export.bundle import FILES, WEIGHTS, Bundle, copy
from autotl.export.card import Metrics, readme
from autotl.export.formats import FORMATS, Format, Model
from autotl.files import as_json, holds_only, replacing, settle, write

BUNDLE = "bundle"
KINDS = (BUNDLE, *FORMATS)
STANDALONE = Path(__file__).parent / "standalone"
EXPORTED = (
    *(form.file for form in FORMATS.values()),
    "preprocessing.json",
    "preprocess.py",
    "predict.py",
    "classes.json",
    "plan.json",
    "metrics.json",
    "LICENSE",
    "README.md",
)
USE = """    python predict.py photo.jpg more-photos/

It needs {runtime}, pillow and numpy. {file} takes images as uint8 [N, 3, {size}, {size}], any number at a time,
prepared as preprocess.py does it, and gives probabilities [N, {classes}], with the classes in the order below."""
"""In a model card."""
CHECKED = 32
"""So many images at most are compared."""
TOLERANCE = 1e-4
"""The largest difference between two probabilities that the order of summation explains."""
RUNS, ENOUGH = 20, 3.0
"""So many runs are timed for each size of batch, and none begins after so many seconds."""


@dataclass(frozen=True)
class Exported:
    """What was written, and what it costs to use."""

    folder: Path
    file: Path
    bytes: int
    parameters: int
    flops: int
    """For one image."""
    latency: dict[int, float]
    """Seconds for a batch of so many images: the median of some runs on one thread of this CPU."""
    images: int
    """On how many image files it was compared with the model; a bundle is the model."""
    difference: float
    """The largest difference of a probability from the model's own."""


def export(bundle: Bundle, source: Path, kind: str, folder: Path, files: Sequence[Path]) -> Exported:
    """Write the bundle that lies in `source` into `folder`, as one of `KINDS`.

    `files` are images such as the model will see; some of them go through a graph and through the model before the
    graph takes its place.

    Raises: StudyError for a folder that holds anything else, a network that cannot be exported, a missing package,
    no image to compare on, and an export that disagrees with the model.
    """
    settle(folder)
    bundle.to("cpu")
    written = FILES if kind == BUNDLE else EXPORTED
    if folder.resolve() == source.resolve() or not holds_only(folder, written, mark="plan.json"):
        raise StudyError(f"{folder} holds something else; name a new or an empty folder.")
    answers: list[tuple[Path, np.ndarray]] = []
    if kind != BUNDLE:
        FORMATS[kind].check_installed()
        answers = _answers(bundle, files)
    with replacing(folder) as made:
        if kind == BUNDLE:
            copy(source, made)
            file = made / WEIGHTS
            difference = 0.0
            model = _in_memory(bundle)
        else:
            file = _write(bundle, FORMATS[kind], made)
            model = FORMATS[kind].load(file)
            difference = _compare(model, made, answers)
        size = file.stat().st_size
    return Exported(
        folder=folder,
        file=folder / file.name,
        bytes=size,
        parameters=sum(parameter.numel() for parameter in bundle.graph.parameters()),
        flops=int(bundle.metrics["validation"]["flops"]),
        latency=_latency(model, bundle),
        images=len(answers),
        difference=difference,
    )


def _answers(bundle: Bundle, files: Sequence[Path]) -> list[tuple[Path, np.ndarray]]:
    """Files from all over the list, with the model's own probabilities.

    Raises: StudyError when it can read none of them.
    """
    some = files[:: max(1, len(files) // CHECKED)][:CHECKED]
    found = zip(some, bundle.predict(some), strict=True)
    answers = [(file, answer) for file, answer in found if not isinstance(answer, str)]
    if not answers:
        raise StudyError("There is no image to compare the export on. Name some that can be read: --images FOLDER")
    return answers


def _write(bundle: Bundle, form: Format, folder: Path) -> Path:
    """Nothing is copied from where the bundle lies: only what was understood when it was loaded is passed on."""
    classes = as_json(list(bundle.classes))
    form.write(bundle.graph, {"classes": classes, "licence": bundle.licence}, folder / form.file)
    write(folder / "classes.json", classes)
    write(folder / "preprocessing.json", as_json(bundle.plan.input.model_dump(mode="json")))
    write(folder / "plan.json", bundle.plan.to_json())
    write(folder / "metrics.json", as_json(bundle.metrics))
    write(folder / "LICENSE", bundle.licence)
    use = USE.format(runtime=form.runtime, file=form.file, size=bundle.plan.input.size, classes=len(bundle.classes))
    metrics = Metrics.model_validate(bundle.metrics)
    write(folder / "README.md", readme(bundle.plan, bundle.classes, metrics, use))
    shutil.copyfile(STANDALONE / "preprocess.py", folder / "preprocess.py")
    shutil.copyfile(STANDALONE / form.predict, folder / "predict.py")
    return folder / form.file


def _compare(model: Model, folder: Path, answers: Sequence[tuple[Path, np.ndarray]]) -> float:
    """The largest difference of a probability, on files read as those who have the folder alone will read them.

    Raises: StudyError when it is too large, or another class is the likeliest.
    """
    prepare = _reference(folder / "preprocess.py")
    wanted = np.stack([answer for _, answer in answers])
    found = model(np.stack([prepare(file) for file, _ in answers]))
    difference = float(np.abs(found - wanted).max())
    ranked = np.sort(wanted, axis=1)
    sure = ranked[:, -1] - ranked[:, -2] > 2 * TOLERANCE
    others = int(((found.argmax(1) != wanted.argmax(1)) & sure).sum())
    if not difference <= TOLERANCE or others:
        raise StudyError(
            f"The export disagrees with the model: on {len(answers)} images a probability differs by up to "
            f"{difference:.2g} (allowed: {TOLERANCE:g}), {others} get another class. Nothing was written."
        )
    return difference


def _reference(file: Path) -> Callable[[Path], np.ndarray]:
    """`prepare` of the script that lies beside an export."""
    prepare: Callable[[Path], np.ndarray] = runpy.run_path(str(file))["prepare"]
    return prepare


def _in_memory(bundle: Bundle) -> Model:
    return lambda images: bundle.probabilities(torch.from_numpy(images)).numpy()


def _latency(model: Model, bundle: Bundle) -> dict[int, float]:
    size = bundle.plan.input.size
    latency = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for batch in (1, 32):
            images = np.zeros((batch, 3, size, size), np.uint8)
            model(images)  # the first run allocates
            seconds: list[float] = []
            while len(seconds) < RUNS and sum(seconds) < ENOUGH:
                began = time.perf_counter()
                model(images)
                seconds.append(time.perf_counter() - began)
            latency[batch] = median(seconds)
    finally:
        torch.set_num_threads(threads)
    return latency
