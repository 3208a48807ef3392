"""Every strategy changes exactly the parameters and statistics that its plans say, with every adapter."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import nn

from autotl import hookimpl
from autotl.backbones.catalogue import Catalogue
from autotl.engine.bench import Bench
from autotl.engine.fit import fit
from autotl.engine.precision import Arithmetic
from autotl.host import Host
from autotl.plan import DataRef
from autotl.study.space import DRAWN, SearchContext
from autotl.study.suggestions import facts_of
from autotl.testing.lab import TinyFamily, TinyPlugin, new_study, shortened, write_stripes

STRATEGIES, ADAPTERS = (
    [entry.name for entry in registry if entry.owner.distribution == "autotl"]
    for registry in (Host().strategies, Host().adapters)
)
FROZEN = {"none": 0.0, "some": 0.5, "all": 1.0}
SEED = 3


class BatchNormed(nn.Sequential):
    """Four stages; the depthwise convolution has groups."""

    def __init__(self):
        super().__init__(
            nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU()),
            nn.Sequential(nn.Conv2d(8, 8, 3, stride=2, groups=8), nn.ReLU()),
            nn.Sequential(nn.Conv2d(8, 12, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU()),
            nn.Sequential(nn.Conv2d(12, 16, 3), nn.ReLU()),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(16, 5),
        )


class Patches(nn.Module):
    def __init__(self):
        super().__init__()
        self.project = nn.Conv2d(3, 8, 8, stride=8)

    def forward(self, images):
        return self.project(images).flatten(2).transpose(1, 2)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, tokens):
        return tokens + self.down(self.up(self.norm(tokens)).relu())


class LayerNormed(nn.Module):
    """Three stages of tokens; the last one includes the final norm."""

    def __init__(self):
        super().__init__()
        self.patches, self.blocks, self.norm = Patches(), nn.Sequential(Block(), Block()), nn.LayerNorm(8)
        self.classifier = nn.Linear(8, 5)

    def forward(self, images):
        return self.classifier(self.norm(self.blocks(self.patches(images))).mean(1))


class Family(TinyFamily):
    networks = {"batch": BatchNormed, "layer": LayerNormed}

    def names(self):
        return list(self.networks)

    def card(self, name):
        return TinyFamily().card("net")

    def build(self, name, weights):
        return self.networks[name]()


class Plugin:
    @hookimpl
    def register_backbones(self, register):
        register("normed", Family, summary="For a test")


ENDING = {"all": ("weight", "bias"), "norm": ("weight", "bias"), "bias": ("bias",), "lora": ()}
"""What each adapter trains of the final norm."""


def block(name):
    """What each adapter trains of a block."""
    weights, biases = ({f"{name}.{part}.{kind}" for part in ("up", "down")} for kind in ("weight", "bias"))
    norm = {f"{name}.norm.{kind}" for kind in ("weight", "bias")}
    return {
        "all": weights | biases | norm,
        "norm": norm,
        "bias": biases | {f"{name}.norm.bias"},
        "lora": weights,
    }


PARAMETERS = {
    "batch": {
        "0.2": {
            "all": {"0.0.weight", "0.0.bias", "0.1.weight", "0.1.bias"},
            "norm": {"0.1.weight", "0.1.bias"},
            "bias": {"0.0.bias", "0.1.bias"},
            "lora": {"0.0.weight"},
        },
        "1.1": {"all": {"1.0.weight", "1.0.bias"}, "norm": set(), "bias": {"1.0.bias"}, "lora": set()},
        "2.2": {
            "all": {"2.0.weight", "2.1.weight", "2.1.bias"},
            "norm": {"2.1.weight", "2.1.bias"},
            "bias": {"2.1.bias"},
            "lora": {"2.0.weight"},
        },
        "3.1": {"all": {"3.0.weight", "3.0.bias"}, "norm": set(), "bias": {"3.0.bias"}, "lora": {"3.0.weight"}},
    },
    "layer": {
        "patches": {
            "all": {"patches.project.weight", "patches.project.bias"},
            "norm": set(),
            "bias": {"patches.project.bias"},
            "lora": {"patches.project.weight"},
        },
        "blocks.0": block("blocks.0"),
        "norm": {name: own | {f"norm.{kind}" for kind in ENDING[name]} for name, own in block("blocks.1").items()},
    },
}
"""What each adapter trains of each stage."""
STATISTICS = {
    "batch": {
        stage: {f"{norm}.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
        for stage, norm in (("0.2", "0.1"), ("2.2", "2.1"))
    },
    "layer": {},
}
"""The buffers of each stage that training in batch norm's training mode changes."""
WHOLE = {"full", "scratch"}
"""Strategies that train every stage."""
HEAD_ONLY = {"linear-probe"}
"""Strategies that train none."""


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    place = tmp_path_factory.mktemp("changes")
    host = Host()
    host.add(TinyPlugin(), "tiny")
    host.add(Plugin(), "normed")
    catalogue = Catalogue(host, place / "cache")
    return Bench.open(
        write_stripes(place / "stripes"), [catalogue.card("normed:batch").input], catalogue, "cpu", seed=0
    )


def suggested(bench, strategy, network, known):
    """A plan of a strategy for the whole network."""
    host = bench.catalogue.host
    drawn = {kind: {entry.name: entry for entry in host.registries[kind]} for kind in DRAWN.values()}
    one = {"methods": "gradient-descent", "objectives": "cross-entropy", "optimizers": "adamw", "augmentations": "none"}
    study = new_study(SEED)
    study.enqueue_trial({"cut": 1.0, "recipe.batch_size_log2": 3, "recipe.length": 0.0, "adamw.lr": 1e-3, **known})
    trial = study.ask()
    context = SearchContext(
        trial,
        catalogue=bench.catalogue,
        backbones=[f"normed:{network}"],
        drawn=drawn | {kind: {name: host.registries[kind][name]} for kind, name in one.items()},
        data=replace(facts_of(bench.dataset), has_early_stop=False),
        data_ref=DataRef(fingerprint=bench.dataset.fingerprint, split_seed=0),
        seed=SEED,
        arithmetic=lambda name: Arithmetic(),
    )
    return shortened(host.strategies[strategy].item.suggest(trial, context))


def stated(bench, plan, network):
    """The parameters and buffers that a plan changes by what it says, and the stages that it trains."""
    stages = [stage.name for stage in bench.catalogue.info(plan.backbone).upto(plan.cut)]
    changed, trained = set(), set()
    for phase in plan.phases:
        for stage in stages[stages.index(phase.frozen) + 1 if phase.frozen else 0 :] if phase.training else ():
            adapter = phase.training.stage_adapters.get(stage, phase.training.adapter)
            changed |= PARAMETERS[network][stage][adapter.name]
            if phase.training.batch_norm == "train":
                changed |= STATISTICS[network].get(stage, set())
            trained.add(stage)
    return changed, [stage for stage in stages if stage in trained]


@pytest.mark.parametrize("network", PARAMETERS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_strategy_changes_what_its_plan_says_and_nothing_else(bench, strategy, network):
    stages = list(bench.catalogue.info(f"normed:{network}").names)
    assert stages == list(PARAMETERS[network])
    modes = ("eval", "train") if network == "batch" else ("eval",)
    done = set()
    for (frozen, share), adapter, mode in product(FROZEN.items(), ADAPTERS, modes):
        known = {"frozen": share, "adapter": adapter, "recipe.batch_norm": mode}
        plan = suggested(bench, strategy, network, known)
        if plan.hash in done:  # the strategy draws less
            continue
        done.add(plan.hash)
        before = bench.catalogue.build(plan.network).state_dict()
        before = {name: value.clone() for name, value in before.items()}
        after = fit(plan, bench).model.stages.state_dict()
        expected, trained = stated(bench, plan, network)
        changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
        assert changed == expected, (frozen, adapter, mode)
        if strategy in WHOLE | HEAD_ONLY:
            assert trained == (stages if strategy in WHOLE else [])
        else:
            first = {"none": 0, "some": int(0.5 * (len(stages) + 1)), "all": len(stages)}[frozen]
            assert trained == stages[first:], frozen
    assert len(done) == 1 if strategy in HEAD_ONLY else len(done) >= len(ADAPTERS)
