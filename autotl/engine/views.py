"""Views of an image at prediction, over which a model averages its probabilities."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def view(images: Tensor, number: int) -> Tensor:
    """The images as they are (0), or mirrored left to right (1)."""
    return images.flip(3) if number else images


def averaged(logits: Sequence[Tensor]) -> Tensor:
    """Logits of the mean probabilities: [N, C] for each view → [N, C]; of a single view its own."""
    if len(logits) == 1:
        return logits[0]
    return torch.stack([each.log_softmax(1) for each in logits]).logsumexp(0) - math.log(len(logits))
