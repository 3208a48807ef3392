"""The environment in which plugins are tested: a host with the plugin, two small networks and ninety small images."""

import random
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from functools import cached_property
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import numpy as np
import optuna
import torch
from PIL import Image
from torch import Tensor, nn

from autotl import hookimpl
from autotl.backbones.catalogue import Catalogue
from autotl.contracts import DataFacts, ModelCard
from autotl.engine.bench import Bench
from autotl.engine.fit import Fitted, fit
from autotl.engine.precision import Arithmetic
from autotl.host import Host
from autotl.plan import (
    HEADS,
    NO_AUGMENTATION,
    Component,
    DataRef,
    Head,
    Input,
    Phase,
    Technique,
    Training,
    TransferPlan,
)
from autotl.study.space import DRAWN, OwnTrial, SearchContext, is_classifier

SEED = 7
EPOCHS = 2
"""The most epochs per phase: enough to see which stages change."""
FACTS = DataFacts(
    classes=3, train_images=900, smallest_class=12, largest_class=600, has_early_stop=True, image_size=400
)
"""The facts about the data that strategies get: more images than there are, so that no option is skipped for lack of
images, and classes so unequal that class weights are searched."""
FEWER = DataFacts(classes=2, train_images=30, smallest_class=12, largest_class=18, has_early_stop=False, image_size=32)
"""The facts of a small data set with two classes of about equal size."""
TIMES = ("seconds", "val.seconds")


class TinyNetwork(nn.Sequential):
    """Three small layers, `more` extra ones, and a classifier: images of 16 px or more → [N, 5]."""

    def __init__(self, more: int = 0) -> None:
        super().__init__(
            nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
            nn.Sequential(nn.Conv2d(8, 12, 3, stride=2), nn.BatchNorm2d(12), nn.ReLU()),
            nn.Sequential(nn.Conv2d(12, 16, 3, stride=2), nn.ReLU()),
            *(nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()) for _ in range(more)),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(16, 5),
        )


class TinyFamily:
    """Networks that need no weights file: `tiny:net` has three stages, `tiny:deep` seven."""

    more: Mapping[str, int] = {"net": 0, "deep": 4}

    def names(self) -> list[str]:
        return list(self.more)

    def card(self, name: str) -> ModelCard:
        if name not in self.more:
            raise KeyError(name)
        preparation = Input(size=32, resize=32, interpolation="bilinear", mean=(0.5,) * 3, std=(0.25,) * 3)
        return ModelCard(input=preparation, weights=None, source="nothing", license="none")

    def build(self, name: str, weights: Path | None) -> nn.Module:
        return TinyNetwork(self.more[name])


class TinyPlugin:
    @hookimpl
    def register_backbones(self, register: Any) -> None:
        register("tiny", TinyFamily, summary="Networks for tests")


def write_stripes(folder: Path) -> Path:
    """Write an image folder of three classes, 30 noisy images of 32 px each: stripes across, stripes down, checks."""
    draw = np.random.default_rng(0)
    y, x = np.mgrid[:32, :32]
    patterns = {"across": y // 4 % 2, "down": x // 4 % 2, "checks": (x // 4 + y // 4) % 2}
    for name, pattern in patterns.items():
        (folder / name).mkdir(parents=True)
        for number in range(30):
            shifted = np.roll(pattern, tuple(draw.integers(8, size=2)), (0, 1))[..., None]
            noisy = 90 + 60 * shifted + draw.normal(0, 60, (32, 32, 3))
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / name / f"{number}.png")
    return folder


def host_with(plugin: ModuleType) -> tuple[Host, str]:
    """A host that has loaded this module, installed or not, and the module's name as a plugin."""
    host = Host.from_environment()
    name = host.name_of(plugin)
    if name is None:
        name = plugin.__name__
        host.add(plugin, name)
    return host, name


class Lab:
    """Runs one plugin as a search would, on the CPU."""

    def __init__(self, plugin: ModuleType, folder: Path) -> None:
        self.plugin = plugin
        self.folder = folder
        self.host, self.name = host_with(plugin)
        self.host.add(TinyPlugin(), "tiny-networks")
        self.catalogue = Catalogue(self.host, folder / "cache")

    @cached_property
    def bench(self) -> Bench:
        images = write_stripes(self.folder / "stripes")
        inputs = [self.catalogue.card("tiny:net").input]
        return Bench.open(images, inputs, self.catalogue, "cpu", seed=SEED)

    def trial(self, known: Mapping[str, Any], seed: int = 0) -> optuna.Trial:
        """A trial that draws the parameters that are not `known`."""
        study = new_study(seed)
        study.enqueue_trial(dict(known))
        return study.ask()

    def asked(self, kind: str, name: str, trial: optuna.Trial) -> OwnTrial:
        """The view of a trial that is passed to what is registered under this name."""
        return OwnTrial(trial, self.host.registries[kind][name], f"'{name}'", self.host)

    def context(self, trial: optuna.Trial, facts: DataFacts = FACTS) -> SearchContext:
        """A context that draws nothing of other authors, who are not under test."""
        drawn = {
            kind: {
                entry.name: entry
                for entry in self.host.registries[kind]
                if (entry.owner.plugin == self.name or entry.owner.distribution == "autotl")
                and (kind != "methods" or hasattr(entry.item, "step"))
            }
            for kind in DRAWN.values()
        }
        return SearchContext(
            trial,
            catalogue=self.catalogue,
            backbones=["tiny:net", "tiny:deep"],
            drawn=drawn,
            data=facts,
            data_ref=DataRef(fingerprint=self.bench.dataset.fingerprint, split_seed=SEED),
            seed=SEED,
            arithmetic=lambda name: Arithmetic(),
            techniques=get_args(Technique),
            heads=HEADS,
            classifiers=[
                entry.name
                for entry in self.host.methods
                if is_classifier(entry) and (entry.owner.plugin == self.name or entry.owner.distribution == "autotl")
            ],
        )

    def plan(self, *phases: Phase, backbone: str = "tiny:net", augmentation: Component | None = None) -> TransferPlan:
        """A plan for a whole network."""
        info = self.catalogue.info(backbone)
        network = self.catalogue.network(backbone, SEED)
        return TransferPlan(
            backbone=backbone,
            weights=network.weights,
            input=network.input,
            cut=info.names[-1],
            head=Head(pooling="avg"),
            augmentation=augmentation or NO_AUGMENTATION,
            data=DataRef(fingerprint=self.bench.dataset.fingerprint, split_seed=SEED),
            seed=SEED,
            requires=self.catalogue.requires(backbone),
            phases=phases,
        )

    def fit(self, plan: TransferPlan) -> Fitted:
        return fit(plan, self.bench)


def new_study(seed: int) -> optuna.Study:
    """A study in memory that samples at random, without log messages."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))


def names_of(plugin: ModuleType, kind: str) -> list[str]:
    """What a plugin registers of a kind: one of `autotl.host.KINDS`."""
    host, owner = host_with(plugin)
    return [entry.name for entry in host.registries[kind] if entry.owner.plugin == owner]


def sgd(frozen: str | None, trained: tuple[str, ...], lr: float = 0.01, epochs: int = EPOCHS) -> Phase:
    """A phase that trains these stages and the head by plain gradient descent."""
    training = Training(
        epochs=epochs,
        batch_size=16,
        head_lr=0.1,
        stage_lr=dict.fromkeys(trained, lr),
        optimizer=Component(name="sgd", params={"momentum": 0.0}),
        schedule="constant",
        clip_grad=1.0,
    )
    return Phase(method="gradient-descent", frozen=frozen, training=training)


def linear_probe(cut: str) -> Phase:
    """A phase that fits only the head."""
    return Phase(method="logistic", frozen=cut, options={"penalty": 0.1})


def shortened(plan: TransferPlan) -> TransferPlan:
    """The same plan with few epochs and no early stopping."""
    phases = tuple(
        phase.trained_by(epochs=min(phase.training.epochs, EPOCHS), stop=None) if phase.training else phase
        for phase in plan.phases
    )
    return plan.model_copy(update={"phases": phases})


def stir(seed: int) -> None:
    """Seed every global generator: results that depend on them then differ between values of `seed`."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextmanager
def well_behaved(what: str, draws: Collection[str] = ()) -> Iterator[None]:
    """Check that code of a plugin in this context prints nothing, and neither draws from nor seeds a global generator.

    `draws`: the ones of `random`, `numpy.random` and `torch` that it may draw from.
    """
    printed, before = StringIO(), _generators()
    with redirect_stdout(printed):
        yield
    text = printed.getvalue()
    assert not text, f"{what} prints {text[:40]!r}: standard output is for results. Use warnings or logging."
    changed = [name for name, state in _generators().items() if state != before[name] and name not in draws]
    assert not changed, (
        f"{what} draws from a global generator or seeds it: {', '.join(changed)}. That changes the random numbers of "
        "other code, and no plan records it."
    )


def _generators() -> dict[str, object]:
    """The state of every global generator."""
    _, keys, *places = np.random.get_state(legacy=True)
    return {
        "random": random.getstate(),
        "numpy.random": (np.asarray(keys).tobytes(), places),
        "torch": torch.get_rng_state().numpy().tobytes(),
    }


def state_before(lab: Lab, plan: TransferPlan) -> dict[str, Tensor]:
    """The initial state of a plan's stages."""
    stages = lab.catalogue.build(plan.network).cut(plan.cut)
    return {name: value.clone() for name, value in stages.state_dict().items()}


def assert_same(first: Fitted, second: Fitted, what: str) -> None:
    """Assert that training one plan twice gave the same weights and the same metrics."""
    one, two = first.model, second.model
    assert one.head is not None
    assert two.head is not None
    pairs = (one.head, two.head), (one.stages, two.stages)
    states = [(each.state_dict(), other.state_dict()) for each, other in pairs]
    same = all(torch.equal(value, other[name]) for each, other in states for name, value in each.items())
    assert same, f"{what}: training the same plan twice, with the same seed, gave different weights."
    numbers = [{name: value for name, value in each.metrics.items() if name not in TIMES} for each in (first, second)]
    same = numbers[0] == numbers[1]
    assert same, f"{what}: training the same plan twice, with the same seed, gave different metrics."


def assert_only_trained_moves(lab: Lab, fitted: Fitted, what: str) -> None:
    """Assert that frozen stages are bit-identical, and that every stage with a learning rate has changed."""
    plan, stages = fitted.plan, fitted.model.stages
    before, after = state_before(lab, plan), stages.state_dict()
    highest: dict[str, float] = {}
    for training in plan.trainings:
        for name, lr in training.stage_lr.items():
            highest[name] = max(lr, highest.get(name, 0.0))
    for name in stages.names:
        parameters = stages.stage_parameters(name)
        moved = [key for key in parameters if not torch.equal(before[key], after[key])]
        if highest.get(name):
            assert moved or not parameters, (
                f"{what}: the stage '{name}' has a learning rate of {highest[name]:.2g} and did not change: "
                "its learning rate does not reach the optimizer, or no gradient reaches the stage."
            )
        else:
            assert not moved, f"{what}: the stage '{name}' is frozen, but {', '.join(moved)} changed."
    ends = [stages.names.index(phase.frozen) + 1 if phase.frozen else 0 for phase in plan.phases]
    stages.freeze(stages.names[min(ends) - 1] if min(ends) else None)
    trained = set(stages.trained_state())
    stages.freeze(None)
    for key in before.keys() - trained:
        same = torch.equal(before[key], after[key])
        assert same, f"{what}: '{key}' belongs to a frozen stage, but training changed it."
