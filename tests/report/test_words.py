import re

import pytest

from autotl.builtin import logistic
from autotl.engine.scale import Scale
from autotl.plan import NO_AUGMENTATION, Ensemble, Head, Input, Phase, Training, TransferPlan
from autotl.report import words
from autotl.tracking import result as results

PLAN = TransferPlan.model_construct(
    backbone="tiny:net",
    cut="2.1",
    head=Head(pooling="avg"),
    input=Input(size=32, resize=32, interpolation="bilinear", mean=(0.5,) * 3, std=(0.5,) * 3),
    phases=(logistic.probe("2.1"),),
)
TRAINED = Phase(
    method="gradient-descent",
    frozen=None,
    training=Training(epochs=3, batch_size=8, head_lr=0.01, stage_lr={"2.1": 0.1}),
)
OF_CLASS = results.OfClass(images=50, right=40)


def of_test(value=0.95, units=50, **classes):
    found = {name: results.OfClass(images=images, right=right) for name, (right, images) in classes.items()}
    numbers = {"metric": "accuracy", "value": value, "low": 0.0, "high": 1.0, "images": 50}
    return results.Test(**numbers, units=units, most_frequent=0.5, classes=found or {"a": OF_CLASS})


def result(plans, validation, test, **metrics):
    return results.Result.model_construct(
        plans=plans,
        best=results.Best.model_construct(
            trial=1,
            strategy="linear-probe",
            plan=PLAN,
            validation=validation,
            metrics={"parameters": 1e6, "flops": 1e6, **metrics},
            runs=(results.Run(seed=0, value=validation),),
        ),
        test=of_test(test),
        imbalance=1.0,
        comparisons={},
        skipped=(),
        test_opened=1,
    )


@pytest.mark.parametrize(
    ("found", "cautions"),
    [
        (result(plans=5, validation=0.98, test=0.95), True),
        (result(plans=5, validation=0.98, test=0.98), True),
        (result(plans=5, validation=0.98, test=1.0), False),
        (result(plans=1, validation=0.98, test=0.95), False),
        (result(plans=1, validation=0.98, test=0.95, **{"phase1.val.loss_at_selection": 0.1}), True),
    ],
    ids=["chosen", "as good in the test", "better in the test", "nothing to choose", "its penalty chosen"],
)
def test_a_number_that_chose_the_winner_has_a_caution_unless_the_test_is_higher(found, cautions):
    (line,) = [line for line in words.summary(found) if line.startswith("Validation accuracy 98.0%.")]
    assert ("expect less on new images" in line) is cautions


def summary_of(**changes):
    return "\n".join(words.summary(result(plans=5, validation=0.9, test=0.95).model_copy(update=changes)))


def test_the_summary_has_the_recall_of_each_class_and_the_share_of_the_most_frequent():
    said = summary_of(test=of_test(ok=(57, 57), rare=(0, 3)))
    assert "Always predicting the most frequent class would give accuracy 50.0%.\n" in said
    assert "\nRecall of each class: 'rare' 0.0% (0 of 3 images), 'ok' 100.0% (57 of 57 images).\n" in said
    many = of_test(**{f"class {number}": (9 - number, 10) for number in range(9)})
    assert "\nLowest recall, 5 of 9 classes: 'class 8' 10.0% (1 of 10 images), 'class 7'" in summary_of(test=many)


def test_a_head_that_is_not_linear_is_named():
    training = Training(epochs=3, batch_size=8, head_lr=0.01, stage_lr={"2.1": 0.1})
    phases = [
        Phase(method="gradient-descent", frozen=frozen, training=training.model_copy(update={"stage_lr": lrs}))
        for frozen, lrs in (("2.1", {}), ("1.2", {"2.1": 0.1}))
    ]
    changes = {"phases": tuple(phases), "augmentation": NO_AUGMENTATION}
    for head, place, trained in (
        (Head(pooling="avg"), "average pooling, strategy", "the head at lr 0.01"),
        (Head(pooling="gem", kind="conv", width=64), "generalised-mean pooling, head conv 64, ", "the conv 64 head at"),
        (Head(pooling="flatten", kind="cosine"), "no pooling, head cosine, ", "the cosine head at lr 0.01"),
    ):
        plan = PLAN.model_copy(update={**changes, "head": head})
        found = result(plans=5, validation=0.9, test=0.95)
        said = "\n".join(words.summary(found.model_copy(update={"best": found.best.model_copy(update={"plan": plan})})))
        assert place in said
        assert f"only {trained}" in said and f"2.1 to 2.1 at lr 0.1, {trained}" in said


def test_the_recall_of_many_classes_lists_only_those_with_an_error():
    right = {f"{number}": (10, 10) for number in range(9)}
    one = summary_of(test=of_test(**right | {"7": (9, 10)}))
    assert "\nRecall of each class: '7' 90.0% (9 of 10 images); 100% for all others.\n" in one
    assert "\nRecall is 100% for every class.\n" in summary_of(test=of_test(**right))


def compared(weights, low, high, value=0.9):
    plan = PLAN.model_copy(update={"weights": weights, "phases": (TRAINED,)})
    return results.Comparison(plan=plan, value=value, difference=(low + high) / 2, low=low, high=high)


@pytest.mark.parametrize(
    ("won", "other", "low", "high", "says"),
    [
        ("sha256:1", "random:0", 0.01, 0.05, "Pretraining helped here"),
        ("sha256:1", "random:0", -0.01, 0.05, "Pretraining made no significant difference here"),
        ("sha256:1", "random:0", -0.05, -0.01, "Pretraining hurt here.*search with --strategies scratch"),
        ("random:0", "sha256:1", 0.01, 0.05, "Pretraining hurt here.*accuracy.\n"),
        ("random:0", "sha256:1", -0.01, 0.05, "Pretraining made no significant difference here"),
        ("random:0", "sha256:1", -0.05, -0.01, "Pretraining helped here"),
        ("sha256:1", "sha256:2", 0.01, 0.05, ""),
        ("none", "random:0", 0.01, 0.05, ""),
    ],
)
def test_the_summary_says_whether_pretraining_helped(won, other, low, high, says):
    """The difference is that of the winner to the other."""
    best = result(plans=5, validation=0.9, test=0.95).best
    plan = best.plan.model_copy(update={"weights": won, "phases": (TRAINED,), "augmentation": NO_AUGMENTATION})
    others = {
        "worse": compared(other, 0.3, 0.4, value=0.5),  # only the best of them counts
        "best": compared(other, low, high),
        "pixels": compared("none", -0.4, -0.3),
    }
    said = summary_of(best=best.model_copy(update={"plan": plan}), comparisons=others)
    assert ("Pretraining" in said) is bool(says)
    assert re.search(says, said)


def test_a_metric_that_is_better_where_smaller_is_no_percentage():
    scale = Scale(greater_is_better=False, percent=False)
    test = of_test(0.5).model_copy(update={"metric": "log-loss", "scale": scale, "low": 0.25, "near_apart": 1})
    said = summary_of(test=test)
    assert "\nTest log-loss 0.5000, 95 % confidence interval 0.2500 to 1.000 (50 test images).\n" in said
    assert "would give log-loss 0.5000." in said and "so expect more on new images" not in said
    assert "expect more on new images" in summary_of(test=test.model_copy(update={"value": 0.95}))
    comparison = results.Comparison.model_construct(value=0.75, difference=0.1, low=0.05, high=0.2)
    assert words.against("pixels", test, comparison).startswith(
        "Compared with pixels, log-loss 0.7500: +10.0 points of acc"
    )


def test_a_test_without_an_interval_says_so():
    without = of_test(units=1).model_copy(update={"low": None, "high": None})
    assert "\nTest accuracy 95.0%, without a confidence interval (50 test images in 1 groups" in summary_of(
        test=without
    )


def test_near_copies_of_test_images_in_other_splits_are_reported_with_the_accuracy():
    said = "12 of these images have a near-copy in another split"
    assert said in summary_of(test=of_test().model_copy(update={"near_apart": 12}))
    assert "near-copy" not in summary_of()


def test_the_number_of_groups_is_shown_if_images_share_them():
    assert "(50 test images)." in summary_of()
    assert "(50 test images in 8 groups; copies of an image are one group)." in summary_of(test=of_test(units=8))


@pytest.mark.parametrize(
    ("imbalance", "metric", "says"), [(3.0, "accuracy", False), (19.0, "accuracy", True), (19.0, "macro-f1", False)]
)
def test_another_metric_is_recommended_if_classes_are_unequal(imbalance, metric, says):
    said = summary_of(imbalance=imbalance, test=of_test().model_copy(update={"metric": metric}))
    assert ("The largest class has 19 times the train images of the smallest" in said) is says
    assert ("--metric balanced-accuracy" in said) is says


def test_an_ensemble_is_shown_with_its_costs_and_says_nothing_about_pretraining():
    plans = Ensemble(members=(PLAN, PLAN.model_copy(update={"seed": 9})))
    costs = {"parameters": 3e6, "flops": 5e7}
    ensemble = results.Averaged(trials=(1, 4), plan=plans, validation=0.925, metrics=costs)
    best = result(plans=5, validation=0.9, test=0.95).best
    won = PLAN.model_copy(update={"weights": "sha256:1", "phases": (TRAINED,), "augmentation": NO_AUGMENTATION})
    changes = {
        "best": best.model_copy(update={"plan": won}),
        "comparisons": {"another": compared("random:0", 0.1, 0.2)},
    }
    said = summary_of(ensemble=ensemble, **changes)
    assert (
        "\nEnsemble: the mean of the probabilities of 2 models, of trials 1, 4; 3 M parameters, 50 M FLOPs per image; "
        "validation accuracy 92.5%, of the winner alone 90.0% on the same images.\n"
    ) in said
    assert "\nValidation accuracy of the winner alone 90.0%." in said
    assert "Pretraining" not in said and "Pretraining helped" in summary_of(**changes)


def test_balanced_class_weights_of_a_head_are_shown():
    plan = PLAN.model_copy(update={"phases": (logistic.probe("2.1", "balanced"),)})
    assert list(words.trained(plan)) == ["  Head: logistic on the frozen features, balanced class weights."]
    assert "balanced" not in "".join(words.trained(PLAN))


@pytest.mark.parametrize(
    ("changes", "shown"),
    [({"class_weights": "effective"}, "effective class weights"), ({"sampling": "balanced"}, "balanced sampling")],
)
def test_how_gradient_descent_balances_classes_is_shown(changes, shown):
    training = Training(epochs=1, batch_size=8, head_lr=0.1, **changes)
    phase = Phase(method="gradient-descent", frozen="2.1", training=training)
    (line,) = words.trained(PLAN.model_copy(update={"phases": (phase,), "augmentation": NO_AUGMENTATION}))
    assert line.endswith(f"augmentation none; {shown}.")
