"""A search over optimizers, objectives, adapters, gradient methods, heads and techniques."""

import time

import numpy as np
import pytest

from autotl.api import Study
from autotl.errors import StudyError
from autotl.export import bundle
from autotl.study.search import Search
from autotl.study.settings import Settings
from autotl.study.watch import Silent
from autotl.tracking.mlflow.projection import CHOSEN

CHOICES = {
    "optimizers": ("adamw", "sgd"),
    "objectives": ("cross-entropy", "focal"),
    "adapters": ("all", "norm", "bias", "lora"),
    "methods": ("gradient-descent", "sam"),
}
CLASSIFIERS = ("logistic", "ridge", "svm", "nearest-class-mean")
TECHNIQUES = {"mixup": "mixup", "cutmix": "cutmix", "l2-sp": "l2_sp", "ema": "ema", "distillation": "teacher"}


class Notes(Silent):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def search(host, data, watcher=None, **settings):
    values = {
        "data": data,
        "trials": 1,
        "backbones": ("tiny:net",),
        "strategies": ("full",),
        "set": {"recipe.length": 0},  # as few epochs as a search considers
        "augmentations": ("none",),
        "reruns": 0,
        "refit": False,
        "compare": False,
        "device": "cpu",
        "prune": False,
        **settings,
    }
    return Search(Settings.of(values), host, watcher or Silent(), began=time.monotonic())


def test_one_search_draws_all_of_them(host, stripes):
    made = search(host, stripes, trials=14, techniques=tuple(TECHNIQUES), **CHOICES)
    result = made.run()
    assert result.trials["complete"] == 14
    plans = [record.plan for record in made.folder.log.records()]
    trainings = [plan.phases[0].training for plan in plans]
    assert {training.optimizer.name for training in trainings} == set(CHOICES["optimizers"])
    assert {training.objective.name for training in trainings} == set(CHOICES["objectives"])
    assert {training.adapter.name for training in trainings} == set(CHOICES["adapters"])
    assert {plan.phases[0].method for plan in plans} == set(CHOICES["methods"])
    for field in TECHNIQUES.values():
        assert len({getattr(training, field) for training in trainings}) > 5
    for record in made.folder.log.records():
        training = record.plan.phases[0].training
        assert record.params["optimizer"] == training.optimizer.name
        assert record.params["recipe.mixup"] == training.mixup
        assert (record.params.get("focal.gamma") is not None) == (training.objective.name == "focal")
    definition = made.folder.definition
    assert {kind: getattr(definition, kind) for kind in CHOICES} == CHOICES
    assert set(CHOSEN) >= set(CHOICES)


def test_a_search_draws_classifiers_and_exports_the_best_as_a_linear_layer(host, stripes, tmp_path):
    settings = {"strategies": ("linear-probe",), "classifiers": CLASSIFIERS, "refit": True, "set": {}}
    made = search(host, stripes, trials=16, **settings)
    result = made.run()
    records = list(made.folder.log.records())
    assert {record.params["classifier"] for record in records} == set(CLASSIFIERS)
    assert records[0].params["classifier"] == CLASSIFIERS[0]  # of the first guess
    for record in records:
        (phase,) = record.plan.phases
        assert phase.method == record.params["classifier"]
        for name in phase.options:
            assert record.metrics[f"phase1.{name}"] in phase.options[name]
    assert set(result.final.phases[0].options) == set(result.best.plan.phases[0].options)
    assert all(len(values) == 1 for values in result.final.phases[0].options.values())
    model = Study(made.folder, bundle.load(made.folder.bundle, made.catalogue), result)
    assert model.export("onnx", tmp_path / "out").difference < 1e-4
    assert made.folder.definition.classifiers == CLASSIFIERS
    again = search(host, stripes, trials=17, **{**settings, "classifiers": ()})
    assert again.run().trials["complete"] == 17
    assert again.folder.log.read(16).params["classifier"] in CLASSIFIERS


def test_a_strategy_that_fits_the_head_first_uses_the_classifier(host, stripes):
    made = search(host, stripes, strategies=("lp-ft",), classifiers=("ridge",))
    made.run()
    (record,) = made.folder.log.records()
    assert record.plan.phases[0].method == "ridge" and "classifier" not in record.params
    assert "phase1.temperature" in record.metrics


@pytest.mark.parametrize(
    "choices",
    [
        {"objectives": ("focal",), "adapters": ("lora",), "techniques": tuple(TECHNIQUES)},
        {"optimizers": ("sgd",), "adapters": ("norm",), "heads": ("mlp",)},
        {"methods": ("sam",), "adapters": ("bias",), "heads": ("conv",)},
        {"heads": ("cosine",)},
        {"poolings": ("flatten", "gem"), "set": {"head_pooling": 0.0, "recipe.length": 0}},
        {
            "poolings": ("gem",),
            "heads": ("mlp",),
            "strategies": ("fine-tune",),
            "set": {"frozen": 1.0, "recipe.length": 0},
        },
    ],
    ids=lambda choices: "-".join(str(value) for values in choices.values() for value in values),
)
def test_a_winner_with_each_is_exported_with_equal_outputs(host, stripes, tmp_path, choices):
    made = search(host, stripes, **choices)
    result = made.run()
    if "poolings" in choices:
        assert result.best.plan.head.pooling == choices["poolings"][0]
        assert made.folder.definition.poolings == choices["poolings"]
    if "frozen" in choices.get("set", {}):  # one hidden layer on frozen features
        assert result.best.plan.head.kind == "mlp"
        assert [phase.frozen for phase in result.best.plan.phases] == [result.best.plan.cut]
    model = Study(made.folder, bundle.load(made.folder.bundle, made.catalogue), result)
    files = sorted(stripes.rglob("*.png"))[::9]
    model.export("onnx", tmp_path / "out")  # which compares the two
    loaded = bundle.load(made.folder.bundle, made.catalogue)
    np.testing.assert_allclose(list(loaded.predict(files)), model.predict_proba(files), atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"methods": ("logistic",)}, "--methods: 'logistic' fits a head. .*, or use --classifiers."),
        ({"classifiers": ("sam",)}, "--classifiers: Unknown classifier 'sam'. Did you mean 'svm'?"),
        ({"poolings": ("mean",)}, "poolings"),
        ({"adapters": ("lore",)}, "Unknown adapter 'lore'. Did you mean 'lora'"),
        ({"techniques": ("mixupp",)}, "techniques"),
    ],
)
def test_a_wrong_choice_is_reported_before_any_image_is_read(host, stripes, settings, says):
    with pytest.raises((StudyError, Exception), match=says):
        search(host, stripes, **settings)


def test_a_pooling_that_some_cut_does_not_allow_needs_another(host, stripes):
    with pytest.raises(StudyError, match="--poolings flatten,token is not possible at every cut of 'tiny:net'.*or gem"):
        search(host, stripes, poolings=("flatten", "token")).run()


def test_the_strength_of_a_technique_can_be_fixed(host, stripes):
    watcher = Notes()
    made = search(host, stripes, watcher, techniques=("mixup",), set={"recipe.mixup": 0.3, "recipe.length": 0})
    made.run()
    (record,) = made.folder.log.records()
    assert record.plan.phases[0].training.mixup == 0.3
    assert watcher.notes and not [note for note in watcher.notes if "--set" in note]


def test_a_resumed_study_keeps_its_choices(host, stripes):
    search(host, stripes, adapters=("norm", "all"), heads=("cosine", "linear")).run()
    with pytest.raises(StudyError, match="started with adapter norm, all, not lora"):
        search(host, stripes, adapters=("lora",), trials=2).run()
    with pytest.raises(StudyError, match="techniques"):
        search(host, stripes, adapters=("norm", "all"), techniques=("ema",), trials=2).run()
    with pytest.raises(StudyError, match="heads cosine, linear → cosine"):
        search(host, stripes, adapters=("norm", "all"), heads=("cosine",), trials=2).run()
    for trials, named in ((2, {}), (3, {"heads": ("linear", "cosine")})):  # without naming them, and in another order
        again = search(host, stripes, trials=trials, **named)
        assert again.run().trials["complete"] == trials
    assert again.folder.definition.heads == ("cosine", "linear")
    assert next(record.plan.head.kind for record in again.folder.log.records()) == "cosine"


def test_a_plan_that_ended_itself_is_logged_as_it_was_run_and_refit(host, stripes):
    watcher = Notes()
    settings = {
        "strategies": ("work-backwards",),
        "set": {
            "frozen": 0.0,
            "cut": 1.0,
            "work-backwards.steps": 3,
            "recipe.length": 0,
            "recipe.warmup_ratio": 0,
            "recipe.schedule": "constant",
            "sgd.lr": 0.1,
            "sgd.head_lr": 1.0,
        },
        "optimizers": ("sgd",),
        "refit": True,
        "reruns": 1,
    }
    made = search(host, stripes, watcher, trials=2, **settings)
    result = made.run()
    records = list(made.folder.log.records())
    ended = [record for record in records if record.metrics[f"phase{len(record.plan.phases)}.best_epoch"] == 0]
    assert min(len(record.plan.phases) for record in ended) < 4  # the head, and three stages
    for record in ended:
        assert record.state == "complete" and not record.reason
        assert f"phase{len(record.plan.phases) + 1}.best_epoch" not in record.metrics
        ran = len(record.plan.phases)
        if ran < 4:
            assert [note for note in watcher.notes if note.startswith(f"Trial {record.number}: phase {ran} of 4")]
    assert all(training.stop.at_epoch is not None for training in result.final.trainings)
    assert len(result.final.phases) <= len(result.best.plan.phases)
    assert bundle.plan_of(made.folder.bundle) == result.final
