import math

import autotl_ssf
import pytest
import torch
from torch import nn

from autotl import Weight
from autotl.testing import AdapterTests, ObjectiveTests


class TestAdapter(AdapterTests):
    plugin = autotl_ssf


class TestObjective(ObjectiveTests):
    plugin = autotl_ssf


def test_a_layer_is_scaled_and_shifted_per_output_channel():
    layer = nn.Linear(3, 2)
    weights = [Weight(name, parameter, layer) for name, parameter in layer.named_parameters()]
    adapted = autotl_ssf.adapt(weights)
    scale, shift = adapted.parameters
    with torch.no_grad():
        scale.copy_(torch.tensor([2.0, 3.0]))
        shift.copy_(torch.tensor([1.0, -1.0]))
    images = torch.randn(5, 3)
    changed = torch.func.functional_call(layer, dict(adapted.weights()), (images,))
    torch.testing.assert_close(changed, layer(images) * torch.tensor([2.0, 3.0]) + torch.tensor([1.0, -1.0]))


def test_norms_train_their_own_parameters():
    norm = nn.BatchNorm2d(4)
    weights = [Weight(name, parameter, norm) for name, parameter in norm.named_parameters()]
    assert autotl_ssf.adapt(weights).parameters == [norm.weight, norm.bias]


@pytest.mark.parametrize("epsilon", [0.0, 2.0, -1.0])
def test_poly_1_adds_the_missing_probability(epsilon):
    loss = autotl_ssf.Poly1().build({"epsilon": epsilon})
    logits = torch.tensor([[math.log(0.8), math.log(0.2)]])
    found = loss(logits, torch.tensor([[1.0, 0.0]]), torch.ones(2)).item()
    assert found == pytest.approx(-math.log(0.8) + epsilon * 0.2, abs=1e-6)
