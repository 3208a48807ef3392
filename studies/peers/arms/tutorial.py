"""Fine-tuning as in PyTorch's tutorial "Transfer Learning for Computer Vision", all layers, with its settings.

SGD with momentum 0.9 at a learning rate of 0.001, divided by 10 every 7 epochs, batches of 4, random crops and flips;
the epoch with the best accuracy on a fifth of the training images counts. The tutorial trains 25 epochs.
"""

import argparse
import copy
import json
from pathlib import Path

import networks
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset, random_split
from torchvision import transforms
from torchvision.datasets import ImageFolder

parser = argparse.ArgumentParser()
parser.add_argument("data", type=Path)
parser.add_argument("--backbone", required=True)
parser.add_argument("--seed", type=int, required=True)
parser.add_argument("--epochs", type=int, required=True)
asked = parser.parse_args()

torch.manual_seed(asked.seed)
ending = [transforms.ToTensor(), networks.normalization(asked.backbone)]
augmented = transforms.Compose([transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), *ending])
plain = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), *ending])
everything = ImageFolder(asked.data / "train", augmented)
train, held_out = random_split(everything, [0.8, 0.2])
val = Subset(ImageFolder(asked.data / "train", plain), held_out.indices)
network = networks.classifier(asked.backbone, len(everything.classes))
optimizer = torch.optim.SGD(network.parameters(), lr=0.001, momentum=0.9)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.1)


@torch.no_grad()
def accuracy(images: Dataset) -> float:
    network.eval()
    right = [(network(batch).argmax(1) == labels) for batch, labels in DataLoader(images, 32)]
    return float(torch.cat(right).float().mean())


best, weights = -1.0, None
for _ in range(asked.epochs):
    network.train()
    for batch, labels in DataLoader(train, 4, shuffle=True):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(batch), labels).backward()
        optimizer.step()
    scheduler.step()
    if (value := accuracy(val)) > best:
        best, weights = value, copy.deepcopy(network.state_dict())
network.load_state_dict(weights)
print(json.dumps({"test": accuracy(ImageFolder(asked.data / "test", plain)), "val": best}))
