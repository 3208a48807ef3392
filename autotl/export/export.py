"""Exports a model for use without autotl, and compares the export with the model on real image files."""

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
from autotl.export.bundle import Bundle, copy, preparation
from autotl.export.card import Metrics, readme
from autotl.export.contents import FILES, WEIGHTS
from autotl.export.formats import FORMATS, Format, Model
from autotl.export.graph import input_names
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

It needs {runtime}, pillow and numpy. {file} takes a batch of any size, {inputs}, prepared as in
preprocess.py, and returns probabilities [N, {classes}], with the classes in the order below."""
"""The usage example in the model card."""
CHECKED = 32
"""The most images that are compared."""
TOLERANCE = 1e-4
"""The largest difference between two probabilities that rounding explains."""
RUNS, ENOUGH = 20, 3.0
"""How many runs are timed for each batch size, and the seconds after which no further run starts."""


@dataclass(frozen=True)
class Exported:
    """What was written, and its costs."""

    folder: Path
    file: Path
    bytes: int
    parameters: int
    flops: int
    """For one image."""
    latency: dict[int, float]
    """Seconds by batch size: the median of some runs on one thread of this CPU."""
    images: int
    """How many image files it was compared on; 0 for a bundle, which is the model itself."""
    difference: float
    """The largest difference between its probabilities and the model's."""


def export(bundle: Bundle, source: Path, kind: str, folder: Path, files: Sequence[Path]) -> Exported:
    """Write the bundle in `source` into `folder`, as one of `KINDS`.

    `files` are images such as the model will see; a graph is compared with the model on some of them before it is kept.

    Raises: StudyError for a folder with other files, a network that cannot be exported, a missing package, no image to
    compare on, or an export that disagrees with the model.
    """
    settle(folder)
    bundle.to("cpu")
    written = FILES if kind == BUNDLE else EXPORTED
    if folder.resolve() == source.resolve() or not holds_only(folder, written, mark="plan.json"):
        raise StudyError(f"{folder} has other files; use a new or empty folder.")
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
    """Files spread over the list, with the model's probabilities.

    Raises: StudyError if none of them can be read.
    """
    some = files[:: max(1, len(files) // CHECKED)][:CHECKED]
    found = zip(some, bundle.predict(some), strict=True)
    answers = [(file, answer) for file, answer in found if not isinstance(answer, str)]
    if not answers:
        raise StudyError("There is no readable image to compare the export on. Use --images FOLDER")
    return answers


def _write(bundle: Bundle, form: Format, folder: Path) -> Path:
    """Writes only what was parsed when the bundle was loaded; no file of the bundle is copied."""
    classes = as_json(list(bundle.classes))
    form.write(bundle.graph, {"classes": classes, "license": bundle.license}, folder / form.file)
    write(folder / "classes.json", classes)
    write(folder / "preprocessing.json", preparation(bundle.plan))
    write(folder / "plan.json", bundle.plan.to_json())
    write(folder / "metrics.json", as_json(bundle.metrics))
    write(folder / "LICENSE", bundle.license)
    names = input_names(bundle.graph.inputs)
    shapes = [f"uint8 [N, 3, {input.size}, {input.size}]" for input in bundle.graph.inputs]
    named = (f"`{name}` {shape}" for name, shape in zip(names, shapes, strict=True))
    inputs = shapes[0] if len(shapes) == 1 else f"the same images as {' and '.join(named)}"
    use = USE.format(runtime=form.runtime, file=form.file, inputs=inputs, classes=len(bundle.classes))
    metrics = Metrics.model_validate(bundle.metrics)
    write(folder / "README.md", readme(bundle.plan, bundle.classes, metrics, use))
    shutil.copyfile(STANDALONE / "preprocess.py", folder / "preprocess.py")
    shutil.copyfile(STANDALONE / form.predict, folder / "predict.py")
    return folder / form.file


def _compare(model: Model, folder: Path, answers: Sequence[tuple[Path, np.ndarray]]) -> float:
    """The largest difference of a probability, on files that the exported script reads.

    Raises: StudyError if it is too large, or if another class is the most probable one.
    """
    inputs = _reference(folder / "preprocess.py")
    wanted = np.stack([answer for _, answer in answers])
    each = zip(*(inputs(file) for file, _ in answers), strict=True)
    found = model(*map(np.stack, each))
    difference = float(np.abs(found - wanted).max())
    ranked = np.sort(wanted, axis=1)
    sure = ranked[:, -1] - ranked[:, -2] > 2 * TOLERANCE
    others = int(((found.argmax(1) != wanted.argmax(1)) & sure).sum())
    if not difference <= TOLERANCE or others:
        raise StudyError(
            f"The export disagrees with the model: on {len(answers)} images a probability differs by up to "
            f"{difference:.2g} (allowed: {TOLERANCE:g}), and {others} get another class. Nothing was written."
        )
    return difference


def _reference(file: Path) -> Callable[[Path], list[np.ndarray]]:
    """`inputs` of the script beside an export."""
    inputs: Callable[[Path], list[np.ndarray]] = runpy.run_path(str(file))["inputs"]
    return inputs


def _in_memory(bundle: Bundle) -> Model:
    return lambda *images: bundle.probabilities(*map(torch.from_numpy, images)).numpy()


def _latency(model: Model, bundle: Bundle) -> dict[int, float]:
    sizes = [input.size for input in bundle.graph.inputs]
    latency = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for batch in (1, 32):
            images = [np.zeros((batch, 3, size, size), np.uint8) for size in sizes]
            model(*images)  # the first run allocates
            seconds: list[float] = []
            while len(seconds) < RUNS and sum(seconds) < ENOUGH:
                started = time.perf_counter()
                model(*images)
                seconds.append(time.perf_counter() - started)
            latency[batch] = median(seconds)
    finally:
        torch.set_num_threads(threads)
    return latency
