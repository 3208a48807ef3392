"""What the built-in objectives, adapters and gradient methods do, on cases worked out by hand."""

import math

import pytest
import torch
from torch import nn

from autotl.contracts import Weight
from autotl.engine.parts import Parts
from autotl.engine.tools import _sound


@pytest.fixture
def built(host):
    def build(kind, name, **params):
        return host.registries[kind][name].item.build(params)

    return build


def weights(module):
    return [
        Weight(name, parameter, module.get_submodule(name.rpartition(".")[0]))
        for name, parameter in module.named_parameters()
    ]


def test_focal_loss_counts_easy_images_less(built):
    """At p = 0.9 and gamma 2 an image counts a hundredth (Lin et al. 2017, section 3.2)."""
    logits = torch.tensor([[math.log(0.9), math.log(0.1)]])
    target, evenly = torch.tensor([[1.0, 0.0]]), torch.ones(2)
    plain = built("objectives", "cross-entropy")(logits, target, evenly).item()
    assert plain == pytest.approx(-math.log(0.9), rel=1e-5)
    assert built("objectives", "focal", gamma=2)(logits, target, evenly).item() == pytest.approx(plain / 100, rel=1e-3)
    assert built("objectives", "focal", gamma=0)(logits, target, evenly).item() == pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize("name", ["cross-entropy", "focal"])
def test_class_weights_and_soft_targets_multiply_the_loss_of_a_class(built, name):
    loss = built("objectives", name)
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    one_hot, weighted = torch.eye(3), torch.tensor([2.0, 0.5, 1.0])
    each = torch.stack([loss(logits, one_hot[c].expand(4, 3), torch.ones(3)) for c in range(3)])
    soft = torch.tensor([0.2, 0.3, 0.5])
    expected = (each * soft * weighted).sum()
    torch.testing.assert_close(loss(logits, soft.expand(4, 3), weighted), expected)


@pytest.mark.parametrize("name", ["cross-entropy", "focal"])
def test_the_gradient_of_a_confident_image_is_finite(built, name):
    logits = torch.tensor([[200.0, -200.0]], requires_grad=True)
    built("objectives", name)(logits, torch.tensor([[1.0, 0.0]]), torch.ones(2)).backward()
    assert logits.grad.isfinite().all()


NETWORK = nn.Sequential(
    nn.Conv2d(3, 8, 3),
    nn.BatchNorm2d(8),
    nn.Conv2d(8, 8, 3, groups=8),
    nn.Flatten(),
    nn.LayerNorm(32),
    nn.Linear(32, 6),
)


@pytest.mark.parametrize(
    ("adapter", "trained"),
    [
        ("norm", {"1.weight", "1.bias", "4.weight", "4.bias"}),
        ("bias", {"0.bias", "1.bias", "2.bias", "4.bias", "5.bias"}),
        ("all", {name for name, _ in NETWORK.named_parameters()}),
    ],
)
def test_an_adapter_chooses_parameters(built, adapter, trained):
    given = weights(NETWORK)
    chosen = {id(parameter) for parameter in built("adapters", adapter)(given).parameters}
    assert {weight.name for weight in given if id(weight.parameter) in chosen} == trained


def test_lora_starts_at_the_network_and_changes_it_by_a_matrix_of_low_rank(built):
    given = weights(NETWORK)
    before = {weight.name: weight.parameter.detach().clone() for weight in given}
    adapted = _sound(built("adapters", "lora", rank=2, alpha=6.0)(given), given)
    assert set(adapted.weights()) == {"0.weight", "5.weight"}  # a depthwise convolution has no matrix
    for name, value in adapted.weights().items():
        assert torch.equal(value, before[name])
    up, down = adapted.parameters[2:]  # of the linear layer
    assert (tuple(up.shape), tuple(down.shape)) == ((6, 2), (2, 32))
    with torch.no_grad():
        up.normal_(generator=torch.Generator().manual_seed(0))
    change = adapted.weights()["5.weight"] - before["5.weight"]
    torch.testing.assert_close(change, 3.0 * up @ down)  # alpha / rank
    assert torch.linalg.matrix_rank(change) == 2
    assert all(torch.equal(weight.parameter, before[weight.name]) for weight in given)


def test_lora_passes_gradients_to_its_factors_alone(built, host, tmp_path):
    from autotl.backbones.catalogue import Catalogue

    catalogue = Catalogue(host, tmp_path / "cache")
    stages = catalogue.build(catalogue.network("tiny:net@random", 0))
    before = {name: value.clone() for name, value in stages.state_dict().items()}
    lora = built("adapters", "lora", rank=2)
    parts = Parts(stages, "0.2", lambda stage, given: _sound(lora(given), given))
    assert parts.pretrained == []
    assert list(parts.by_stage) == ["1.2", "2.1"]
    assert all(".adapter." in name for trained in parts.by_stage.values() for name in trained)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    start = stages(images, to="0.2")
    torch.testing.assert_close(parts(start, "0.2"), stages(images))
    parts(start, "0.2").square().sum().backward()
    gradients = {name: each.grad for trained in parts.by_stage.values() for name, each in trained.items()}
    assert all(gradient is not None for gradient in gradients.values())
    assert all(parameter.grad is None for parameter in stages.parameters())
    with torch.no_grad():
        for trained in parts.by_stage.values():
            for each in trained.values():
                each += 0.1
    changed = parts(start, "0.2")
    parts.merge()
    torch.testing.assert_close(stages(images), changed)  # the merged network needs no adapter
    after = stages.state_dict()
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["1.0.weight", "2.0.weight"]


class Quadratic:
    """A batch whose loss is half of the weighted square of two parameters; it records where gradients are asked for."""

    def __init__(self):
        self.parameter = nn.Parameter(torch.tensor([3.0, 4.0]))
        self.parameters = [self.parameter]
        self.asked, self.updated = [], False

    def gradients(self):
        self.asked.append(self.parameter.detach().clone())
        self.parameter.grad = self.parameter.detach() * torch.tensor([1.0, 2.0])

    def update(self):
        self.updated = True


def test_sam_takes_the_gradient_at_the_worst_point_nearby(host):
    """At (3, 4) the gradient is (3, 8), so the worst point at distance rho is rho · (3, 8) / √73 away."""
    batch = Quadratic()
    host.methods["sam"].item.step(batch, {"rho": 0.5})
    worst = torch.tensor([3.0, 4.0]) + 0.5 * torch.tensor([3.0, 8.0]) / math.sqrt(73)
    torch.testing.assert_close(batch.asked[1], worst)
    torch.testing.assert_close(batch.parameter.grad, worst * torch.tensor([1.0, 2.0]))
    assert torch.equal(batch.parameter.detach(), torch.tensor([3.0, 4.0]))  # back before the update
    assert batch.updated and len(batch.asked) == 2


def test_gradient_descent_takes_the_gradient_where_it_is(host):
    batch = Quadratic()
    host.methods["gradient-descent"].item.step(batch, {})
    assert batch.updated
    assert [each.tolist() for each in batch.asked] == [[3.0, 4.0]]
