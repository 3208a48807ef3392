"""The networks of `reference:`, in a separate module because they import torch."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Pixels(nn.Module):
    """Every pixel of a 16 x 16 px copy of the image as a feature: [N, 3, S, S] → [N, 768, 1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.pixels = nn.Sequential(nn.AdaptiveAvgPool2d(16), AsChannels())

    def forward(self, images: Tensor) -> Tensor:
        return self.pixels(images)


class Edges(nn.Module):
    """Mean edge strength in eight directions in each of 8 x 8 cells: [N, 3, S, S] → [N, 512, 1, 1].

    A pair of Sobel kernels computes the gradient of the grey image; a pixel contributes to the two
    directions nearest to its own, as in histograms of oriented gradients (Dalal and Triggs 2005).
    """

    def __init__(self) -> None:
        super().__init__()
        self.edges = nn.Sequential(Gradients(), Directions(8), nn.AdaptiveAvgPool2d(8), AsChannels())

    def forward(self, images: Tensor) -> Tensor:
        return self.edges(images)


class Gradients(nn.Module):
    """[N, 3, S, S] → [N, 2, S, S]: slope along x and along y."""

    kernels: Tensor

    def __init__(self) -> None:
        super().__init__()
        along_x = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 8
        self.register_buffer("kernels", torch.stack([along_x, along_x.T])[:, None])

    def forward(self, images: Tensor) -> Tensor:
        grey = F.pad(images.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
        return F.conv2d(grey, self.kernels)


class Directions(nn.Module):
    """[N, 2, S, S] → [N, count, S, S]: strength of the slope, shared between the two nearest directions."""

    angles: Tensor

    def __init__(self, count: int) -> None:
        super().__init__()
        self.register_buffer("angles", torch.arange(count) * (2 * math.pi / count))

    def forward(self, slopes: Tensor) -> Tensor:
        strength = slopes.square().sum(1, keepdim=True).sqrt()
        angle = torch.atan2(slopes[:, 1:], slopes[:, :1])
        away = torch.remainder(angle - self.angles.view(1, -1, 1, 1) + math.pi, 2 * math.pi) - math.pi
        step = 2 * math.pi / len(self.angles)
        return strength * (1 - away.abs() / step).clamp(min=0)


class AsChannels(nn.Module):
    """[N, C, H, W] → [N, C·H·W, 1, 1], so that pooling does not average over positions."""

    def forward(self, values: Tensor) -> Tensor:
        return values.flatten(1)[:, :, None, None]
