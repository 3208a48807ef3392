"""The network that a phase trains, with its head: from the values at the last frozen boundary to logits."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from autotl.engine import precision
from autotl.engine.activations import Source
from autotl.engine.features import seen_at
from autotl.engine.head_kinds import TrainedHead, start
from autotl.engine.heads import Scaling
from autotl.engine.model import Model
from autotl.engine.parts import Parts
from autotl.engine.tools import Tools
from autotl.errors import PlanError
from autotl.plan import Phase, Training

SCALING_IMAGES = 512
"""How many images determine the scale of the features at the start of a phase."""
SCALING_VALUES = 2**25
"""How many values at most, for a head that sees maps."""
LEAST_STD = 0.05
"""The smallest standard deviation that a feature is divided by, as a share of the median one."""
ONE_VALUE = "Expected more than 1 value per channel"
"""Torch's error if batch norm in training mode has a single value per channel."""


class Trainee:
    """The stages and the head of a model in one phase."""

    def __init__(self, model: Model, phase: Phase, tools: Tools, source: Source) -> None:
        """Freezes what the phase does not train, and starts a head with the scale of the features of `source`."""
        assert phase.training is not None
        self._model, self._frozen, self._training = model, phase.frozen, phase.training
        self.stages = model.stages.to(memory_format=precision.MEMORY_FORMATS[model.plan.memory_format])
        self.parts = Parts(self.stages, phase.frozen, tools.adapt)
        self.train_stages()
        largest_batches = len(source) // math.ceil(len(source) / self._training.batch_size)
        if self._training.batch_norm == "train" and largest_batches == 1:
            self._try_one_image(source)
        classes = len(model.bench.dataset.classes)
        self._cut = model.bench.catalogue.info(model.plan.backbone, model.plan.input).stage(model.plan.cut)
        scaling = self._scaling(source)
        head = start(model.plan.head, self._cut, scaling, classes, model.head)
        self.head = TrainedHead(head, scaling, self._training.dropout)

    def logits(self, value: Tensor) -> Tensor:
        """[N, …] values at the frozen boundary → [N, C]."""
        return self.head(self.seen(value))

    def seen(self, value: Tensor) -> Tensor:
        """[N, …] values at the frozen boundary → what the head sees: [N, D] features, or maps.

        Raises: PluginError, naming the backbone's plugin, if the network fails.
        """
        plan = self._model.plan
        owner = self._model.bench.catalogue.owner(plan.backbone)
        with (
            owner.answers_for(f"Backbone '{plan.backbone}'", "fails in training"),
            precision.computing(plan.compute_dtype, self._model.bench.device),
            _enough_for_batch_norm(self._training),
        ):
            value = self.parts(value, self._frozen)
        return seen_at(self.stages.boundaries[-1], value.float(), plan.head)

    def in_parts(self, value: Tensor, run: str = "logits") -> Tensor:
        """`logits` or `seen`, in parts if out of memory."""
        return self._model.bench.memory.in_parts(getattr(self, run), value)

    def state(self) -> dict[str, Tensor]:
        """All tensors that the phase changes, by name; not copied."""
        return {**self.parts.state(), **self.head.state_dict(prefix="head.", keep_vars=True)}

    def train(self) -> None:
        self.train_stages()
        self.head.train()

    def train_stages(self) -> None:
        """Training mode, except for batch norm if the phase says so."""
        self.stages.train()
        if self._training.batch_norm == "eval":
            for module in self.stages.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def eval(self) -> None:
        self.stages.eval()
        self.head.eval()

    def finish(self) -> None:
        """Give the head to the model, and leave its stages as those of any network: unfrozen, without an adapter."""
        self.parts.merge()
        self._model.head = self.head.folded()
        self.stages.freeze(None)
        self.stages.eval()

    @torch.no_grad()
    def _scaling(self, source: Source) -> Scaling:
        """The scale of the features, or of the map's channels, at the start of the phase, in its training mode.

        Without it the head would first have to learn the features' scale; compare the data-dependent initialisation of
        Krähenbühl et al. 2016, arXiv 1511.06856.
        """
        images = min(SCALING_IMAGES, len(source))
        if self._model.plan.head.kind == "conv":
            images = min(images, max(1, SCALING_VALUES // math.prod(self._cut.shape)))
        some = torch.linspace(0, len(source) - 1, images).round().long()
        batches = source.batches(some, math.ceil(len(some) / self._training.batch_size))
        with self._without_updates():  # if split, batch norm uses the statistics of each part
            seen = torch.cat([self.in_parts(value, "seen") for value, _ in batches])
        scaling = Scaling.of(seen if seen.dim() == 2 else seen.movedim(1, -1).flatten(0, -2))
        # A rarely active feature would become huge when it is active. One that is never active here may still have a
        # weight in the previous phase's head.
        constant = scaling.std.isinf()
        if constant.all():
            return scaling
        std = scaling.std.clamp(min=LEAST_STD * scaling.std[~constant].median())
        return Scaling(scaling.mean, torch.where(constant, 1.0 if self._model.head else torch.inf, std))

    @torch.no_grad()
    def _try_one_image(self, source: Source) -> None:
        """Check before the first step whether batch norm can train on batches of one image.

        Raises: PlanError.
        """
        with self._without_updates():
            self.seen(next(source.batches(torch.zeros(1, dtype=torch.long), 1))[0])

    @contextmanager
    def _without_updates(self) -> Iterator[None]:
        """In this context batch norm keeps its statistics."""
        buffers = [(buffer, buffer.clone()) for buffer in self.stages.buffers()]
        try:
            yield
        finally:
            for buffer, before in buffers:
                buffer.copy_(before)


@contextmanager
def _enough_for_batch_norm(training: Training) -> Iterator[None]:
    """Raises: PlanError if a batch gives batch norm a single value per channel, which has no deviation."""
    try:
        yield
    except ValueError as error:
        if training.batch_norm == "train" and ONE_VALUE in str(error):
            raise PlanError(
                '"batch_norm": "train" normalises by each batch, but with a batch_size of '
                f"{training.batch_size} a batch here is one image, which has one value per channel: "
                'set a larger batch_size, or "batch_norm": "eval".'
            ) from None
        raise
