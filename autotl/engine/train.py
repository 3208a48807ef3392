"""The method `sgd`: trains the stages after the frozen ones, and the head, by gradient descent."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
from pydantic import Field, ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from autotl.backbones.stages import Stages
from autotl.contracts import BackboneInfo
from autotl.data.split import Split
from autotl.engine import metrics, precision
from autotl.engine.activations import Source
from autotl.engine.device import TOO_LITTLE, in_parts, kind
from autotl.engine.features import pool
from autotl.engine.heads import LinearHead, Scaling
from autotl.engine.model import Model
from autotl.engine.observe import Enough
from autotl.errors import PlanError, TrainingError, unknown
from autotl.plan import Phase, Record, TransferPlan

SCALING_IMAGES = 512
"""How many images determine the scale of the features at the start of a phase."""
ONE_VALUE = "Expected more than 1 value per channel"
"""Torch's error if batch norm in training mode has a single value per channel."""
LEAST_STD = 0.05
"""The smallest standard deviation that a feature is divided by, as a share of the median one."""


class Options(Record):
    """`Phase.options` of the method `sgd`."""

    optimizer: Literal["adamw", "sgd"]
    batch_size: int = Field(ge=1)
    weight_decay: float = Field(default=0.0, ge=0)
    """Of weights; not of norms, biases and the parameters that the network names in `no_weight_decay()`."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Of `sgd`, with Nesterov momentum if above zero; not used by `adamw`."""
    schedule: Literal["cosine", "constant"] = "cosine"
    warm_up: float = Field(default=0.0, ge=0, le=1)
    """The share of the phase's steps during which the learning rates rise from zero."""
    clip: float | None = Field(default=None, gt=0)
    """The largest norm of the gradient of all parameters together."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Of the pooled features."""
    views: int = Field(default=0, ge=0)
    """The number of fixed augmented views of each image, used in turn; 0: a new one in every epoch."""


def sgd(model: Model, number: int) -> dict[str, float]:
    """Train phase `number` of the plan, starting from the model of the previous phase.

    If the observer raises `Enough`, the model's plan becomes the one that ends with the best epoch so far.

    Raises: Enough if there is no such epoch yet; TrainingError if the loss is not finite; PlanError for a phase that
    cannot be trained.
    """
    plan, phase, observer = model.plan, model.plan.phases[number - 1], model.observer
    judges = model.bench.judges(plan)
    options = check(plan, phase, model.bench.catalogue.info(plan.backbone, plan.input), judges)

    with _seeded(plan.seed, number, model.bench.device):
        training = _Training(model, phase, number, options)
        patience = phase.stop.patience if phase.stop else None
        kept = patience is not None or observer.may_have_enough
        best = _Best(training, patience, started=model.head is not None, kept=kept)
        try:
            judge = Source(model, phase.frozen, judges[:1]) if judges else None
            if model.head is not None and judge:  # the previous phase's model may be better than any later one
                best.see(0, facts := training.judge(judge, judges[0]))
                observer.epoch(number, 0, facts)
            last = phase.epochs if phase.stop is None or phase.stop.at_epoch is None else phase.stop.at_epoch
            for epoch in range(1, last + 1):
                started = time.perf_counter()
                facts = training.epoch(epoch)
                if judge:
                    facts |= training.judge(judge, judges[0])
                    _finite(facts[f"{judges[0]}.loss"], epoch)
                facts |= {"learning_rate": training.lr, "seconds": time.perf_counter() - started}
                over = best.see(epoch, facts)
                observer.epoch(number, epoch, facts)
                if over:
                    break
        except Enough:
            if not best.seen:
                raise
            model.plan = plan.ended(number, best.epoch)
        chosen = best.restore()
        training.finish()
    return {**chosen, **training.facts}


class _Training:
    """A running phase: the stages and the head that it trains, and the optimizer with its schedule."""

    def __init__(self, model: Model, phase: Phase, number: int, options: Options) -> None:
        plan, self.device = model.plan, model.bench.device
        self.model, self.phase, self.options = model, phase, options
        self.facts: dict[str, float] = {}
        augmentation = model.bench.catalogue.host.augmentations[plan.augmentation.name]
        transform = None
        if augmentation.name != "none":
            with augmentation.owner.answers_for(f"Augmentation '{augmentation.name}'", "cannot be built"):
                transform = augmentation.item.build(plan.augmentation.params)
                if not callable(transform):
                    raise TypeError(f"its build returned {type(transform).__name__}, not a function of images and draw")
        self.stages = model.stages.to(memory_format=precision.MEMORY_FORMATS[plan.memory_format])
        self.stages.freeze(phase.frozen)
        self.source = Source(model, phase.frozen, plan.train_on, transform=transform, views=options.views)
        self.steps = math.ceil(len(self.source) / options.batch_size)
        self.micro_batch = options.batch_size
        self.number = number
        self._train_mode()
        if phase.batch_norm == "train" and len(self.source) // self.steps == 1:
            self._try_one_image()
        self.head = _Head(self._scaling(), model.head, len(model.bench.dataset.classes), options.dropout)
        self.optimizer = _optimizer(self.stages, self.head, phase, options)
        model.change(phase.frozen, f"{plan.hash}.{number}")

    def epoch(self, epoch: int) -> dict[str, float]:
        """One pass over the images in a new order; returns the mean loss and the accuracy, both before each step."""
        self._train_mode()
        self.head.train()
        draw = torch.Generator().manual_seed(_seed(self.model.plan.seed, self.number, epoch))
        order = torch.randperm(len(self.source), generator=draw)
        total = torch.zeros((), device=self.device)
        seen: list[tuple[Tensor, Tensor]] = []
        for step, (values, labels) in enumerate(self.source.batches(order, self.steps, epoch)):
            share = ((epoch - 1) * self.steps + step + 0.5) / (self.phase.epochs * self.steps)
            for group in self.optimizer.param_groups:
                group["lr"] = group["base_lr"] * _schedule(share, self.options)
            loss, guessed = self._step(values, labels)
            total += loss * (len(labels) / len(self.source))
            seen.append((guessed, labels))
            self.model.observer.step()
        guesses, true = (torch.cat(part) for part in zip(*seen, strict=True))
        mean, accuracy = total.item(), (guesses == true).float().mean().item()
        # The last step may have made the weights infinite, which no loss shows yet.
        if math.isfinite(mean) and not all(parameter.isfinite().all() for parameter in self._parameters()):
            mean = math.nan
        return {"train.loss": _finite(mean, epoch), "train.accuracy": accuracy}

    @property
    def lr(self) -> float:
        """The head's learning rate in the last step; those of the stages follow the same schedule."""
        lr: float = self.optimizer.param_groups[0]["lr"]
        return lr

    def _step(self, values: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """One step of the optimizer; returns the mean loss, and the predicted class of each image before the step.

        A batch that does not fit into a GPU's memory is split, and gradients are accumulated.
        """
        while (found := self._gradients(values, labels)) is None:
            self._halve()
        if self.options.clip:
            nn.utils.clip_grad_norm_(self._parameters(), self.options.clip)
        self.optimizer.step()
        return found

    def _gradients(self, values: Tensor, labels: Tensor) -> tuple[Tensor, Tensor] | None:
        """Computes the gradients of a batch; returns what `_step` returns, None if out of memory."""
        self.optimizer.zero_grad()
        total = torch.zeros((), device=self.device)
        guesses = []
        try:
            parts = math.ceil(len(labels) / self.micro_batch)
            for value, label in zip(values.tensor_split(parts), labels.tensor_split(parts), strict=True):
                logits = self._logits(value)
                loss = self._loss(logits, label) * (len(label) / len(labels))
                loss.backward()
                total += loss.detach()
                guesses.append(logits.detach().argmax(1))
        except torch.OutOfMemoryError:
            return None
        return total, torch.cat(guesses)

    def _halve(self) -> None:
        if self.micro_batch == 1:
            raise TrainingError(TOO_LITTLE)
        self.micro_batch = math.ceil(self.micro_batch / 2)
        self.facts["micro_batch"] = self.micro_batch
        self.model.observer.note(
            f"Out of memory: {self.model.plan.backbone} with a batch of {self.options.batch_size} does not fit. "
            f"Training continues with micro-batches of {self.micro_batch} whose gradients are accumulated."
        )
        self.optimizer.zero_grad()
        self.model.bench.make_room()

    def judge(self, source: Source, split: str) -> dict[str, float]:
        """The training loss, with label smoothing, and every metric, on a split that is not trained on."""
        self.stages.eval()
        self.head.eval()
        rows = torch.arange(len(source))
        with torch.no_grad():
            steps = math.ceil(len(rows) / max(64, self.micro_batch))
            batches = [(self._in_parts(self._logits, value), label) for value, label in source.batches(rows, steps)]
        logits, labels = (torch.cat(part) for part in zip(*batches, strict=True))
        loss = self._loss(logits, labels).item()
        true, guessed = labels.cpu().numpy(), logits.argmax(1).cpu().numpy()
        facts = {f"{split}.{name}": metric(true, guessed) for name, metric in metrics.METRICS.items()}
        return {f"{split}.loss": loss, **facts}

    def state(self) -> dict[str, Tensor]:
        """All tensors that the phase changes, by name; not copied."""
        return {**self.stages.trained_state(), **self.head.state_dict(prefix="head.", keep_vars=True)}

    def finish(self) -> None:
        """Give the head to the model; set the stages to evaluation mode and unfreeze them."""
        self.model.head = self.head.folded()
        self.stages.freeze(None)
        self.stages.eval()

    def _in_parts(self, run: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
        return in_parts(run, value, self.model.bench.make_room)

    def _logits(self, value: Tensor) -> Tensor:
        return self.head(self._pooled(value))

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=self.options.label_smoothing)

    def _pooled(self, value: Tensor) -> Tensor:
        name = self.model.plan.backbone
        owner = self.model.bench.catalogue.owner(name)
        with (
            owner.answers_for(f"Backbone '{name}'", "fails in training"),
            precision.computing(self.model.plan.compute_dtype, self.device),
            _enough_for_batch_norm(self.phase),
        ):
            value = self.stages(value, start=self.phase.frozen)
        return pool(value.float(), self.stages.boundaries[-1], self.model.plan.head.pooling)

    @torch.no_grad()
    def _scaling(self) -> Scaling:
        """The scale of the features at the start of the phase, in its training mode.

        Without it the head would first have to learn the features' scale; compare the data-dependent initialisation of
        Krähenbühl et al. 2016, arXiv 1511.06856.
        """
        seen = torch.linspace(0, len(self.source) - 1, min(SCALING_IMAGES, len(self.source))).round().long()
        batches = self.source.batches(seen, math.ceil(len(seen) / self.options.batch_size))
        with self._without_updates():  # if split, batch norm uses the statistics of each part
            scaling = Scaling.of(torch.cat([self._in_parts(self._pooled, value) for value, _ in batches]))
        # A rarely active feature would become huge when it is active. One that is never active here may still have a
        # weight in the previous phase's head.
        constant = scaling.std.isinf()
        if constant.all():
            return scaling
        std = scaling.std.clamp(min=LEAST_STD * scaling.std[~constant].median())
        return Scaling(scaling.mean, torch.where(constant, 1.0 if self.model.head else torch.inf, std))

    @torch.no_grad()
    def _try_one_image(self) -> None:
        """Check before the first step whether batch norm can train on batches of one image.

        Raises: PlanError.
        """
        with self._without_updates():
            self._pooled(next(self.source.batches(torch.zeros(1, dtype=torch.long), 1))[0])

    @contextmanager
    def _without_updates(self) -> Iterator[None]:
        """In this context batch norm keeps its statistics."""
        buffers = [(buffer, buffer.clone()) for buffer in self.stages.buffers()]
        try:
            yield
        finally:
            for buffer, before in buffers:
                buffer.copy_(before)

    def _train_mode(self) -> None:
        self.stages.train()
        if self.phase.batch_norm == "eval":
            for module in self.stages.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def _parameters(self) -> Iterator[nn.Parameter]:
        for group in self.optimizer.param_groups:
            yield from group["params"]


class _Head(nn.Module):
    """A linear classifier on scaled features. Without a head from a previous phase it starts at zero.

    As in BiT: Kolesnikov et al. 2020, arXiv 1912.11370.
    """

    def __init__(self, scaling: Scaling, head: LinearHead | None, classes: int, dropout: float) -> None:
        super().__init__()
        self._scaling = scaling
        self._dropout = dropout
        if head is None:
            zero = scaling.mean.new_zeros(classes, len(scaling.mean))
            start = LinearHead(zero, zero.new_zeros(classes))
        else:
            start = scaling.unfold(head)
        self.weight, self.bias = nn.Parameter(start.weight.clone()), nn.Parameter(start.bias.clone())

    def forward(self, features: Tensor) -> Tensor:
        """[N, D] raw features → logits [N, C]."""
        scaled = F.dropout(self._scaling.apply(features), self._dropout, self.training)
        return F.linear(scaled, self.weight, self.bias)

    def folded(self) -> LinearHead:
        return self._scaling.fold(LinearHead(self.weight.detach(), self.bias.detach()))


class _Best:
    """Keeps the epoch with the lowest loss on `early_stop`, to restore it; without patience, the last epoch."""

    def __init__(self, training: _Training, patience: int | None, *, started: bool, kept: bool) -> None:
        """`started`: whether an earlier phase has left a model, which then counts as epoch 0.

        `kept`: whether an epoch other than the last may be restored; if not, no weights are copied.
        """
        self._training = training
        self._patience = patience
        self._kept = kept
        self.epoch = 0
        self._facts: dict[str, float] = {}
        self._state = self._copies() if started else {}
        self._loss = math.inf

    @property
    def seen(self) -> bool:
        """Whether there is anything to restore."""
        return bool(self._state)

    def see(self, epoch: int, facts: dict[str, float]) -> bool:
        """Whether to stop after this epoch."""
        if self._patience is None or facts["early_stop.loss"] < self._loss:
            self.epoch, self._facts, self._loss = epoch, facts, facts.get("early_stop.loss", math.inf)
            self._state = self._copies()
        return self._patience is not None and epoch - self.epoch >= self._patience

    def _copies(self) -> dict[str, Tensor]:
        state = self._training.state() if self._kept else {}
        return {name: tensor.detach().clone() for name, tensor in state.items()}

    @torch.no_grad()
    def restore(self) -> dict[str, float]:
        """Restore the best epoch; returns its number and its metrics."""
        for name, tensor in self._training.state().items():
            if name in self._state:
                tensor.copy_(self._state[name])
        measured = {name: value for name, value in self._facts.items() if "." in name}
        return {"best_epoch": self.epoch, **measured}


def _options(phase: Phase) -> Options:
    try:
        return Options.model_validate(phase.options)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            raise PlanError(unknown("option of a phase by sgd", where, Options.model_fields)) from None
        raise PlanError(f"The options of a phase by sgd are not valid: {first['msg']} (at options.{where}).") from None


def check(plan: TransferPlan, phase: Phase, info: BackboneInfo, judges: Sequence[Split]) -> Options:
    """The options of a phase by sgd that is evaluated on these splits.

    Raises: PlanError if something is missing or invalid.
    """
    stages, frozen = [stage.name for stage in info.upto(plan.cut)], phase.frozen
    trained = stages[stages.index(frozen) + 1 if frozen else 0 :]
    needed = [name for name in trained if info.stage(name).parameters]
    span = f"stages {trained[0]} to {trained[-1]} are trained" if trained else "only the head is trained"
    for name in phase.stage_lr:
        if name not in trained:
            raise PlanError(f"'stage_lr' has a learning rate for '{name}', but by 'frozen' and 'cut' {span}.")
    for name in needed:
        if name not in phase.stage_lr:
            raise PlanError(f"'stage_lr' lacks a learning rate for the stage '{name}': by 'frozen' and 'cut' {span}.")
    if plan.head.taps:
        raise PlanError("A phase by sgd trains a head on the cut's features only: leave 'taps' empty.")
    if phase.head_lr is None or phase.epochs < 1:
        raise PlanError("A phase by sgd needs a head_lr, and epochs of 1 or more.")
    if phase.stop and phase.stop.patience and "early_stop" not in judges:
        raise PlanError(
            "The plan stops by the loss on 'early_stop', but there is no such split: "
            'set "stop": null to train all epochs.'
        )
    return _options(phase)


def _optimizer(stages: Stages, head: _Head, phase: Phase, options: Options) -> torch.optim.Optimizer:
    """The optimizer with a learning rate per stage and for the head.

    Norms, biases and the parameters that the network exempts have no weight decay.
    """
    groups = []
    parts = [(phase.head_lr, dict(head.named_parameters()))]
    parts += [(lr, stages.stage_parameters(name)) for name, lr in phase.stage_lr.items()]
    without = stages.no_weight_decay()
    for lr, parameters in parts:
        decayed = {name for name, parameter in parameters.items() if parameter.ndim > 1} - without
        for decay, members in (
            (options.weight_decay, [p for name, p in parameters.items() if name in decayed]),
            (0.0, [p for name, p in parameters.items() if name not in decayed]),
        ):
            if members:
                groups.append({"params": members, "weight_decay": decay, "base_lr": lr})
    if options.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=0.0, fused=True)
    nesterov = options.momentum > 0
    return torch.optim.SGD(groups, lr=0.0, momentum=options.momentum, nesterov=nesterov, fused=True)


def _finite(loss: float, epoch: int) -> float:
    if not math.isfinite(loss):
        raise TrainingError(
            f"The loss became {loss} in epoch {epoch}: the learning rates are too high for these images."
        )
    return loss


def _schedule(share: float, options: Options) -> float:
    """The factor of the learning rates after this share of the phase's steps."""
    if share < options.warm_up:
        return share / options.warm_up
    if options.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (share - options.warm_up) / (1 - options.warm_up)))


@contextmanager
def _enough_for_batch_norm(phase: Phase) -> Iterator[None]:
    """Raises: PlanError if a batch gives batch norm a single value per channel, which has no deviation."""
    try:
        yield
    except ValueError as error:
        if phase.batch_norm == "train" and ONE_VALUE in str(error):
            raise PlanError(
                '"batch_norm": "train" normalises by each batch, but with a batch_size of '
                f"{phase.options['batch_size']} a batch here is one image, which has one value per channel: "
                'set a larger batch_size, or "batch_norm": "eval".'
            ) from None
        raise


@contextmanager
def _seeded(seed: int, number: int, device: str) -> Iterator[None]:
    """In this context torch's random numbers, such as dropout's, depend only on the plan's seed and the phase."""
    devices = [torch.device(device)] if kind(device) == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(_seed(seed, number))
        if kind(device) == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(_seed(seed, number))
        elif kind(device) == "mps":
            torch.mps.manual_seed(_seed(seed, number))
        yield


def _seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)
