"""scikit-learn's logistic regression on the last features of the pretrained network, all settings its defaults."""

import argparse
import json
from pathlib import Path

import networks
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

parser = argparse.ArgumentParser()
parser.add_argument("data", type=Path)
parser.add_argument("--backbone", required=True)
parser.add_argument("--seed", type=int, required=True, help="Not used: nothing is random.")
asked = parser.parse_args()

network, transform = networks.extractor(asked.backbone), networks.preprocessing(asked.backbone)


@torch.no_grad()
def features(split: str):
    batches = [
        (network(images), labels) for images, labels in DataLoader(ImageFolder(asked.data / split, transform), 32)
    ]
    found, labels = zip(*batches, strict=True)
    return torch.cat(found).numpy(), torch.cat(labels).numpy()


model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(*features("train"))
print(json.dumps({"test": float(model.score(*features("test")))}))
