"""Classify image files: python predict.py photo.jpg more/*.png. Needs torch, Pillow and NumPy."""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from preprocess import prepare

HERE = Path(__file__).parent
CLASSES = json.loads((HERE / "classes.json").read_text(encoding="utf-8"))


def main(files: list[str]) -> None:
    model = torch.export.load(HERE / "model.pt2").module()
    for file in files:
        with torch.no_grad():
            (row,) = model(torch.from_numpy(np.stack([prepare(file)])))
        print(file, CLASSES[int(row.argmax())], f"{float(row.max()):.6f}", sep="\t")


if __name__ == "__main__":
    main(sys.argv[1:])
