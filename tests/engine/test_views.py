"""A model that averages its probabilities over an image and its mirror image."""

import json

import numpy as np
import pytest
import torch
from tiny import make_bench, plan

from autotl.builtin import logistic
from autotl.engine.features import normalise, seen_by
from autotl.engine.fit import fit
from autotl.engine.views import averaged, view
from autotl.errors import PlanError
from autotl.plan import Head, Phase, Training, TransferPlan


def test_probabilities_are_averaged_not_logits():
    """0.9 and 0.5 are 0.7 on average; of logits it would be 0.75."""
    one, other = torch.tensor([[0.9, 0.1]]).log() + 3, torch.tensor([[0.5, 0.5]]).log() - 7
    torch.testing.assert_close(averaged([one, other]).softmax(1), torch.tensor([[0.7, 0.3]]))
    assert averaged([one]) is one


def test_the_second_view_is_mirrored():
    images = torch.arange(24).view(1, 2, 3, 4)
    assert view(images, 0) is images
    assert view(images, 1)[0, 0, 0].tolist() == [3, 2, 1, 0]


@pytest.mark.parametrize("head", ["linear", "conv"])
def test_a_plan_with_two_views_averages_and_costs_twice(host, stripes, tmp_path, head):
    bench = make_bench(host, stripes, tmp_path / "cache")
    made = plan(bench, logistic.probe("2.1"))
    if head == "conv":
        training = Training(epochs=1, batch_size=32, head_lr=0.1)
        phases = (Phase(method="gradient-descent", frozen="2.1", training=training),)
        made = made.model_copy(update={"head": Head(pooling="avg", kind="conv", width=8), "phases": phases})
    twice = fit(made.model_copy(update={"test_views": 2}), bench)
    once = fit(made, bench)
    model = once.model
    pixels = torch.from_numpy(bench.features.pixels.read(made.input, bench.shas("val")))
    with torch.no_grad():
        both = [
            model.head(seen_by(made.head, model.stages, normalise(images, made.input))).softmax(1)
            for images in (pixels, pixels.flip(3))
        ]
    found = torch.from_numpy(twice.logits("val")).softmax(1)
    torch.testing.assert_close(found, (both[0] + both[1]) / 2, rtol=1e-4, atol=1e-5)
    assert (both[0] - both[1]).abs().max() > 1e-3
    assert twice.metrics["flops"] == 2 * once.metrics["flops"]
    labels = bench.dataset.labels("val")
    gain = np.mean(found.numpy().argmax(1) == labels) - once.metrics["val.accuracy"]
    assert twice.metrics["val.views.gain"] == pytest.approx(gain)
    assert twice.metrics["val.views.low"] <= gain <= twice.metrics["val.views.high"]


def test_one_view_is_not_written(host, stripes, tmp_path):
    made = plan(make_bench(host, stripes, tmp_path / "cache"), logistic.probe("2.1"))
    assert "test_views" not in json.loads(made.to_json())
    two = made.model_copy(update={"test_views": 2})
    assert TransferPlan.from_json(two.to_json()) == two
    with pytest.raises(PlanError, match="test_views"):
        TransferPlan.from_json(two.to_json().replace('"test_views": 2', '"test_views": 3'))
