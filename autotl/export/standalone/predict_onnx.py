"""Classify image files: python predict.py photo.jpg more-photos/. Needs onnxruntime, Pillow and NumPy."""

import json
import signal
import sys
from pathlib import Path

import onnxruntime
from preprocess import files_in, readable

HERE = Path(__file__).parent
CLASSES = json.loads((HERE / "classes.json").read_text(encoding="utf-8"))


def main(paths: list[str]) -> int:
    sys.stdout.reconfigure(errors="backslashreplace")
    done, files = 0, files_in(paths)
    session = onnxruntime.InferenceSession(str(HERE / "model.onnx"), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    for file, images in readable(files):
        (rows,) = session.run(["probabilities"], {name: image[None] for name, image in zip(names, images, strict=True)})
        print(file, CLASSES[rows[0].argmax()], f"{rows[0].max():.6f}", sep="\t")
        done += 1
    return 0 if done == len(files) else 1


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # the reader of the output may close it early, as `head` does
    sys.exit(main(sys.argv[1:]) if sys.argv[1:] else __doc__)
