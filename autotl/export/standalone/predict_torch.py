"""Classify image files: python predict.py photo.jpg more-photos/. Needs torch, Pillow and NumPy."""

import json
import signal
import sys
from pathlib import Path

import torch
from preprocess import files_in, readable

HERE = Path(__file__).parent
CLASSES = json.loads((HERE / "classes.json").read_text(encoding="utf-8"))


def main(paths: list[str]) -> int:
    sys.stdout.reconfigure(errors="backslashreplace")
    done, files = 0, files_in(paths)
    model = torch.export.load(HERE / "model.pt2").module()
    for file, images in readable(files):
        with torch.no_grad():
            (row,) = model(*(torch.from_numpy(image[None]) for image in images))
        print(file, CLASSES[int(row.argmax())], f"{float(row.max()):.6f}", sep="\t")
        done += 1
    return 0 if done == len(files) else 1


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # the reader of the output may close it early, as `head` does
    sys.exit(main(sys.argv[1:]) if sys.argv[1:] else __doc__)
