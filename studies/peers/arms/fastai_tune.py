"""fastai as its vision tutorial has it: `vision_learner` and `fine_tune`, with the learning rate of `lr_find` or not.

The defaults, except for batches of 16 images instead of 64, because the last incomplete batch of an epoch is dropped
(`--batch-size 64` has the default). The last epoch counts: fastai has no time limit and keeps no best epoch by itself.
"""

import argparse
import json
from pathlib import Path

import torch
from fastai.vision.all import (
    ImageDataLoaders,
    Resize,
    accuracy,
    aug_transforms,
    get_image_files,
    models,
    set_seed,
    vision_learner,
)

parser = argparse.ArgumentParser()
parser.add_argument("data", type=Path)
parser.add_argument("--backbone", required=True)
parser.add_argument("--seed", type=int, required=True)
parser.add_argument("--epochs", type=int, required=True)
parser.add_argument("--lr-find", action="store_true")
parser.add_argument("--batch-size", type=int, default=16)
asked = parser.parse_args()
library, _, name = asked.backbone.partition(":")

set_seed(asked.seed, reproducible=True)
loaders = ImageDataLoaders.from_folder(
    asked.data / "train",
    valid_pct=0.2,
    seed=asked.seed,
    item_tfms=Resize(460),
    batch_tfms=aug_transforms(size=224),
    bs=asked.batch_size,
    num_workers=0,
    device=torch.device("cpu"),
)
learner = vision_learner(loaders, name if library == "timm" else getattr(models, name), metrics=accuracy)
with learner.no_bar(), learner.no_logging():
    lr = learner.lr_find(show_plot=False).valley if asked.lr_find else 2e-3  # fine_tune's default
    learner.fine_tune(asked.epochs, lr)
    files = get_image_files(asked.data / "test")
    probabilities, _ = learner.get_preds(dl=loaders.test_dl(files))
classes = [loaders.vocab[at] for at in probabilities.argmax(1)]
right = [file.parent.name == guessed for file, guessed in zip(files, classes, strict=True)]
print(json.dumps({"test": sum(right) / len(right), "lr": lr}))
