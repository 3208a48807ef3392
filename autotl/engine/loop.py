"""The training loop of a phase: epochs of steps on batches, each epoch judged, the best one kept."""

import math
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from autotl.contracts import BackboneInfo
from autotl.data.split import Split
from autotl.engine import metrics
from autotl.engine.activations import Source
from autotl.engine.best import Best
from autotl.engine.feed import to_device
from autotl.engine.memory import TOO_LITTLE
from autotl.engine.model import Model
from autotl.engine.objective import Objective
from autotl.engine.observe import Enough
from autotl.engine.optim import Average, Descent
from autotl.engine.seeds import generator, seeded
from autotl.engine.teacher import probabilities
from autotl.engine.tools import Tools, tools
from autotl.engine.trainee import Trainee
from autotl.errors import PlanError, TrainingError
from autotl.host import Host
from autotl.plan import Phase, Training, TransferPlan


def train(model: Model, number: int) -> dict[str, float]:
    """Train phase `number` of the plan, starting from the model of the previous phase.

    If the observer raises `Enough`, the model's plan becomes the one that ends with the best epoch so far.

    Raises: Enough if there is no such epoch yet; TrainingError if the loss is not finite; PlanError for a phase that
    cannot be trained.
    """
    plan, phase, observer = model.plan, model.plan.phases[number - 1], model.observer
    training, catalogue = _training(phase), model.bench.catalogue
    judges = model.bench.judges(plan)
    found = check(plan, phase, catalogue.info(plan.backbone, plan.input), judges, catalogue.host)
    patience = training.stop.patience if training.stop else None

    with seeded(model.bench.device, plan.seed, number):
        run = _Run(model, number, found)
        kept = patience is not None or observer.may_have_enough
        best = Best(run.trainee.state(), patience, started=model.head is not None, kept=kept)
        judge = Source(model, phase.frozen, judges[:1]) if judges else None
        try:
            if model.head is not None and judge:  # the previous phase's model may be better than any later one
                best.see(0, facts := run.judge(judge, judges[0]))
                observer.epoch(number, 0, facts)
            last = training.epochs if training.stop is None or patience else training.stop.at_epoch or 0
            for epoch in range(1, last + 1):
                started = time.perf_counter()
                facts = run.epoch(epoch)
                run.swap_averages()
                if judge:
                    facts |= run.judge(judge, judges[0])
                    _finite(facts[f"{judges[0]}.loss"], epoch)
                facts |= {"learning_rate": run.descent.lr, "seconds": time.perf_counter() - started}
                over = best.see(epoch, facts)
                observer.epoch(number, epoch, facts)
                if over or epoch == last:
                    break
                run.swap_averages()
        except Enough:
            if not best.seen:
                raise
            model.plan = plan.ended(number, best.epoch)
        chosen = best.restore()
        run.trainee.finish()
    return {**chosen, **run.facts}


def check(plan: TransferPlan, phase: Phase, info: BackboneInfo, judges: Sequence[Split], host: Host) -> Tools:
    """What a phase of gradient descent needs of plugins, if it can be trained and is evaluated on these splits.

    Raises: PlanError if something is missing or invalid.
    """
    training = _training(phase)
    stages, frozen = [stage.name for stage in info.upto(plan.cut)], phase.frozen
    trained = stages[stages.index(frozen) + 1 if frozen else 0 :]
    span = f"stages {trained[0]} to {trained[-1]} are trained" if trained else "only the head is trained"
    for name in training.stage_lr:
        if name not in trained:
            raise PlanError(f"'stage_lr' has a learning rate for '{name}', but by 'frozen' and 'cut' {span}.")
    for name in training.stage_adapters:
        if name not in trained:
            raise PlanError(f"'stage_adapters' names '{name}', but by 'frozen' and 'cut' {span}.")
    for name in trained:
        if info.stage(name).parameters and name not in training.stage_lr:
            raise PlanError(f"'stage_lr' lacks a learning rate for the stage '{name}': by 'frozen' and 'cut' {span}.")
    if plan.head.taps:
        raise PlanError(f"{phase.method} trains a head on the cut's features only: leave 'taps' empty.")
    if training.stop and training.stop.patience and "early_stop" not in judges:
        raise PlanError(
            "The plan stops by the loss on 'early_stop', but there is no such split: "
            'set "stop": null to train all epochs.'
        )
    if training.cutmix and places(info, frozen) is None:
        raise PlanError(f"'cutmix' needs values with height and width, but '{frozen}' ends in tokens: set it to 0.")
    return tools(plan, phase, host)


def places(info: BackboneInfo, frozen: str | None) -> tuple[int, int] | None:
    """The dimensions of height and width in a batch of values at the frozen boundary; None if they have none."""
    layout = "NCHW" if frozen is None else info.stage(frozen).layout
    return {"NCHW": (2, 3), "NHWC": (1, 2), "tokens": None}[layout]


def balanced(classes: Sequence[Tensor], draw: torch.Generator) -> Tensor:
    """A random order of as many images as there are: equally many of each class, give or take one, and each image of a
    class equally often, give or take once. classes: the images of each, [N] indices."""
    images = sum(map(len, classes))
    chosen = []
    for turn, at in enumerate(torch.randperm(len(classes), generator=draw).tolist()):
        rows = classes[at]
        count = (images + turn) // len(classes)  # the counts of all turns add up to `images`
        orders = [torch.randperm(len(rows), generator=draw) for _ in range(math.ceil(count / len(rows)))]
        chosen.append(rows[torch.cat(orders)[:count]])
    together = torch.cat(chosen)
    return together[torch.randperm(images, generator=draw)]


class _Run:
    """A running phase."""

    def __init__(self, model: Model, number: int, found: Tools) -> None:
        plan, phase = model.plan, model.plan.phases[number - 1]
        bench, training = model.bench, _training(phase)
        info = bench.catalogue.info(plan.backbone, plan.input)
        self._model, self._number, self._training, self._tools = model, number, training, found
        self.facts: dict[str, float] = {}
        self._source = Source(model, phase.frozen, plan.train_on, transform=found.transform, views=training.views)
        self._steps = math.ceil(len(self._source) / training.batch_size)
        self._micro_batch = training.batch_size
        labels = self._source.labels.cpu() if training.sampling == "balanced" else torch.empty(0)
        self._classes = [rows for label in labels.unique() for rows in (labels == label).nonzero(as_tuple=True)]
        """The images of each class, for balanced sampling."""
        self.trainee = Trainee(model, phase, found, self._source)
        self._objective = Objective(
            training, found.loss, self._source.labels, len(bench.dataset.classes), places(info, phase.frozen)
        )
        self.descent = Descent(
            training,
            dict(self.trainee.head.named_parameters(prefix="head")),
            self.trainee.parts.by_stage,
            pretrained=self.trainee.parts.pretrained,
            exempt=self.trainee.stages.no_weight_decay(),
            build=found.optimizer,
            advance=found.advance,
            steps=training.epochs * self._steps,
        )
        self._taught = probabilities(model, training.teacher) if training.teacher else None
        self._average = Average(self.trainee.state(), training.ema) if training.ema else None
        model.change(phase.frozen, f"{plan.hash}.{number}")

    def epoch(self, epoch: int) -> dict[str, float]:
        """As many steps as a pass over the images takes; returns the mean objective and accuracy, before each step."""
        self.trainee.train()
        draw = generator(self._model.plan.seed, self._number, epoch)
        order = self._order(draw)
        total = torch.zeros((), device=self._model.bench.device)
        seen: list[tuple[Tensor, Tensor]] = []
        parts = to_device(order, self._source.labels.device).tensor_split(self._steps)
        for rows, (values, labels) in zip(parts, self._source.batches(order, self._steps, epoch), strict=True):
            values, targets = self._objective.mixed(values, self._targets(rows), draw)
            batch = _Batch(self, values, targets)
            self.descent.start()
            self._tools.step(batch)
            if self._average:
                self._average.update()
            loss, guessed = batch.before
            total += loss * (len(labels) / len(self._source))
            seen.append((guessed, labels))
            self._model.observer.step()
        guesses, true = (torch.cat(part) for part in zip(*seen, strict=True))
        mean, accuracy = total.item(), (guesses == true).float().mean().item()
        # The last step may have made the weights infinite, which no loss shows yet.
        if math.isfinite(mean) and not self.descent.finite():
            mean = math.nan
        return {"train.loss": _finite(mean, epoch), "train.accuracy": accuracy}

    def _order(self, draw: torch.Generator) -> Tensor:
        """The images of an epoch, [N] indices on the CPU; `draw` is on the CPU."""
        if self._training.sampling == "balanced":
            return balanced(self._classes, draw)
        return torch.randperm(len(self._source), generator=draw)

    def _targets(self, rows: Tensor) -> Tensor:
        """The targets of the latest batch, the images `rows`, [N] indices on the device, as the augmentation mixed
        them: [N, C]."""
        if not self._source.mixes:
            return self._soft(rows)
        partners, shares = self._source.mixed(len(rows))
        return torch.lerp(self._soft(partners), self._soft(rows), shares[:, None])

    def _soft(self, rows: Tensor) -> Tensor:
        targets = self._objective.targets(self._source.labels[rows])
        if self._taught is None or self._training.teacher is None:
            return targets
        return torch.lerp(targets, self._taught[rows], self._training.teacher.share)

    def judge(self, source: Source, split: str) -> dict[str, float]:
        """The cross-entropy of the objective, and the metrics, on a split that is not trained on.

        A cross-entropy that is not finite comes without metrics.
        """
        self.trainee.eval()
        rows = torch.arange(len(source))
        with torch.no_grad():
            steps = math.ceil(len(rows) / max(64, self._micro_batch))
            batches = [(self.trainee.in_parts(value), label) for value, label in source.batches(rows, steps)]
        logits, labels = (torch.cat(part) for part in zip(*batches, strict=True))
        loss = self._objective.judged(logits, labels)
        facts = {f"{split}.loss": loss}
        if math.isfinite(loss):
            true, probabilities = labels.cpu().numpy(), metrics.probabilities(logits.cpu().numpy())
            for entry in self._model.bench.metrics:
                facts[f"{split}.{entry.name}"] = metrics.measure(entry, true, probabilities)
        return facts

    def swap_averages(self) -> None:
        """Exchange the weights with their moving averages, if the phase averages them."""
        if self._average:
            self._average.swap()

    def gradients(self, values: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the gradients of a batch; returns its mean objective, and the predicted class of each image.

        A batch that does not fit into a GPU's memory, even when nothing is kept there, is split, and gradients are
        accumulated.
        """
        while (found := self._accumulated(values, targets)) is None:
            if not self._model.bench.memory.recover():
                self._halve()
        return found

    def _accumulated(self, values: Tensor, targets: Tensor) -> tuple[Tensor, Tensor] | None:
        """What `gradients` returns; None if out of memory."""
        self.descent.zero_grad()
        total = torch.zeros((), device=values.device)
        guesses = []
        try:
            parts = math.ceil(len(targets) / self._micro_batch)
            for value, target in zip(values.tensor_split(parts), targets.tensor_split(parts), strict=True):
                logits = self.trainee.logits(value)
                loss = self._objective(logits, target) * (len(target) / len(targets))
                loss.backward()
                total += loss.detach()
                guesses.append(logits.detach().argmax(1))
        except torch.OutOfMemoryError:
            return None
        return total, torch.cat(guesses)

    def _halve(self) -> None:
        if self._micro_batch == 1:
            raise TrainingError(TOO_LITTLE)
        self._micro_batch = math.ceil(self._micro_batch / 2)
        self.facts["micro_batch"] = self._micro_batch
        self._model.observer.note(
            f"Out of memory: {self._model.plan.backbone} with a batch of {self._training.batch_size} does not fit. "
            f"Training continues with micro-batches of {self._micro_batch} whose gradients are accumulated."
        )
        self.descent.zero_grad()


class _Batch:
    """A batch of training images, as a method sees it; see `contracts.Batch`."""

    def __init__(self, run: _Run, values: Tensor, targets: Tensor) -> None:
        self._run, self._values, self._targets = run, values, targets
        self._computed: list[tuple[Tensor, Tensor]] = []
        self.updated = False

    @property
    def parameters(self) -> Sequence[nn.Parameter]:
        return self._run.descent.parameters

    def gradients(self) -> None:
        self._computed.append(self._run.gradients(self._values, self._targets))

    def update(self) -> None:
        if not self._computed:
            raise RuntimeError("update() was called before gradients()")
        self._run.descent.update()
        self.updated = True

    @property
    def before(self) -> tuple[Tensor, Tensor]:
        """The mean objective, and the predicted class of each image, before the step."""
        return self._computed[0]


def _training(phase: Phase) -> Training:
    if phase.training is None:
        raise PlanError(f"{phase.method} trains by gradient descent: the phase needs 'training', with its epochs.")
    return phase.training


def _finite(loss: float, epoch: int) -> float:
    if not math.isfinite(loss):
        raise TrainingError(
            f"The loss became {loss} in epoch {epoch}: the learning rates are too high for these images."
        )
    return loss
