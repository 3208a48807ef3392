"""What a phase minimises: a loss on targets that label smoothing, mixup and CutMix make soft."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from autotl.engine.feed import to_device
from autotl.engine.heads import weights_of
from autotl.plan import Training


class Objective:
    """The loss of a batch, and the targets of its images."""

    def __init__(
        self,
        training: Training,
        loss: Callable[[Tensor, Tensor, Tensor], Tensor],
        labels: Tensor,
        classes: int,
        places: tuple[int, int] | None,
    ) -> None:
        """labels: [N] int64, of all training images. places: the dimensions of height and width in a batch's values,
        None if they have none."""
        self._training, self._loss, self._classes, self._places = training, loss, classes, places
        self._weights = weights_of(training.class_weights, labels, classes)
        self._counted = None if training.counted == "none" else weights_of(training.counted, labels, classes)

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """[N, C] logits and targets → the mean loss of the images."""
        return self._loss(logits, targets, self._weights)

    def targets(self, labels: Tensor) -> Tensor:
        """[N] int64 → [N, C] float32."""
        smoothing = self._training.label_smoothing
        return F.one_hot(labels, self._classes).float() * (1 - smoothing) + smoothing / self._classes

    def judged(self, logits: Tensor, labels: Tensor) -> float:
        """The cross-entropy of images that are not trained on, with the label smoothing and class weights of the
        training. [N, C] logits, [N] labels.

        Smoothing makes a model less sure than the logistic regression before it: by plain cross-entropy the model would
        seem worse although it is more accurate. Without class weights the best epoch would be one that neglects rare
        classes.
        """
        smoothing = self._training.label_smoothing
        return F.cross_entropy(logits, labels, self._counted, label_smoothing=smoothing).item()

    def mixed(self, values: Tensor, targets: Tensor, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        """A batch with its images mixed in pairs, if the training mixes images, else as it is. `draw` is on the CPU."""
        strengths = ((self._mixup, self._training.mixup), (self._cutmix, self._training.cutmix))
        choices = [mix for mix, strength in strengths if strength]
        if not choices:
            return values, targets
        mix = choices[int(torch.randint(len(choices), (), generator=draw))]
        others = to_device(torch.randperm(len(values), generator=draw), values.device)
        values, share = mix(values, values[others], draw)
        return values, share * targets + (1 - share) * targets[others]

    def _mixup(self, values: Tensor, others: Tensor, draw: torch.Generator) -> tuple[Tensor, float]:
        share = _beta(self._training.mixup, draw)
        return share * values + (1 - share) * others, share

    def _cutmix(self, values: Tensor, others: Tensor, draw: torch.Generator) -> tuple[Tensor, float]:
        """The rectangle has a random centre, and is clipped at the edges."""
        assert self._places is not None
        side = (1 - _beta(self._training.cutmix, draw)) ** 0.5
        inside = torch.ones((), dtype=torch.bool)
        area = 1.0
        for place in self._places:
            size = values.shape[place]
            centre = int(torch.randint(size, (), generator=draw))
            low, high = max(0, centre - round(size * side / 2)), min(size, centre + round(size * side / 2))
            along = torch.arange(size)
            shape = [size if at == place else 1 for at in range(values.dim())]
            inside = inside & ((along >= low) & (along < high)).view(shape)
            area *= (high - low) / size
        return torch.where(to_device(inside, values.device), others, values), 1 - area


def _beta(alpha: float, draw: torch.Generator) -> float:
    """One number from Beta(alpha, alpha)."""
    one, other = torch._standard_gamma(torch.full((2,), alpha, dtype=torch.float64), generator=draw).tolist()
    return float(one / (one + other)) if one + other else float(torch.rand((), generator=draw).round())
