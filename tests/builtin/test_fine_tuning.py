import warnings
from itertools import pairwise
from types import SimpleNamespace

import optuna
import pytest
from optuna.trial import FixedTrial

from autotl.backbones.catalogue import Catalogue
from autotl.builtin import recipe
from autotl.contracts import DataFacts
from autotl.data.dataset import open_dataset
from autotl.data.pixels import PixelStore
from autotl.engine.bench import Bench
from autotl.engine.features import FeatureStore
from autotl.engine.fit import check, fit
from autotl.engine.precision import Arithmetic
from autotl.plan import HEADS, DataRef, TransferPlan
from autotl.study.space import SearchContext
from autotl.study.suggestions import facts_of

UNFREEZING = ("gradual-unfreeze", "work-backwards")
HEAD_FIRST = ("lp-ft", *UNFREEZING)
STRATEGIES = ("fine-tune", *HEAD_FIRST, "full", "scratch")
RESNET = "autotl:resnet10"
TRIALS = 30
PLACE = {"backbone": RESNET, "cut": 0.5, "pooling": "avg", "input_size": 0.0}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Networks are traced once for all tests here."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def catalogue(host, cache):
    return Catalogue(host, cache)


def all_of(registry):
    return {entry.name: entry for entry in registry}


@pytest.fixture
def suggest(host, catalogue):
    """Asks a strategy for a plan."""

    def ask(strategy, trial, backbones=("tiny:net", RESNET), heads=("linear",), techniques=(), **facts):
        values = {
            "classes": 3,
            "train_images": 900,
            "smallest_class": 12,
            "largest_class": 30,
            "has_early_stop": True,
            "image_size": 400,
        }
        context = SearchContext(
            trial,
            catalogue=catalogue,
            backbones=backbones,
            drawn={
                "augmentations": all_of(host.augmentations),
                "optimizers": all_of(host.optimizers),
                "objectives": all_of(host.objectives),
                "adapters": all_of(host.adapters),
                "methods": {name: host.methods[name] for name in ("gradient-descent", "sam")},
            },
            data=facts.pop("data", None) or DataFacts(**{**values, **facts}),
            data_ref=DataRef(fingerprint="f", split_seed=7),
            seed=7,
            arithmetic=lambda name: Arithmetic("bfloat16", "contiguous"),
            heads=heads,
            techniques=techniques,
        )
        return host.strategies[strategy].item.suggest(trial, context)

    return ask


@pytest.fixture
def drawn(suggest):
    """Random trials of a strategy, each with its plan."""

    def draw(strategy, trials=TRIALS, **facts):
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        pairs = []
        for _ in range(trials):
            trial = study.ask()
            pairs.append((trial, suggest(strategy, trial, **facts)))
            study.tell(trial, 0.0)
        return pairs

    return draw


@pytest.fixture
def first(host):
    """All parameters of a trial as a strategy guesses them first."""
    rest = {"recipe.batch_size_log2": 5}
    return lambda strategy: {**PLACE, **rest, **host.strategies[strategy].item.first_guess}


def names(catalogue, plan):
    """The stages up to the plan's cut."""
    return [stage.name for stage in catalogue.info(plan.backbone).upto(plan.cut)]


def tuned(plan):
    return [phase for phase in plan.phases if phase.training]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_plan_can_be_trained_and_saved(drawn, catalogue, strategy):
    bench = SimpleNamespace(catalogue=catalogue, judges=lambda plan: ["early_stop", "val"])
    plans = [plan for _, plan in drawn(strategy)]
    for plan in plans:
        check(plan, bench)
        assert TransferPlan.from_json(plan.to_json()) == plan
        assert TransferPlan.from_json(plan.to_json()).hash == plan.hash
        assert tuned(plan)
        assert (plan.compute_dtype, plan.memory_format) == ("bfloat16", "contiguous")
    assert len({plan.hash for plan in plans}) == TRIALS
    assert len({plan.backbone for plan in plans}) == 2
    assert len({plan.augmentation.name for plan in plans}) == 6
    assert len({plan.input.size for plan in plans if plan.backbone.startswith(RESNET)}) > 1


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_balances_unequal_classes(drawn, strategy):
    """A head that is fitted first gives classes the weights that the rest of the training has on average."""
    found = set()
    for _, plan in drawn(strategy, largest_class=600, techniques=("balanced-sampling",)):
        training = tuned(plan)[-1].training
        found.add((training.class_weights, training.sampling))
        first = [phase.options.get("class_weights", "none") for phase in plan.phases if not phase.training]
        assert set(first) <= {training.counted}
    assert found == {("none", "shuffled"), ("none", "balanced"), ("balanced", "shuffled"), ("effective", "shuffled")}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_trains_every_kind_of_head(drawn, catalogue, strategy):
    """Without a logistic regression, unless the head is linear."""
    bench = SimpleNamespace(catalogue=catalogue, judges=lambda plan: ["early_stop", "val"])
    seen = set()
    for _, plan in drawn(strategy, heads=HEADS, trials=2 * TRIALS):
        check(plan, bench)
        kind = plan.head.kind
        starts = [phase.frozen == plan.cut for phase in plan.phases]
        assert len(plan.phases) < 2 or (starts[0] and not any(starts[2:]))
        fitted = [phase.method for phase in plan.phases].count("logistic")
        assert fitted == (strategy in HEAD_FIRST and kind == "linear")
        if strategy in HEAD_FIRST and len(plan.phases) == 1:
            assert kind != "linear" and plan.phases[0].frozen == plan.cut  # nothing but the head is trained
        seen.add(kind)
    assert seen == set(HEADS)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_trained_stage_has_a_learning_rate_and_no_frozen_one(drawn, catalogue, strategy):
    for _, plan in drawn(strategy):
        stages = names(catalogue, plan)
        for phase in tuned(plan):
            first = stages.index(phase.frozen) + 1 if phase.frozen else 0
            assert list(phase.training.stage_lr) == stages[first:]
            assert phase.training.head_lr > 0
            assert all(rate > 0 for rate in phase.training.stage_lr.values())


@pytest.mark.parametrize("strategy", ["fine-tune", *HEAD_FIRST])
def test_learning_rates_fall_with_depth_by_the_same_factor(drawn, strategy):
    checked = 0
    for trial, plan in drawn(strategy, trials=2 * TRIALS):
        ratio = trial.params.get(f"{strategy}.depth_ratio")
        if ratio is None:
            assert trial.params["fine-tune.lr_scheme"] == "groups"
            continue
        top = trial.params[f"{trial.params['optimizer']}.lr"]
        for phase in tuned(plan):
            lrs = list(phase.training.stage_lr.values())
            factors = [earlier / later for earlier, later in pairwise(lrs)]
            assert all(factor == pytest.approx(factors[0]) and factor < 1 for factor in factors)
            if lrs:
                assert lrs[-1] == pytest.approx(top)
            checked += bool(factors)
    assert checked > 5


def test_the_ratio_is_that_of_the_first_stage_to_the_last_of_the_whole_network(suggest, first, catalogue):
    params = {
        **first("fine-tune"),
        "backbone": RESNET,
        "cut": 1.0,
        "frozen": 0.0,
        "fine-tune.depth_ratio": 0.01,
    }
    (phase,) = suggest("fine-tune", FixedTrial(params)).phases
    assert list(phase.training.stage_lr) == list(catalogue.info(RESNET).names)
    lrs = list(phase.training.stage_lr.values())
    assert lrs[0] / lrs[-1] == pytest.approx(0.01)


def test_groups_are_thirds_of_the_depth(suggest, first, catalogue):
    factors = {"fine-tune.low": 0.02, "fine-tune.middle": 0.5, "fine-tune.high": 2.0}
    params = {**first("fine-tune"), "backbone": RESNET, "cut": 1.0, "fine-tune.lr_scheme": "groups", **factors}
    (phase,) = suggest("fine-tune", FixedTrial(params)).phases
    lrs = [rate / params["adamw.lr"] for rate in phase.training.stage_lr.values()]
    third = -(-len(lrs) // 3)
    assert lrs == sorted(lrs)
    assert {round(rate, 6) for rate in lrs} == {0.02, 0.5, 2.0}
    assert all(abs(lrs.count(rate) - third) <= 1 for rate in set(lrs))


def test_the_whole_network_is_trained_with_one_learning_rate(drawn, catalogue):
    for strategy in ("full", "scratch"):
        for _, plan in drawn(strategy):
            (phase,) = plan.phases
            assert plan.cut == catalogue.info(plan.backbone).names[-1]
            assert phase.frozen is None
            assert len(set(phase.training.stage_lr.values())) == 1


def test_scratch_starts_from_random_weights_and_the_others_do_not(drawn):
    for strategy in STRATEGIES:
        for trial, plan in drawn(strategy):
            if trial.params["backbone"] == RESNET:
                random = strategy == "scratch"
                assert plan.backbone == (f"{RESNET}@random" if random else RESNET)
                assert plan.weights.startswith("random:7" if random else "sha256:")
            if strategy == "scratch":
                assert plan.phases[0].training.batch_norm == "train"


def test_some_strategies_fit_the_head_first(drawn):
    for strategy in HEAD_FIRST:
        for _, plan in drawn(strategy):
            assert plan.phases[0].method == "logistic"
            assert plan.phases[0].frozen == plan.cut
            assert len(plan.phases[0].options["penalty"]) > 1


@pytest.mark.parametrize("strategy", UNFREEZING)
def test_unfreezing_goes_down_phase_by_phase_to_what_stays_frozen(drawn, catalogue, strategy):
    counts = set()
    for trial, plan in drawn(strategy, trials=2 * TRIALS):
        stages = names(catalogue, plan)
        phases = tuned(plan)
        frozen = [stages.index(phase.frozen) + 1 if phase.frozen else 0 for phase in phases]
        assert all(earlier > later for earlier, later in pairwise(frozen))
        share = trial.params["frozen"]
        assert frozen[-1] == min(len(stages), int(share * (len(stages) + 1)))
        wanted = min(trial.params[f"{strategy}.steps"], len(stages) - frozen[-1])
        assert len(phases) == max(1, wanted)
        assert all(phase.training.epochs >= 1 for phase in phases)
        total = sum(phase.training.epochs for phase in phases)
        assert total == pytest.approx(10 * 4 ** trial.params["recipe.length"], abs=len(phases))
        counts.add(len(phases))
        for early, late in pairwise(phases):
            assert early.training.stage_lr.items() <= late.training.stage_lr.items()
    assert {1, 2, 3} <= counts


@pytest.mark.parametrize("train_images", [40, 900, 10**6])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_first_guesses_are_drawn_unchanged(host, suggest, strategy, train_images):
    guess = host.strategies[strategy].item.first_guess
    study = optuna.create_study()
    study.enqueue_trial({**PLACE, **guess})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trial = study.ask()
        plan = suggest(strategy, trial, train_images=train_images)
    assert {name: trial.params[name] for name in guess} == guess
    assert trial.params["backbone"] == RESNET
    assert plan.augmentation.name == "none"
    assert tuned(plan)[-1].frozen is None


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_drawn_parameter_has_an_effect(drawn, suggest, strategy):
    """Each parameter changes some plan when it alone is changed."""
    pairs = drawn(strategy)
    others = {}  # what a trial may need after one of its choices is changed
    for trial, _ in pairs:
        others.update(trial.params)
    without = {
        name: distribution
        for trial, _ in pairs
        for name, distribution in trial.distributions.items()
        if not distribution.single()
    }
    assert "recipe.length" in without and "pooling" in without
    assert len(without) > 12
    for trial, plan in pairs:
        for name in set(without) & set(trial.params):
            distribution = without[name]
            if isinstance(distribution, optuna.distributions.CategoricalDistribution):
                options = distribution.choices
            else:
                options = (distribution.low, distribution.high)
            if any(
                suggest(strategy, FixedTrial({**others, **trial.params, name: option})) != plan for option in options
            ):
                del without[name]
    assert not without


@pytest.mark.parametrize(
    ("train_images", "fewest", "most"),
    [(1, 10, 40), (1_000, 10, 40), (1_001, 5, 20), (10_000, 5, 20), (100_000, 3, 10), (100_001, 2, 10), (10**7, 2, 10)],
)
def test_large_sets_need_fewer_epochs(drawn, train_images, fewest, most):
    assert recipe.epochs(train_images) == (fewest, most)
    pairs = drawn("full", train_images=train_images)
    epochs = [plan.epochs() for _, plan in sorted(pairs, key=lambda pair: pair[0].params["recipe.length"])]
    assert epochs == sorted(epochs)
    assert fewest <= epochs[0] and epochs[-1] <= most
    assert len(set(epochs)) > 2


@pytest.mark.parametrize(
    ("train_images", "sizes"),
    [
        (10, {4}),
        (40, {8}),
        (100, {8}),
        (300, {16}),
        (700, {16, 32}),
        (5_000, {16, 32, 64, 128}),
        (50_000, {64, 128}),
        (10**6, {128}),
    ],
)
def test_an_epoch_has_neither_few_nor_very_many_steps(drawn, train_images, sizes):
    batches = {plan.phases[0].training.batch_size for _, plan in drawn("full", train_images=train_images)}
    assert batches == sizes


@pytest.mark.parametrize("strategy", UNFREEZING)
def test_the_epoch_is_chosen_only_if_there_is_a_split_for_it(drawn, strategy):
    for _, plan in drawn(strategy):
        for phase in tuned(plan):
            assert phase.training.stop.patience == max(3, round(phase.training.epochs / 2))
            ends = strategy == "work-backwards" and phase.frozen != plan.cut
            assert phase.training.stop.ends_plan == ends
    for _, plan in drawn(strategy, has_early_stop=False):
        assert all(training.stop is None for training in plan.trainings)


def test_the_number_of_views_is_set_only_if_frozen_stages_see_augmented_images(drawn):
    seen = set()
    for _, plan in drawn("fine-tune"):
        (phase,) = plan.phases
        fixed = phase.frozen is not None and plan.augmentation.name != "none"
        assert phase.training.views == (min(phase.training.epochs, recipe.MOST_VIEWS) if fixed else 0)
        seen.add(fixed)
    assert seen == {True, False}


@pytest.mark.parametrize("frozen", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_engine_trains_the_plans(catalogue, stripes, suggest, first, tmp_path, monkeypatch, strategy, frozen):
    """With nothing frozen, some stages or all, and with an augmentation."""
    monkeypatch.setattr(recipe, "EPOCHS", ((10**9, 3, 6),))
    pixels = PixelStore(tmp_path / "cache")
    dataset = open_dataset(stripes, seed=0, inputs=[catalogue.card("tiny:net").input], pixels=pixels)
    bench = Bench(dataset, FeatureStore(tmp_path / "cache", catalogue, pixels, "cpu"))
    params = {
        **first(strategy),
        "backbone": "tiny:net",
        "frozen": frozen,
        "augmentation": "flip",
        "recipe.length": 0.5,
        "recipe.batch_size_log2": 3,
    }
    plan = suggest(strategy, FixedTrial(params), backbones=("tiny:net",), data=facts_of(dataset))
    metrics = fit(plan, bench).metrics
    assert 0 <= metrics["val.accuracy"] <= 1
    assert metrics["val.loss"] < 3
