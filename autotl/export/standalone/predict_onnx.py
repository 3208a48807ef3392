"""Classify image files: python predict.py photo.jpg more/*.png. Needs onnxruntime, Pillow and NumPy."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from preprocess import prepare

HERE = Path(__file__).parent
CLASSES = json.loads((HERE / "classes.json").read_text(encoding="utf-8"))


def main(files: list[str]) -> None:
    session = onnxruntime.InferenceSession(str(HERE / "model.onnx"), providers=["CPUExecutionProvider"])
    for file in files:
        (rows,) = session.run(["probabilities"], {"images": np.stack([prepare(file)])})
        print(file, CLASSES[rows[0].argmax()], f"{rows[0].max():.6f}", sep="\t")


if __name__ == "__main__":
    main(sys.argv[1:])
