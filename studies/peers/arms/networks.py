"""Pretrained networks of timm and torchvision with a new last layer, and how they take images."""

from collections.abc import Callable
from typing import Any

import timm
import torch
from timm.data import create_transform, resolve_model_data_config
from torch import nn
from torchvision import models, transforms


def classifier(name: str, classes: int) -> nn.Module:
    """The pretrained network with a new last layer."""
    library, _, architecture = name.partition(":")
    if library == "timm":
        return timm.create_model(architecture, pretrained=True, num_classes=classes)
    network = models.get_model(architecture, weights="DEFAULT")
    network.classifier[1] = nn.Conv2d(network.classifier[1].in_channels, classes, 1)  # SqueezeNet's
    return network


def extractor(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """The pretrained network up to its last features, averaged over the image: [N, 3, H, W] to [N, C]."""
    library, _, architecture = name.partition(":")
    if library == "timm":
        return timm.create_model(architecture, pretrained=True, num_classes=0).eval()
    features = models.get_model(architecture, weights="DEFAULT").features.eval()
    return lambda images: features(images).mean((2, 3))


def preprocessing(name: str) -> Callable[[Any], torch.Tensor]:
    """How the network's own card prepares an image for evaluation."""
    library, _, architecture = name.partition(":")
    if library == "timm":
        return create_transform(**resolve_model_data_config(timm.create_model(architecture)), is_training=False)
    return models.get_model_weights(architecture)["DEFAULT"].transforms()


def normalization(name: str) -> transforms.Normalize:
    """The mean and standard deviation that the network was trained with."""
    library, _, architecture = name.partition(":")
    if library == "timm":
        config = resolve_model_data_config(timm.create_model(architecture))
        return transforms.Normalize(config["mean"], config["std"])
    own = models.get_model_weights(architecture)["DEFAULT"].transforms()
    return transforms.Normalize(own.mean, own.std)
