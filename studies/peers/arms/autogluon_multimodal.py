"""AutoGluon MultiModal: a preset with its own settings, except for the network and what keeps it on one CPU thread.

Its time limit counts processor time.
"""

# ruff: noqa: I001, because the clock is set before anything reads it

import cpu_clock  # noqa: F401

import argparse
import json
import tempfile
from pathlib import Path

import pandas as pd
from autogluon.multimodal import MultiModalPredictor

parser = argparse.ArgumentParser()
parser.add_argument("data", type=Path)
parser.add_argument("--backbone", required=True)
parser.add_argument("--seed", type=int, required=True)
parser.add_argument("--seconds", type=int, required=True)
parser.add_argument("--preset", required=True)
asked = parser.parse_args()
library, _, name = asked.backbone.partition(":")
if library != "timm":
    parser.error(f"AutoGluon's image models are timm's; --backbone is {asked.backbone}")


def table(split: str) -> pd.DataFrame:
    files = sorted((asked.data / split).glob("*/*"))
    return pd.DataFrame({"image": list(map(str, files)), "label": [file.parent.name for file in files]})


with tempfile.TemporaryDirectory() as folder:
    predictor = MultiModalPredictor(label="label", eval_metric="accuracy", path=folder, verbosity=0)
    predictor.fit(
        table("train"),
        presets=asked.preset,
        time_limit=asked.seconds,
        seed=asked.seed,
        hyperparameters={
            "model.names": ["timm_image"],
            "model.timm_image.checkpoint_name": name,
            "env.num_gpus": 0,
            "env.accelerator": "cpu",
            "env.num_workers": 0,
            "env.num_workers_inference": 0,
        },
    )
    test = predictor.evaluate(table("test"))["accuracy"]
print(json.dumps({"test": float(test)}))
