"""Each check of the conformance kit fails for a plugin that breaks it, with a message."""

import random
import socket
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from autotl import FittedHead, Head, Phase, ProvidedWeights, Stop, Training, hookimpl, load_weights, logistic_path
from autotl.contracts import ModelCard, WeightsSource
from autotl.errors import PluginError
from autotl.testing import AugmentationTests, BackboneTests, MethodTests, MetricTests, StrategyTests, WeightsTests
from autotl.testing.lab import Lab, TinyFamily, TinyNetwork
from autotl.testing.plugins import PluginTests


@pytest.fixture
def lab_for(tmp_path):
    """A lab for one thing of a kind, registered as `mine`."""

    def make(kind, thing):
        plugin = ModuleType("a_plugin")

        def hook(register):
            register("mine", lambda: thing, summary="Made to break a check")

        hook.__name__ = f"register_{kind}"
        setattr(plugin, hook.__name__, hookimpl(hook))
        lab = Lab(plugin, tmp_path)
        assert not lab.host.problems
        return lab

    return make


def refused(check, lab, says, **more):
    with pytest.raises(AssertionError, match=says):
        check(lab, "mine", **more)


class Probe:
    """A strategy with nothing wrong."""

    first_guess = {"mine.penalty": 0.1}

    def suggest(self, trial, context):
        penalty = trial.suggest_float("mine.penalty", 1e-3, 1.0, log=True)
        return self.plan(trial, context, [self.probe(context, penalty)])

    def probe(self, context, penalty):
        return Phase(method="logistic", frozen=context.backbone().names[-1], options={"penalty": penalty})

    def plan(self, trial, context, phases):
        return context.plan(cut=context.backbone().names[-1], head=Head(pooling="avg"), phases=phases)


class Idle(Probe):
    def suggest(self, trial, context):
        trial.suggest_float("mine.momentum", 0, 1)
        return super().suggest(trial, context)


class IdleCut(Probe):
    def suggest(self, trial, context):
        context.cut()
        return super().suggest(trial, context)


class Bare(Probe):
    def suggest(self, trial, context):
        return self.plan(trial, context, [self.probe(context, trial.suggest_float("penalty", 1e-3, 1.0))])


class Borrowed(Probe):
    def suggest(self, trial, context):
        return self.plan(trial, context, [self.probe(context, trial.suggest_float("fine-tune.rate", 1e-3, 1.0))])


class Impatient(Probe):
    """Stops early on a split that may be missing."""

    def suggest(self, trial, context):
        names = context.backbone().names
        training = Training(epochs=5, batch_size=16, head_lr=0.1, stop=Stop(patience=3))
        phase = Phase(method="gradient-descent", frozen=names[-1], training=training)
        return self.plan(trial, context, [phase])


class Lost(Probe):
    """Names a stage that only some networks have."""

    def suggest(self, trial, context):
        context.backbone()
        phase = Phase(method="logistic", frozen="3.0", options={"penalty": 0.1})
        return context.plan(cut="3.0", head=Head(pooling="avg"), phases=[phase])


class Moody(Probe):
    def suggest(self, trial, context):
        penalty = trial.suggest_float("mine.penalty", 1e-3, 1.0, log=True)
        return self.plan(trial, context, [self.probe(context, penalty * torch.rand(()).item())])


class Tuples(Probe):
    def probe(self, context, penalty):
        return Phase(method="logistic", frozen=context.backbone().names[-1], options={"penalty": (penalty,)})


class NoPlan(Probe):
    def suggest(self, trial, context):
        return {"penalty": 0.1}


class Dreamer(Probe):
    first_guess = {"mine.momentum": 0.9}


class Outsider(Probe):
    first_guess = {"mine.penalty": 50.0}


class Tosses(Probe):
    """Draws one of two values; two seeds often draw the same."""

    def suggest(self, trial, context):
        penalty = trial.suggest_float("mine.penalty", 1e-3, 1.0, log=True)
        return self.plan(trial, context, [self.probe(context, penalty * random.choice([1, 2]))])


class Sows(Probe):
    def suggest(self, trial, context):
        np.random.seed(5)
        return super().suggest(trial, context)


class Talks(Probe):
    def suggest(self, trial, context):
        print("suggesting …")
        return super().suggest(trial, context)


class Chooses(Probe):
    """Its choices are the backbone's stages."""

    def suggest(self, trial, context):
        trial.suggest_categorical("mine.stage", context.backbone().names)
        return super().suggest(trial, context)


class Grows(Probe):
    """Its choices depend on the data, which may grow."""

    def suggest(self, trial, context):
        trial.suggest_categorical("mine.batch", [16, 32] if context.data.train_images > 100 else [8, 16])
        return super().suggest(trial, context)


class Wrong(Probe):
    first_guess = {"augmentation": "no-such-augmentation"}

    def suggest(self, trial, context):
        context.augmentation()
        return super().suggest(trial, context)


class Moves:
    """A correct strategy that trains the upper half."""

    def suggest(self, trial, context):
        names = context.backbone().names
        rates = dict.fromkeys(names[1:], 0.01)
        training = Training(epochs=1, batch_size=16, head_lr=0.1, stage_lr=rates, dropout=0.5)
        phase = Phase(method="gradient-descent", frozen=names[0], training=training)
        return context.plan(cut=names[-1], head=Head(pooling="avg"), phases=[phase])


@pytest.mark.parametrize(
    ("strategy", "check", "says"),
    [
        (Idle, "test_every_parameter_that_it_draws_is_used", "draws mine.momentum but never uses it"),
        (IdleCut, "test_every_parameter_that_it_draws_is_used", "draws cut but never uses it"),
        (Bare, "test_its_own_parameters_have_a_prefix", "call it 'mine.penalty'"),
        (Borrowed, "test_its_own_parameters_have_a_prefix", "call it 'mine.rate'"),
        (Impatient, "test_its_plans_can_be_trained", "context.data.has_early_stop is False"),
        (Lost, "test_its_plans_can_be_trained", "cannot be trained: Unknown stage of tiny"),
        (Moody, "test_equal_parameters_give_equal_plans", "different plans for the same parameters"),
        (Tuples, "test_its_plans_survive_json", "changes by conversion to JSON and back: phases was"),
        (Tosses, "test_equal_parameters_give_equal_plans", "different plans for the same parameters"),
        (Tosses, "test_it_prints_nothing_and_leaves_global_generators_alone", "draws from a global .* it: random\\."),
        (Sows, "test_it_prints_nothing_and_leaves_global_generators_alone", "or seeds it: numpy.random\\."),
        (Talks, "test_it_prints_nothing_and_leaves_global_generators_alone", "prints 'suggesting …"),
        (Chooses, "test_one_study_can_hold_its_trials", "draws 'mine.stage' from .* draw a share"),
        (Grows, "test_one_study_can_hold_its_trials", "draws 'mine.batch' from"),
        (Wrong, "test_its_first_guess_is_one_that_it_could_draw", "cannot be tried: 'no-such-augmentation' not in"),
        (NoPlan, "test_its_plans_survive_json", "suggests dict, not a plan"),
        (Dreamer, "test_its_first_guess_is_one_that_it_could_draw", "which its suggest does not draw"),
        (Outsider, "test_its_first_guess_is_one_that_it_could_draw", "to 50.0, which is not in FloatDistribution"),
    ],
)
def test_strategies(lab_for, strategy, check, says):
    refused(getattr(StrategyTests(), check), lab_for("strategies", strategy()), says)


@pytest.mark.parametrize("strategy", [Probe, Moves])
def test_a_sound_strategy_passes(lab_for, strategy):
    lab = lab_for("strategies", strategy())
    for check in (name for name in vars(StrategyTests) if name.startswith("test_")):
        getattr(StrategyTests(), check)(lab, "mine")


def test_errors_in_another_authors_augmentation_do_not_fail_a_strategy(lab_for):
    class Broken:
        def suggest(self, trial, context):
            raise ZeroDivisionError

        def build(self, params): ...

    class Another:
        @hookimpl
        def register_augmentations(self, register):
            register("another", Broken, summary="For a test")

    class Augmented(Probe):
        def suggest(self, trial, context):
            context.augmentation()
            return super().suggest(trial, context)

    lab = lab_for("strategies", Augmented())
    lab.host.add(Another(), "another")
    StrategyTests().test_equal_parameters_give_equal_plans(lab, "mine")


class Restless(nn.BatchNorm2d):
    """Counts in evaluation too."""

    def forward(self, value):
        self.running_mean += 1.0
        return super().forward(value)


class Noisy(nn.Conv2d):
    """Gives another result each time."""

    def forward(self, value):
        return super().forward(value + torch.rand_like(value))


class Deaf(nn.Conv2d):
    """Its weight gets no gradient."""

    def forward(self, value):
        return F.conv2d(value, self.weight.detach(), None, self.stride, self.padding)


def network(at, module):
    made = TinyNetwork()
    made[at][0 if isinstance(module, nn.Conv2d) else 1] = module
    return made


@pytest.mark.parametrize(
    ("module", "at", "check", "says"),
    [
        (
            lambda: Restless(8),
            0,
            "test_frozen_stages_stay_and_stages_with_a_learning_rate_change",
            "belongs to a frozen stage",
        ),
        (
            lambda: Deaf(12, 16, 3, stride=2),
            2,
            "test_frozen_stages_stay_and_stages_with_a_learning_rate_change",
            "did not change",
        ),
        (lambda: Noisy(12, 16, 3, stride=2), 2, "test_its_stages_are_the_network", "not close"),
        (
            lambda: Deaf(12, 16, 3, stride=2),
            2,
            "test_a_stage_changes_in_proportion_to_its_learning_rate",
            "does not reach the optimizer",
        ),
    ],
)
def test_networks(lab_for, module, at, check, says):
    class Family(TinyFamily):
        def names(self):
            return ["net"]

        def build(self, name, weights):
            return network(at, module())

    refused(getattr(BackboneTests(), check), lab_for("backbones", Family()), says)


def test_training_that_is_not_repeatable(lab_for):
    class Family(TinyFamily):
        seen = 0

        def names(self):
            return ["net"]

        def build(self, name, weights):
            Family.seen += 1  # another network each time, for the same seed of torch
            torch.manual_seed(Family.seen)
            return TinyNetwork()

    lab = lab_for("backbones", Family())
    refused(
        BackboneTests().test_random_weights_come_from_torchs_generator, lab, "differs although torch has the same seed"
    )


class Stored(TinyFamily):
    """A network with a weights file."""

    def names(self):
        return ["net"]

    def card(self, name):
        own = super().card(name)
        return ModelCard(own.input, WeightsSource(url="https://example.invalid/net.pth"), "a source", "a licence")

    def build(self, name, weights):
        made = super().build(name, None)
        if weights is not None:
            self.fill(made, weights)
        return made

    def fill(self, made, weights):
        load_weights(made, weights)


class Forgetful(Stored):
    def fill(self, made, weights):
        made.load_state_dict(torch.load(weights, weights_only=True), strict=False)


class Blind(Stored):
    def fill(self, made, weights):
        pass


class Absent(Stored):
    """Its weights should be in its package."""

    def card(self, name):
        own = super().card(name)
        return ModelCard(own.input, WeightsSource(file=Path("/nowhere/net.safetensors")), "a source", "a licence")


class Renames(Stored):
    """Its file has names of its own."""

    def fill(self, made, weights):
        state = {key.removeprefix("net/"): value for key, value in torch.load(weights, weights_only=True).items()}
        assert all(key.startswith("net/") for key in torch.load(weights, weights_only=True))
        made.load_state_dict(state)


class Chatty(Stored):
    def build(self, name, weights):
        print("building …")
        return super().build(name, weights)


class OneSize(TinyFamily):
    """States that it accepts another size, and does not."""

    def names(self):
        return ["net"]

    def card(self, name):
        own = super().card(name)
        return ModelCard(own.input, None, "a source", "a licence", sizes=(64,))

    def build(self, name, weights):
        return nn.Sequential(*list(TinyNetwork())[:3], nn.Flatten(), nn.Linear(16 * 7 * 7, 5))


class Nameless(TinyFamily):
    def names(self):
        return []


class Careless(TinyFamily):
    def card(self, name):
        return super().card("net")


class Untold(TinyFamily):
    def card(self, name):
        return ModelCard(super().card(name).input, None, "", "")


def test_families(lab_for, tmp_path):
    tests = BackboneTests()
    whole = tests.test_a_weights_file_is_loaded_whole_or_not_at_all
    whole(lab_for("backbones", Stored()), "mine", tmp_path=tmp_path)
    refused(whole, lab_for("backbones", Forgetful()), "accepts a weights file that lacks a tensor", tmp_path=tmp_path)
    refused(whole, lab_for("backbones", Blind()), "does not load 0.0.weight from its weights", tmp_path=tmp_path)
    quiet = tests.test_it_prints_nothing_and_leaves_global_generators_alone
    quiet(lab_for("backbones", Stored()), "mine")
    refused(quiet, lab_for("backbones", Chatty()), "prints 'building …")
    refused(tests.test_shipped_weights_exist, lab_for("backbones", Absent()), "report this to its author")
    refused(tests.test_it_works_at_every_size_on_its_card, lab_for("backbones", OneSize()), "does not work with 64 px")
    refused(tests.test_every_name_has_a_card, lab_for("backbones", Nameless()), "lists no names")
    refused(tests.test_every_name_has_a_card, lab_for("backbones", Untold()), "lacks its source or its licence")
    refused(tests.test_an_unknown_name_is_a_key_error, lab_for("backbones", Careless()), "raise KeyError")


@pytest.mark.parametrize("layout", ["module.", "net/", "nested"])
def test_a_family_is_tried_with_its_real_file(lab_for, tmp_path, layout):
    """The published file, whose layout may differ from the network's own state."""
    state = TinyNetwork().state_dict()
    file = tmp_path / "published.pth"
    named = {key if layout == "nested" else f"{layout}{key}": value for key, value in state.items()}
    torch.save({"epoch": 90, "model": named} if layout == "nested" else named, file)

    class Tests(BackboneTests):
        files = {"net": file}

    whole, unfit = Tests().test_a_weights_file_is_loaded_whole_or_not_at_all, "cannot read its own weights file"
    if layout == "net/":
        refused(whole, lab_for("backbones", Stored()), unfit, tmp_path=tmp_path)
    else:
        whole(lab_for("backbones", Stored()), "mine", tmp_path=tmp_path)
    refused(whole, lab_for("backbones", Forgetful()), "does not load 0.0.weight from its weights", tmp_path=tmp_path)
    if layout == "net/":
        lab = lab_for("backbones", Renames())
        whole(lab, "mine", tmp_path=tmp_path)
        with pytest.raises(pytest.skip.Exception, match="reads another layout"):
            BackboneTests().test_a_weights_file_is_loaded_whole_or_not_at_all(lab, "mine", tmp_path=tmp_path)


class Brighter:
    """An augmentation with nothing wrong."""

    def suggest(self, trial, context):
        return {"most": trial.suggest_int("mine.most", 10, 60)}

    def build(self, params):
        def transform(images, draw):
            more = params["most"] * draw(1)[:, :, None, None]
            return (images + more).clamp(0, 255).to(torch.uint8)

        return transform


def brighter(change):
    """`Brighter` with another transform."""

    class Changed(Brighter):
        def build(self, params):
            return lambda images, draw: change(images, draw, params)

    return Changed()


def in_place(images, draw, params):
    images[:, :, 0] = 0
    return images


class IdleBrighter(Brighter):
    def suggest(self, trial, context):
        trial.suggest_float("mine.gamma", 0, 1)
        return super().suggest(trial, context)


class BareBrighter(Brighter):
    def suggest(self, trial, context):
        return {"most": trial.suggest_int("most", 10, 60)}


class ChoosyBrighter(Brighter):
    def suggest(self, trial, context):
        trial.suggest_categorical("mine.stage", context.backbone().names)
        return super().suggest(trial, context)


class LuckyBrighter(Brighter):
    def suggest(self, trial, context):
        return {"most": trial.suggest_int("mine.most", 10, 60) + random.choice([0, 1])}


class FickleBrighter(Brighter):
    """Draws one of two values when it is built; two seeds often draw the same."""

    def build(self, params):
        return super().build({"most": params["most"] * random.choice([1, 2])})


def seeded(images, draw, params):
    torch.manual_seed(0)
    return images ^ torch.randint(0, 9, images.shape, dtype=torch.uint8)


class TupleBrighter(Brighter):
    def suggest(self, trial, context):
        return {**super().suggest(trial, context), "mean": (0, 0)}


@pytest.mark.parametrize(
    ("augmentation", "check", "says"),
    [
        (IdleBrighter(), "test_every_parameter_that_it_draws_is_used", "draws mine.gamma but never uses it"),
        (BareBrighter(), "test_its_own_parameters_have_a_prefix", "call it 'mine.most'"),
        (TupleBrighter(), "test_its_parameters_survive_json", "after conversion to JSON"),
        (
            brighter(lambda images, draw, _: images * 1.5),
            "test_it_keeps_shape_and_type",
            "returns .* torch.float32 for",
        ),
        (brighter(lambda images, draw, _: images[:, :, 1:]), "test_it_keeps_shape_and_type", "returns"),
        (brighter(in_place), "test_it_does_not_change_its_input", "change a copy"),
        (
            brighter(lambda images, draw, _: images ^ torch.randint(0, 9, images.shape, dtype=torch.uint8)),
            "test_the_draw_is_the_only_source_of_randomness",
            "draws from a global generator",
        ),
        (ChoosyBrighter(), "test_one_study_can_hold_its_trials", "draws 'mine.stage' from"),
        (LuckyBrighter(), "test_equal_draws_give_equal_parameters", "for the same draws"),
        (FickleBrighter(), "test_the_draw_is_the_only_source_of_randomness", "the same draw gives different results"),
        (brighter(seeded), "test_it_prints_nothing_and_leaves_global_generators_alone", "or seeds it: torch"),
        (
            brighter(lambda images, draw, _: print("!") or images),
            "test_it_prints_nothing_and_leaves_global_generators_alone",
            "prints '!",
        ),
        (
            brighter(lambda images, draw, _: images.roll(1, 0)),
            "test_an_image_does_not_depend_on_the_batch",
            "depending on others in the batch",
        ),
        (
            brighter(lambda images, draw, _: images ^ random.randrange(9)),
            "test_training_twice_gives_equal_weights",
            "training the same plan twice, with the same seed, gave different weights",
        ),
    ],
)
def test_augmentations(lab_for, augmentation, check, says):
    refused(getattr(AugmentationTests(), check), lab_for("augmentations", augmentation), says)


def test_a_sound_augmentation_passes(lab_for):
    lab = lab_for("augmentations", Brighter())
    for check in (name for name in vars(AugmentationTests) if name.startswith("test_")):
        getattr(AugmentationTests(), check)(lab, "mine")


class Regression:
    """A method with nothing wrong."""

    options = ("penalty",)

    def fit(self, features, labels, classes, options, step):
        penalties = self.penalties(options)
        heads = logistic_path(features, labels, classes, penalties, step)
        return [
            FittedHead(each.weight, each.bias, {"penalty": penalty})
            for each, penalty in zip(heads, options["penalty"], strict=True)
        ]

    def penalties(self, options):
        return options["penalty"]


class Stubborn(Regression):
    def penalties(self, options):
        return [0.1 for _ in options["penalty"]]


class Sleepy(Regression):
    def fit(self, features, labels, classes, options, step):
        return super().fit(features, labels, classes, options, lambda: None)


class Lucky(Regression):
    def fit(self, features, labels, classes, options, step):
        return super().fit(features + torch.randn_like(features), labels, classes, options, step)


class Scaling(Regression):
    def fit(self, features, labels, classes, options, step):
        features -= features.mean(0)
        return super().fit(features, labels, classes, options, step)


class Relabelling(Regression):
    def fit(self, features, labels, classes, options, step):
        heads = super().fit(features, labels, classes, options, step)
        labels.zero_()
        return heads


class Wordy(Regression):
    def fit(self, features, labels, classes, options, step):
        heads = super().fit(features, labels, classes, options, step)
        return [FittedHead(each.weight, each.bias, {"penalty": None}) for each in heads]


class Named(Regression):
    """Its alternatives are words."""

    STRENGTHS = {"weak": 0.01, "strong": 1.0}

    def fit(self, features, labels, classes, options, step):
        penalties = [self.STRENGTHS[word] for word in options["penalty"]]
        heads = super().fit(features, labels, classes, {"penalty": penalties}, step)
        return [
            FittedHead(head.weight, head.bias, {"penalty": word})
            for head, word in zip(heads, options["penalty"], strict=True)
        ]


class Zero(Regression):
    def fit(self, features, labels, classes, options, step):
        heads = super().fit(features, labels, classes, options, step)
        return [FittedHead(0 * each.weight, each.bias, each.chosen) for each in heads]


class Sideways(Regression):
    def fit(self, features, labels, classes, options, step):
        heads = super().fit(features, labels, classes, options, step)
        return [FittedHead(each.weight.T, each.bias, each.chosen) for each in heads]


class Binary(Regression):
    """Returns one row for two classes, as some libraries do."""

    def fit(self, features, labels, classes, options, step):
        heads = super().fit(features, labels, classes, options, step)
        rows = 1 if classes == 2 else classes
        return [FittedHead(each.weight[:rows], each.bias[:rows], each.chosen) for each in heads]


class Loud(Regression):
    def fit(self, features, labels, classes, options, step):
        print("fitting …")
        return super().fit(features, labels, classes, options, step)


class Endless(Regression):
    """Asked for one value alone, returns the head of the strongest penalty under its name."""

    def penalties(self, options):
        return options["penalty"] if len(options["penalty"]) > 1 else [1000.0]


class TestMethods:
    class Mine(MethodTests):
        options = {"mine": {"penalty": [1.0, 0.01]}}

    @pytest.mark.parametrize(
        ("method", "check", "says"),
        [
            (Sideways, "test_its_heads_fit_the_features", "returns a head of"),
            (Binary, "test_its_heads_fit_the_features", "for 24 features and 2 classes"),
            (Loud, "test_it_prints_nothing_and_leaves_global_generators_alone", "prints 'fitting …"),
            (Lucky, "test_it_prints_nothing_and_leaves_global_generators_alone", "or seeds it: torch"),
            (Zero, "test_it_learns_separable_classes", "whose 3 classes are far apart"),
            (Stubborn, "test_every_alternative_gives_another_head", "never uses the option 'penalty'"),
            (Endless, "test_a_chosen_value_alone_gives_its_head", "returns another head for"),
            (Lucky, "test_it_is_deterministic", "draws from a global generator"),
            (Relabelling, "test_it_does_not_change_its_input", "changes its input labels"),
            (Wordy, "test_every_alternative_gives_another_head", "in 'chosen': the values must be numbers or strings"),
            (Scaling, "test_it_does_not_change_its_input", "changes its input features"),
            (Sleepy, "test_it_can_be_stopped", "never calls step"),
        ],
    )
    def test_each_check(self, lab_for, method, check, says):
        refused(getattr(self.Mine(), check), lab_for("methods", method()), says)

    def test_options_must_be_named(self, lab_for):
        class Others(MethodTests):
            options = {"mine": {"penalty": [1.0], "shrink": 0.1}}

        refused(Others().test_it_uses_the_options_that_it_names, lab_for("methods", Regression()), "has the options")

    @pytest.mark.parametrize(("method", "values"), [(Regression, [1.0, 0.01]), (Named, ["strong", "weak"])])
    def test_a_sound_method_passes(self, lab_for, method, values):
        class Tests(MethodTests):
            options = {"mine": {"penalty": values}}

        lab = lab_for("methods", method())
        for check in (name for name in vars(MethodTests) if name.startswith("test_")):
            getattr(Tests(), check)(lab, "mine")


class Brier:
    """A metric with nothing wrong."""

    greater_is_better = False

    def __call__(self, labels, probabilities):
        return ((probabilities - np.eye(probabilities.shape[1])[labels]) ** 2).sum(1).mean()

    def interval(self, labels, probabilities, units):
        value = self(labels, probabilities)
        return value - 0.1, value + 0.1


class Backwards(Brier):
    greater_is_better = True


class Unsaid(Brier):
    greater_is_better = "yes"


class Constant(Brier):
    def __call__(self, labels, probabilities):
        return 0.5


class Infinite(Brier):
    def __call__(self, labels, probabilities):
        return float("inf")


class OfTheFirst(Brier):
    """Compares neighbours."""

    def __call__(self, labels, probabilities):
        return super().__call__(labels, probabilities) + 0.01 * (labels[0] == labels[1])


class Dicing(Brier):
    def __call__(self, labels, probabilities):
        return super().__call__(labels, probabilities) + 1e-6 * random.random()


class InPlace(Brier):
    def __call__(self, labels, probabilities):
        probabilities[np.arange(len(labels)), labels] -= 1
        return (probabilities**2).sum(1).mean()


class Talking(Brier):
    def __call__(self, labels, probabilities):
        print("measuring")
        return super().__call__(labels, probabilities)


class Nowhere(Brier):
    def __call__(self, labels, probabilities):
        raise ValueError("not for these")


class Elsewhere(Brier):
    def interval(self, labels, probabilities, units):
        return 2.0, 3.0


class TestMetrics:
    @pytest.mark.parametrize(
        ("metric", "check", "says"),
        [
            (Infinite, "test_it_is_a_finite_number", "returns .*inf.*, not a finite number"),
            (Nowhere, "test_it_is_a_finite_number", "is not defined for 2, 3, 12 classes: not for these"),
            (Backwards, "test_a_better_prediction_is_never_worse", "says that greater is better, but predictions"),
            (Constant, "test_a_better_prediction_is_never_worse", "gives 0.5 for every prediction"),
            (OfTheFirst, "test_the_order_of_the_images_does_not_matter", "depends on the order of the images"),
            (Dicing, "test_nothing_is_left_to_chance", "gives different values for the same predictions"),
            (Dicing, "test_it_prints_nothing_and_leaves_global_generators_alone", "or seeds it: random"),
            (Talking, "test_it_prints_nothing_and_leaves_global_generators_alone", "prints 'measuring"),
            (InPlace, "test_its_input_stays_as_it_is", "changes its input probabilities in place"),
            (Elsewhere, "test_its_interval_is_around_its_value", "outside its interval 2.0 to 3.0"),
        ],
    )
    def test_each_check(self, lab_for, metric, check, says):
        refused(getattr(MetricTests(), check), lab_for("metrics", metric()), says)

    def test_its_attributes_are_checked(self, lab_for):
        with pytest.raises(PluginError, match="greater_is_better"):
            MetricTests().test_its_attributes_have_valid_values(lab_for("metrics", Unsaid()), "mine")

    def test_a_sound_metric_passes(self, lab_for):
        lab = lab_for("metrics", Brier())
        for check in (name for name in vars(MetricTests) if name.startswith("test_")):
            getattr(MetricTests(), check)(lab, "mine")


def module_of(tmp_path, monkeypatch, name, text):
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    return __import__(name)


def checks_of(module):
    class Tests(PluginTests):
        plugin = module
        kind = "strategies"

    return Tests()


LIGHT = """
from autotl import hookimpl

@hookimpl
def register_strategies(register):
    register("mine", dict, summary="nothing")
"""


class Share:
    """Provides the weights of two networks from a folder."""

    def __init__(self, folder, says=("timm:test_resnet.r160_in1k",), **more):
        self._names, self._more = says, {"file": folder / "weights.safetensors", **more}

    def names(self):
        return self._names

    def source(self, name):
        return ProvidedWeights(**self._more)


class Asking(Share):
    def source(self, name):
        socket.getaddrinfo("weights.invalid", 443)


class Drawing(Share):
    def source(self, name):
        random.random()
        return super().source(name)


def halved(state):
    return dict([*state.items()][::2])


def stirred(state):
    return {name: value + np.random.rand() for name, value in state.items()}


class TestWeights:
    class Checks(WeightsTests):
        backbones = ("timm:test_resnet.r160_in1k",)

    @pytest.fixture(autouse=True)
    def _file(self, tmp_path, host):
        network = host.backbones["timm"].item.build("test_resnet.r160_in1k", None)
        save_file(network.state_dict(), tmp_path / "weights.safetensors")

    @pytest.mark.parametrize(
        ("make", "check", "says"),
        [
            (lambda at: Share(at, says=()), "names_are", "lists no names"),
            (lambda at: Share(at, says=("tim:x",)), "names_are", "lists 'tim:x', which no installed family has"),
            (lambda at: Share(at, says=("tim:*",)), "names_are", "lists 'tim:.', which no installed family has"),
            (lambda at: Share(at, says=("reference:pixels",)), "names_are", "'reference:pixels', .* uses no weights"),
            (Asking, "says_where", "uses the network to say where weights are"),
            (Drawing, "says_where", "draws from a global generator or seeds it: random"),
            (lambda at: Share(at, says=("timm:resnet18",)), "says_where", "r160_in1k' matches no name or glob"),
            (lambda at: Share(at, convert=halved), "files_are", "cannot be used: .*missing"),
            (lambda at: Share(at, convert=stirred), "files_are", "draws from a global generator"),
        ],
    )
    def test_a_broken_one_is_refused(self, lab_for, tmp_path, monkeypatch, make, check, says):
        lab, checks = lab_for("weights", make(tmp_path)), self.Checks()
        name = next(name for name in dir(checks) if check in name)
        more = {"says_where": {"monkeypatch": monkeypatch}, "files_are": {"tmp_path": tmp_path}}
        refused(getattr(checks, name), lab, says, **more.get(check, {}))

    def test_a_damaged_file_is_refused(self, lab_for, tmp_path):
        lab = lab_for("weights", Share(tmp_path, sha256="0" * 8))
        with pytest.raises(PluginError, match="weights.safetensors is damaged or not the right file"):
            self.Checks().test_its_files_are_weights_of_their_backbones(lab, "mine", tmp_path)

    def test_a_sound_one_passes_whether_its_file_is_here_or_not(self, lab_for, tmp_path, monkeypatch):
        lab, checks = lab_for("weights", Share(tmp_path)), self.Checks()
        checks.test_its_names_are_those_of_backbones_with_weights(lab, "mine")
        checks.test_its_files_are_weights_of_their_backbones(lab, "mine", tmp_path)
        away = lab_for("weights", Share(tmp_path, file=None, url="https://unreachable.invalid/x.pth", sha256="00"))
        checks.test_it_says_where_they_are_without_the_network(away, "mine", monkeypatch)
        checks.test_its_files_are_weights_of_their_backbones(away, "mine", tmp_path)

    def test_only_globs_need_a_name_to_try(self, lab_for, tmp_path):
        lab = lab_for("weights", Share(tmp_path, says=("timm:*",)))
        with pytest.raises(AssertionError, match="'mine' lists only globs. Name backbones to try"):
            WeightsTests().test_its_files_are_weights_of_their_backbones(lab, "mine", tmp_path)


def test_an_entry_module_is_light_and_silent(tmp_path, monkeypatch):
    heavy = checks_of(module_of(tmp_path, monkeypatch, "a_heavy_one", "import torch\n" + LIGHT))
    with pytest.raises(AssertionError, match="Loading a_heavy_one imports torch"):
        heavy.test_its_module_imports_nothing_heavy_and_prints_nothing()
    loud = checks_of(module_of(tmp_path, monkeypatch, "a_loud_one", LIGHT + "print('hello')\n"))
    with pytest.raises(AssertionError, match="Loading a_loud_one prints 'hello'"):
        loud.test_its_module_imports_nothing_heavy_and_prints_nothing()


def test_a_plugin_has_to_load_and_to_offer_something(tmp_path, monkeypatch):
    checks_of(module_of(tmp_path, monkeypatch, "a_fine_one", LIGHT)).test_it_loads_and_registers_something()
    broken = module_of(tmp_path, monkeypatch, "a_broken_one", LIGHT.replace("summary", "sumary"))
    with pytest.raises(AssertionError, match="'a_broken_one' .* was skipped: TypeError"):
        checks_of(broken).test_it_loads_and_registers_something()
    empty = module_of(tmp_path, monkeypatch, "an_empty_one", "")
    with pytest.raises(AssertionError, match="registers no strategies"):
        checks_of(empty).test_it_loads_and_registers_something()
