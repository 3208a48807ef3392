from dataclasses import replace

import optuna
import pytest

from autotl import hookimpl
from autotl.backbones.catalogue import Catalogue
from autotl.contracts import DataFacts
from autotl.engine.precision import Arithmetic
from autotl.errors import PluginError
from autotl.plan import NO_AUGMENTATION, DataRef, Head, Phase, Training
from autotl.registry import Owner
from autotl.study.sampler import NumberedSampler
from autotl.study.space import SHARED, OwnTrial, SearchContext, at, share_of


@pytest.fixture
def context_of(host, tmp_path):
    catalogue = Catalogue(host, tmp_path / "cache")

    def make(trial, backbones=("tiny:net", "reference:edges"), heads=("linear",), poolings=()):
        return SearchContext(
            trial,
            catalogue=catalogue,
            backbones=backbones,
            heads=heads,
            poolings=poolings,
            drawn={"augmentations": {entry.name: entry for entry in host.augmentations}},
            data=DataFacts(
                classes=3, train_images=50, smallest_class=12, largest_class=30, has_early_stop=True, image_size=32
            ),
            data_ref=DataRef(fingerprint="f", split_seed=7),
            seed=7,
            arithmetic=lambda name: Arithmetic("bfloat16", "contiguous"),
        )

    return make


def test_every_option_has_the_same_share_ends_included():
    options = ["a", "b", "c"]
    assert [at(share, options) for share in (0.0, 0.33, 0.34, 0.66, 0.67, 1.0)] == ["a", "a", "b", "b", "c", "c"]
    for count in (1, 2, 5, 40):
        assert [at(share_of(index, count), range(count)) for index in range(count)] == list(range(count))


def test_shares_become_names_of_stages(context_of):
    trial = optuna.trial.FixedTrial({"backbone": "tiny:net", "cut": 0.5, "frozen": 1.0, "pooling": "max"})
    context = context_of(trial)
    assert context.backbone().name == "tiny:net"
    assert context.cut() == "1.2"
    assert context.frozen("1.2") == "1.2"  # frozen up to the cut
    assert context.pooling("1.2") == "max"
    trial = optuna.trial.FixedTrial({"backbone": "tiny:net", "cut": 1.0, "frozen": 0.0})
    context = context_of(trial)
    assert context.cut() == "2.1"
    assert context.frozen("2.1") is None  # all are trained


def test_a_head_is_drawn_if_there_is_a_choice(context_of):
    place = {"backbone": "tiny:net", "pooling": "max"}
    several = ("linear", "mlp", "conv", "cosine")

    def drawn(heads, **params):
        trial = optuna.trial.FixedTrial({**place, **params})
        return context_of(trial, heads=heads).head("1.2"), set(trial.params) - set(place)

    assert drawn(("linear",)) == (Head(pooling="max"), set())
    assert drawn(("cosine",)) == (Head(pooling="max", kind="cosine"), set())
    assert drawn(("mlp",), head_width_log2=7) == (Head(pooling="max", kind="mlp", width=128), {"head_width_log2"})
    for kind in ("linear", "cosine"):
        assert drawn(several, head=kind) == (Head(pooling="max", kind=kind), {"head"})
    wide = {"head": "conv", "head_width_log2": 6}
    assert drawn(several, **wide) == (Head(pooling="max", kind="conv", width=64), set(wide))


def test_poolings_are_drawn_from_those_that_the_cut_allows(context_of):
    """The stages of `tiny:net` end in 32 x 32, 15 x 15 and 7 x 7 positions with 8, 12 and 16 channels."""
    named = ("flatten", "gem", "max")

    def drawn(cut, share, poolings=named, **head):
        trial = optuna.trial.FixedTrial({"backbone": "tiny:net", "pooling": "avg", "head_pooling": share, **head})
        return context_of(trial, heads=(head.get("kind", "linear"),), poolings=poolings).head(cut).pooling

    assert [drawn("2.1", share) for share in (0.0, 0.5, 1.0)] == ["flatten", "gem", "max"]
    assert [drawn("0.2", share) for share in (0.0, 0.5, 1.0)] == ["gem", "max", "max"]  # 8,192 features are too many
    assert drawn("2.1", 1.0, poolings=()) == "avg"
    assert drawn("2.1", 1.0, poolings=("gem",)) == "gem"


VIT = "timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k"


def test_cuts_that_end_in_tokens_have_no_convolution(context_of):
    kinds = set()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(12):
        trial = study.ask()
        context = context_of(trial, backbones=(VIT,), heads=("linear", "conv", "cosine"))
        kinds.add(context.head(context.cut()).kind)
        assert "token_head" in trial.params and "head" not in trial.params
    assert kinds == {"linear", "cosine"}


class Nosy:
    def suggest(self, trial, context): ...

    def build(self, params): ...


class NosyPlugin:
    @hookimpl
    def register_strategies(self, register):
        register("nosy", Nosy, summary="For a test")

    @hookimpl
    def register_augmentations(self, register):
        register("noisy", Nosy, summary="For a test")


@pytest.fixture
def own(host):
    """A trial as the strategy `nosy` sees it, and Optuna's own."""
    host.add(NosyPlugin(), "nosy-plugin")
    trial = optuna.create_study().ask()
    return OwnTrial(trial, host.strategies["nosy"], "Strategy 'nosy'", host), trial


def test_a_plugin_draws_names_of_its_own(own):
    seen, trial = own
    seen.suggest_float("nosy.rate", 1e-3, 1, log=True)
    seen.suggest_int("noisy.steps", 1, 9, step=2)  # a name of its augmentation
    seen.suggest_categorical("nosy-together.kind", ["a", "b"])  # a name that is not registered
    assert seen.params == trial.params and len(trial.params) == 3
    assert seen.number == trial.number


@pytest.mark.parametrize(
    ("name", "says"),
    [
        *((name, f"which all strategies share .* call it 'nosy.{name}'") for name in SHARED),
        ("rate", "that another plugin may use, too: call it 'nosy.rate'"),
        ("fine-tune.lr_scheme", "a name of plugin 'fine_tuning' .*: call it 'nosy.lr_scheme'"),
        ("flip.chance", "a name of plugin 'augmentations'"),
        ("recipe.dropout", "a name of autotl's own strategies: call it 'nosy.dropout'"),
        ("nosy.", "call it 'nosy.nosy'"),
    ],
)
def test_a_plugin_that_draws_another_name_is_refused(own, name, says):
    seen, trial = own
    with pytest.raises(PluginError, match=rf"^Strategy 'nosy' of plugin 'nosy-plugin' .* asks for '{name}', .*{says}"):
        seen.suggest_categorical(name, ["a", "b"])
    assert not trial.params


@pytest.mark.parametrize("name", ["report", "should_prune", "set_user_attr", "study", "storage"])
def test_a_plugin_cannot_use_the_rest_of_optunas_trial(own, name):
    with pytest.raises(AttributeError, match=f"a plugin's trial has no '{name}': it has suggest_float"):
        getattr(own[0], name)


def test_parameters_that_a_strategy_does_not_ask_for_are_not_sampled(context_of):
    trial = optuna.create_study().ask()
    context_of(trial).cut()
    assert set(trial.params) == {"backbone", "cut"}


def test_the_host_adds_the_parts_of_a_plan_that_the_strategy_does_not_give(context_of):
    trial = optuna.trial.FixedTrial({"backbone": "tiny:net", "cut": 0.5, "augmentation": "none"})
    context = context_of(trial)
    plan = context.plan(
        cut=context.cut(),
        head=Head(pooling="avg"),
        phases=[Phase(method="logistic", frozen="1.2")],
        augmentation=context.augmentation(),
    )
    assert plan.backbone == "tiny:net"
    assert plan.weights == "none"
    assert plan.input == context.backbone().input
    assert plan.augmentation == NO_AUGMENTATION
    assert (plan.seed, plan.data.split_seed) == (7, 7)
    assert plan.requires["stages"] == context.backbone().fingerprint
    assert "torch" in plan.requires


def test_a_plan_names_the_version_of_the_plugin_whose_augmentation_it_uses(host, context_of):
    class Same:
        def suggest(self, trial, context):
            return {}

        def build(self, params):
            return lambda images, draw: images

    class Plugin:
        @hookimpl
        def register_augmentations(self, register):
            register("same", Same, summary="For a test")

    host._add(Plugin(), Owner("same", "autotl-same", "1.2", "autotl_same"))
    context = context_of(optuna.trial.FixedTrial({"backbone": "tiny:net", "augmentation": "same"}))
    phases = [Phase(method="logistic", frozen="1.2")]
    plan = context.plan(cut="1.2", head=Head(pooling="avg"), phases=phases, augmentation=context.augmentation())
    assert plan.requires["autotl-same"] == "1.2"
    assert "autotl-same" not in context.plan(cut="1.2", head=Head(pooling="avg"), phases=phases).requires


def test_precision_and_memory_format_are_set_only_if_stages_are_trained(context_of):
    context = context_of(optuna.trial.FixedTrial({"backbone": "tiny:net"}))

    def dtypes(*phases):
        plan = context.plan(cut="1.2", head=Head(pooling="avg"), phases=phases)
        return plan.compute_dtype, plan.boundary_dtype, plan.memory_format

    probe = Phase(method="logistic", frozen="1.2")
    tuned = Phase(method="gradient-descent", frozen="0.2", training=Training(epochs=1, batch_size=1, head_lr=0.1))
    assert dtypes(probe) == ("float32", "float32", "channels_last")
    assert dtypes(probe, tuned) == ("bfloat16", "bfloat16", "contiguous")


def test_input_sizes_are_searched_up_to_that_of_the_images(host, tmp_path):
    catalogue = Catalogue(host, tmp_path / "cache")
    name = "autotl:resnet10"
    sizes = [input.size for input in catalogue.inputs(name)]
    assert len(sizes) > 1

    def drawn(image_size, share):
        trial = optuna.trial.FixedTrial({"backbone": name, "input_size": share})
        context = SearchContext(
            trial,
            catalogue=catalogue,
            backbones=[name],
            drawn={},
            data=DataFacts(
                classes=3,
                train_images=50,
                smallest_class=12,
                largest_class=30,
                has_early_stop=True,
                image_size=image_size,
            ),
            data_ref=DataRef(fingerprint="f", split_seed=7),
            seed=7,
            arithmetic=lambda name: Arithmetic(),
        )
        return context.input().size, "input_size" in trial.params

    assert drawn(sizes[0], 1.0) == (sizes[0], False)
    assert drawn(max(sizes), 0.0) == (sizes[0], True)
    assert drawn(max(sizes), 1.0) == (max(sizes), True)
    assert drawn(max(sizes) - 1, 1.0)[0] < max(sizes)


@pytest.mark.parametrize(("largest", "drawn"), [(36, False), (37, True)])
def test_class_weights_are_searched_if_a_class_has_over_three_times_the_images_of_another(context_of, largest, drawn):
    trial = optuna.trial.FixedTrial({"class_weights": "balanced"})
    context = context_of(trial)
    context.data = replace(context.data, smallest_class=12, largest_class=largest)
    assert context.class_weights() == ("balanced" if drawn else "none")
    assert ("class_weights" in trial.params) is drawn


@pytest.mark.parametrize(
    ("wanted", "largest", "class_weights", "drawn"),
    [
        (True, 36, "none", False),
        (True, 37, "none", True),
        (True, 37, "effective", False),
        (False, 37, "none", False),
    ],
)
def test_balanced_sampling_is_searched_without_class_weights(context_of, wanted, largest, class_weights, drawn):
    trial = optuna.trial.FixedTrial({"class_weights": class_weights, "sampling": "balanced"})
    context = context_of(trial)
    context.data = replace(context.data, smallest_class=12, largest_class=largest)
    context.techniques = frozenset({"balanced-sampling"} if wanted else ())
    assert context.sampling() == ("balanced" if drawn else "shuffled")
    assert ("sampling" in trial.params) is drawn


def _objective(trial):
    x = trial.suggest_float("x", 0, 1)
    if trial.suggest_categorical("kind", ["a", "b"]) == "a":
        return -((x - 0.3) ** 2) + trial.suggest_float("a.y", 0, 1)
    return x


def test_a_resumed_search_draws_what_an_uninterrupted_one_draws(tmp_path):
    def run(name, *parts):
        for trials in parts:  # each part creates everything again, as a new process would
            study = optuna.create_study(
                study_name=name,
                storage=f"sqlite:///{tmp_path / name}.db",
                sampler=NumberedSampler(5),
                direction="maximize",
                load_if_exists=True,
            )
            study.optimize(_objective, n_trials=trials)
        return [trial.params for trial in study.trials]

    whole = run("whole", 25)
    assert whole == run("parts", 3, 11, 11)
    assert len({trial["x"] for trial in whole}) == 25


def test_another_seed_draws_other_values():
    draws = []
    for seed in (1, 2):
        study = optuna.create_study(sampler=NumberedSampler(seed), direction="maximize")
        study.optimize(_objective, n_trials=3)
        draws.append([trial.params for trial in study.trials])
    assert draws[0] != draws[1]
