"""The optimizer of a phase: groups of parameters, learning rates and their schedule, weight decay, clipping."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from autotl.plan import Training


class Descent:
    """The optimizer with a learning rate for each stage and for the head."""

    def __init__(
        self,
        training: Training,
        head: Mapping[str, nn.Parameter],
        stages: Mapping[str, Mapping[str, nn.Parameter]],
        *,
        pretrained: Sequence[nn.Parameter],
        exempt: frozenset[str],
        build: Callable[[list[dict[str, Any]]], torch.optim.Optimizer],
        advance: Callable[[torch.optim.Optimizer], None],
        steps: int,
    ) -> None:
        """`stages` has the trained parameters of each stage; L2-SP applies to those that are `pretrained`.

        `exempt` are the names of parameters without weight decay, besides norms and biases. `steps` is the number of
        steps of the whole phase.
        """
        self._training, self._steps, self._step = training, steps, 0
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for lr, parameters, decay in [
            (training.head_lr, head, training.weight_decay),
            *(
                (training.stage_lr[stage], parameters, 0.0 if training.l2_sp else training.weight_decay)
                for stage, parameters in stages.items()
                if parameters
            ),
        ]:
            for name, parameter in parameters.items():
                decays = parameter.ndim > 1 and name not in exempt
                groups.setdefault((lr, decay if decays else 0.0), []).append(parameter)
        self._base = [lr for lr, _ in groups]
        self.parameters = [parameter for members in groups.values() for parameter in members]
        self._advance = advance
        self._optimizer = build(
            [{"params": members, "lr": lr, "weight_decay": decay} for (lr, decay), members in groups.items()]
        )
        pulled = pretrained if training.l2_sp else ()
        self._pulled = [(parameter, parameter.detach().clone()) for parameter in pulled]

    @property
    def lr(self) -> float:
        """The head's learning rate in the last step; those of the stages follow the same schedule."""
        return self._training.head_lr * self._factor()

    def start(self) -> None:
        """Start the next step: set the learning rates."""
        self._step += 1
        factor = self._factor()
        for group, base in zip(self._optimizer.param_groups, self._base, strict=True):
            group["lr"] = base * factor

    def zero_grad(self) -> None:
        self._optimizer.zero_grad()

    @torch.no_grad()
    def update(self) -> None:
        """Take a step along the parameters' gradients."""
        for parameter, start in self._pulled:
            if parameter.grad is not None:
                parameter.grad.add_(parameter - start, alpha=self._training.l2_sp)
        if self._training.clip_grad:
            nn.utils.clip_grad_norm_(self.parameters, self._training.clip_grad)
        self._advance(self._optimizer)

    def finite(self) -> bool:
        """Whether all parameters are finite."""
        return bool(torch.stack([parameter.isfinite().all() for parameter in self.parameters]).all())

    def _factor(self) -> float:
        return schedule((self._step - 0.5) / self._steps, self._training)


def schedule(share: float, training: Training) -> float:
    """The factor of the learning rates after this share of the phase's steps."""
    if share < training.warmup_ratio:
        return share / training.warmup_ratio
    if training.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (share - training.warmup_ratio) / (1 - training.warmup_ratio)))


class Average:
    """The exponential moving average of tensors, over the steps of a phase.

    Early steps have less weight: after t steps the decay is at most (1 + t) / (10 + t), as in timm.
    """

    def __init__(self, state: Mapping[str, Tensor], decay: float) -> None:
        self._live = list(state.values())
        self._decay, self._step = decay, 0
        self._averages = [tensor.detach().clone() for tensor in self._live]

    @torch.no_grad()
    def update(self) -> None:
        """Called after every step."""
        self._step += 1
        decay = min(self._decay, (1 + self._step) / (10 + self._step))
        for average, live in zip(self._averages, self._live, strict=True):
            if average.is_floating_point():
                average.lerp_(live, 1 - decay)
            else:
                average.copy_(live)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the tensors with their averages; a second call exchanges them back."""
        for average, live in zip(self._averages, self._live, strict=True):
            kept = live.clone()
            live.copy_(average)
            average.copy_(kept)
