"""Classify image files: python predict.py photo.jpg more/*.png. Needs onnxruntime, Pillow and NumPy."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from preprocess import prepare

HERE = Path(__file__).parent
CLASSES = json.loads((HERE / "classes.json").read_text(encoding="utf-8"))


def main(files: list[str]) -> int:
    failed = 0
    session = onnxruntime.InferenceSession(str(HERE / "model.onnx"), providers=["CPUExecutionProvider"])
    for file in files:
        try:
            image = prepare(file)
        except (OSError, ValueError) as error:
            print(f"{file}: {error}", file=sys.stderr)
            failed = 1
            continue
        (rows,) = session.run(["probabilities"], {"images": np.stack([image])})
        print(file, CLASSES[rows[0].argmax()], f"{rows[0].max():.6f}", sep="\t")
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]) if sys.argv[1:] else __doc__)
