"""The formats of an export: how a graph is written, and how it is loaded without autotl."""

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from autotl.errors import StudyError
from autotl.export.graph import BATCH_AXIS, OUTPUT, AnyGraph, input_names, program, shapes

Model = Callable[..., np.ndarray]
"""Each input of a graph, [N, 3, S, S] uint8 → probabilities: [N, classes] float32."""


@dataclass(frozen=True)
class Format:
    """A file format for a graph."""

    file: str
    predict: str
    """The script in `standalone/` that uses it."""
    requires: tuple[str, ...]
    runtime: str
    """The package that runs it."""
    write: Callable[[AnyGraph, Mapping[str, str], Path], None]
    """`write(graph, texts, file)`: the file includes texts by name, such as its classes."""
    load: Callable[[Path], Model]
    """Loads the file as its users do, on one thread of the CPU."""

    def check_installed(self) -> None:
        """Raises: StudyError if a package for writing or running this format is missing."""
        missing = [name for name in self.requires if find_spec(name) is None]
        if missing:
            raise StudyError(f"This format needs {', '.join(missing)}: pip install {' '.join(self.requires)}")


def _write_torch(graph: AnyGraph, texts: Mapping[str, str], file: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about weights on other devices; these are on the CPU
        torch.export.save(program(graph), file, extra_files=dict(texts))


def _load_torch(file: Path) -> Model:
    model = torch.export.load(file).module()

    def run(*images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            found: torch.Tensor = model(*map(torch.from_numpy, images))
        return found.numpy()

    return run


def _write_onnx(graph: AnyGraph, texts: Mapping[str, str], file: Path) -> None:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        warnings.simplefilter("ignore")
        made = torch.onnx.export(
            program(graph),
            input_names=input_names(graph.inputs),
            output_names=[OUTPUT],
            dynamic_shapes=shapes(graph, BATCH_AXIS),
            dynamo=True,
        )
    assert made is not None
    made.model.metadata_props.update(texts)
    made.save(file, external_data=False)


def _load_onnx(file: Path) -> Model:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    return lambda *images: session.run([OUTPUT], dict(zip(names, images, strict=True)))[0]


FORMATS = {
    "torch-export": Format("model.pt2", "predict_torch.py", (), "torch", _write_torch, _load_torch),
    "onnx": Format(
        "model.onnx",
        "predict_onnx.py",
        ("onnx", "onnxscript", "onnxruntime"),
        "onnxruntime",
        _write_onnx,
        _load_onnx,
    ),
}
