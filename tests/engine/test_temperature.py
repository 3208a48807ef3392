"""Temperature scaling: the temperature is found again, helps or is 1, and never changes a class."""

import numpy as np
import pytest
from scipy.special import softmax

from autotl.engine.calibration import ENOUGH
from autotl.engine.temperature import Predicted, calibrate, tempered


def drawn(images, factor, classes=5, seed=0):
    """Labels drawn from the softmax of logits, and a model whose logits are `factor` times as large."""
    draw = np.random.default_rng(seed)
    logits = 2 * draw.standard_normal((images, classes))
    right = softmax(logits, axis=1)
    labels = np.array([draw.choice(classes, p=row) for row in right])
    return Predicted(softmax(factor * logits, axis=1), labels, np.arange(images))


@pytest.mark.parametrize("factor", [0.5, 2.0, 4.0])
def test_the_temperature_is_found_again(factor):
    found = calibrate([drawn(4000, factor)])
    assert found.temperature == pytest.approx(factor, rel=0.15)
    assert found.after < found.before and found.images == 4000


def test_predictions_of_several_runs_count_together():
    runs = [drawn(40, 3.0, seed=seed) for seed in range(5)]
    together = calibrate(runs)
    whole = [np.concatenate([getattr(run, name) for run in runs]) for name in ("probabilities", "labels")]
    assert together.images == 200 and 1.5 < together.temperature < 6
    assert together.temperature == pytest.approx(calibrate([Predicted(*whole, np.arange(200))]).temperature)


def test_without_a_gain_in_cross_validation_the_temperature_is_1():
    temperatures = [calibrate([drawn(60, 1.0, seed=seed)]) for seed in range(20)]
    assert all(found.after < found.before for found in temperatures if found.temperature != 1)
    assert all(found.after == found.before for found in temperatures if found.temperature == 1)
    assert sum(found.temperature == 1 for found in temperatures) >= 8
    one = Predicted(np.array([[0.9, 0.1]]), np.array([0]), np.array([0]))
    assert calibrate([one]).temperature == 1


def test_copies_do_not_judge_what_they_chose():
    """Of one unit, each image is a copy of the others: no fold is left to judge by."""
    several = drawn(50, 4.0)
    assert calibrate([Predicted(several.probabilities, several.labels, np.zeros(50, int))]).temperature == 1


def test_a_few_right_predictions_do_not_make_a_model_sure_of_everything():
    rows = np.tile([0.9, 0.06, 0.04], (30, 1))
    found = calibrate([Predicted(rows, np.zeros(30, int), np.arange(30))])
    sure = tempered(rows, found.temperature).max()
    assert 0.9 < sure < 0.99


def test_a_temperature_never_changes_a_class():
    rows = drawn(500, 1.0, classes=20).probabilities
    for temperature in (0.125, 0.7, 8.0):
        changed = tempered(rows, temperature)
        assert (changed.argmax(1) == rows.argmax(1)).all()
        np.testing.assert_allclose(changed.sum(1), 1)
        np.testing.assert_allclose(changed, softmax(np.log(rows) / temperature, axis=1), rtol=1e-9)
    certain = np.array([[1.0, 0.0, 0.0]])
    assert np.isfinite(tempered(certain, 8.0)).all()


def steps(shares, images=100):
    """Two classes; the confidence rises in steps from 0.6 on, and these shares of the images of each step are right."""
    confidences = np.repeat(np.linspace(0.6, 0.95, len(shares)), images)
    right = np.concatenate([np.arange(images) < share * images for share in shares])
    rows = np.stack([confidences, 1 - confidences], axis=1)
    return Predicted(rows, (~right).astype(int), np.arange(len(right)))


def test_predictions_are_sure_from_where_nine_of_ten_are_right():
    found = calibrate([steps([0.5, 0.7, 0.88, 0.92, 0.97])], own=True)
    assert found.own and found.temperature == 1 and found.sure_from == pytest.approx(0.8625)
    assert [found.certainty(value) for value in (0.99, 0.87, 0.86, 0.6)] == ["sure", "sure", "unsure", "unsure"]


def test_the_limit_is_one_of_probabilities_with_the_temperature():
    given = steps([0.3, 0.5, 0.6, 0.95])
    found = calibrate([given])
    assert found.temperature > 1.05
    assert found.sure_from == pytest.approx(tempered(given.probabilities, found.temperature)[-1].max())


def test_a_better_share_below_a_worse_one_does_not_count():
    assert calibrate([steps([0.95, 0.5, 0.95])], own=True).sure_from == pytest.approx(0.95)


def test_without_enough_right_predictions_none_is_sure():
    found = calibrate([steps([0.5, 0.8])], own=True)
    assert found.sure_from is None and found.certainty(1.0) == "unsure"
    assert calibrate([steps([0.5, 1.0], images=ENOUGH - 1)], own=True).sure_from is None
    assert calibrate([steps([0.5, 1.0], images=ENOUGH)], own=True).sure_from == pytest.approx(0.95)


def test_too_few_predictions_tell_nothing():
    found = calibrate([steps([1.0], images=ENOUGH - 1)], own=True)
    assert found.certainty(0.99) == found.certainty(0.1) == ""
