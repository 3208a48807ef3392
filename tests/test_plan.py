import json

import pytest

from autotl.errors import PlanError
from autotl.plan import NO_AUGMENTATION, DataRef, Head, Input, Phase, Stop, Training, TransferPlan, digest

PLAN = TransferPlan(
    backbone="tiny:net",
    weights="random:1",
    input=Input(size=32, resize=36, interpolation="bicubic", mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.1)),
    cut="1",
    head=Head(pooling="avg"),
    augmentation=NO_AUGMENTATION,
    data=DataRef(fingerprint="abc", split_seed=3),
    seed=3,
    requires={"torch": "2.15.0", "stages": "ff"},
    phases=(
        Phase(method="logistic", frozen="1", options={"penalty": [0.1, 1e-05]}),
        Phase(
            method="gradient-descent",
            frozen=None,
            training=Training(
                epochs=4, batch_size=8, stage_lr={"0": 1e-4, "1": 0.3}, head_lr=0.1, stop=Stop(patience=2)
            ),
        ),
    ),
)


def test_json_both_ways_keeps_every_bit():
    again = TransferPlan.from_json(PLAN.to_json())
    assert again == PLAN
    assert again.hash == PLAN.hash
    assert again.to_json() == PLAN.to_json()


def test_the_hash_is_that_of_the_canonical_json():
    shuffled = dict(reversed(json.loads(PLAN.to_json()).items()))
    assert digest(shuffled) == PLAN.hash
    assert PLAN.model_copy(update={"seed": 4}).hash != PLAN.hash


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"schema": 2}, "schema"),
        ({"depth": 3}, "depth"),
        ({"seed": "3"}, "seed"),
        ({"phases": []}, "phases"),
        ({"cut": None}, "cut"),
        ({"compute_dtype": "float8"}, "compute_dtype"),
    ],
)
def test_invalid_plans_are_refused_in_one_line(change, says):
    text = json.dumps({**json.loads(PLAN.to_json()), **change})
    with pytest.raises(PlanError) as error:
        TransferPlan.from_json(text, name="plan.json")
    assert str(error.value).startswith("plan.json is not a valid TransferPlan")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_key_is_refused():
    whole = json.loads(PLAN.to_json())
    del whole["cut"]
    with pytest.raises(PlanError, match="cut"):
        TransferPlan.from_json(json.dumps(whole))


def test_a_plan_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        PLAN.seed = 4


def test_options_must_be_plain_json():
    with pytest.raises((TypeError, ValueError)):
        Phase(method="gradient-descent", frozen=None, options={"rate": float("nan")})
    with pytest.raises((TypeError, ValueError)):
        Phase(method="gradient-descent", frozen=None, options={"rate": object()})


def test_an_input_cannot_be_larger_than_the_resized_image():
    with pytest.raises(ValueError, match="resize \\(20 px\\) must be at least size \\(32 px\\)"):
        Input(size=32, resize=20, interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.mark.parametrize("std", [0.0, -0.2])
def test_values_that_would_divide_by_zero_are_refused(std):
    with pytest.raises(ValueError, match="greater than 0"):
        Input(size=32, resize=32, interpolation="bicubic", mean=(0.5,) * 3, std=(0.2, std, 0.2))


def test_a_plan_is_shown_in_one_short_line():
    shown = f"TransferPlan(backbone='tiny:net', cut='1', methods='logistic, gradient-descent', hash='{PLAN.hash[:12]}')"
    assert repr(PLAN) == shown


@pytest.mark.parametrize("wrong", [{}, {"patience": 2, "at_epoch": 3}, {"patience": 0}, {"at_epoch": -1}])
def test_a_stop_has_either_patience_or_an_epoch(wrong):
    with pytest.raises(ValueError, match="patience|at_epoch"):
        Stop(**wrong)


def test_ending_the_plan_needs_patience_and_is_written_only_if_it_is_set():
    with pytest.raises(ValueError, match="ends_plan needs patience"):
        Stop(at_epoch=3, ends_plan=True)
    assert json.loads(Stop(patience=2).to_json()) == {"patience": 2, "at_epoch": None}
    ends = Stop(patience=2, ends_plan=True)
    assert Stop.from_json(ends.to_json()) == ends != Stop(patience=2)


def test_another_size_keeps_the_share_that_is_cropped():
    own = Input(size=224, resize=256, interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3)
    assert own.larger() == (288, 384)
    larger = own.at(288)
    assert (larger.size, larger.resize) == (288, 329)
    assert larger.model_copy(update={"size": 224, "resize": 256}) == own


def test_default_fields_of_an_input_are_not_written():
    own = Input(size=224, resize=256, interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3)
    assert set(json.loads(own.to_json())) == {"size", "resize", "interpolation", "mean", "std"}
    other = own.by("pad").model_copy(update={"bits": 12})
    assert Input.from_json(other.to_json()) == other
    assert (other.mode, other.resize, other.by("crop").resize) == ("pad", 224, 224)
    assert own.by("crop") == own
    with pytest.raises(PlanError, match="bits"):
        Input.from_json(other.to_json().replace("12", "17"))


def test_classes_are_balanced_once():
    assert Training(epochs=1, batch_size=8, head_lr=0.1, sampling="balanced").counted == "balanced"
    with pytest.raises(ValueError, match="balanced sampling already counts classes equally: set class_weights to 'no"):
        Training(epochs=1, batch_size=8, head_lr=0.1, sampling="balanced", class_weights="effective")


def test_a_plan_without_balanced_sampling_keeps_its_hash():
    assert "sampling" not in PLAN.to_json()
