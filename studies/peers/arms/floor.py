"""The least that a search on frozen features could cost: importing torch, and one pass over every image.

    python studies/peers/arms/floor.py DATA --weights squeezenet1_0.safetensors

torchvision's SqueezeNet, Pillow, one thread; channels-last and batches of 4, which were the fastest of those tried.
Prints a line of JSON: the processor seconds of each part, which include those of the process before it.
"""

# ruff: noqa: E402, because each import is timed

import argparse
import json
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
parser = argparse.ArgumentParser()
parser.add_argument("data", type=Path)
parser.add_argument("--weights", type=Path, required=True)
asked = parser.parse_args()
ends = {}

import torch

ends["torch"] = time.process_time()
from PIL import Image
from safetensors.torch import load_file
from torchvision import models, transforms

torch.set_num_threads(1)
model = models.squeezenet1_0()
model.load_state_dict(load_file(asked.weights))
body = model.features.eval().to(memory_format=torch.channels_last)
normalize = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
prepare = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(), normalize])
ends["torchvision"] = time.process_time()
files = sorted(file for file in asked.data.rglob("*") if file.is_file())
images = torch.stack([prepare(Image.open(file).convert("RGB")) for file in files])
images = images.contiguous(memory_format=torch.channels_last)
ends["images"] = time.process_time()
with torch.inference_mode():
    features = [body(images[start : start + 4]).mean((2, 3)) for start in range(0, len(images), 4)]
ends["pass"] = time.process_time()
starts = [0.0, *ends.values()]
print(json.dumps({part: end - start for (part, end), start in zip(ends.items(), starts, strict=False)}))
