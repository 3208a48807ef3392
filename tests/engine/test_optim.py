import pytest
import torch
from torch import nn

from autotl.engine.optim import Average, Descent
from autotl.plan import Training


def parameter(*values):
    return nn.Parameter(torch.tensor([values], dtype=torch.float32))


def descent(stages, head=None, pretrained=(), lr=1.0, **changes):
    """Plain gradient descent with a constant learning rate."""
    training = Training(
        **{
            "epochs": 1,
            "batch_size": 1,
            "head_lr": lr,
            "stage_lr": dict.fromkeys(stages, lr),
            "schedule": "constant",
            **changes,
        }
    )
    return Descent(
        training,
        head or {},
        stages,
        pretrained=pretrained,
        exempt=frozenset(),
        build=torch.optim.SGD,
        advance=torch.optim.SGD.step,
        steps=10,
    )


def test_l2_sp_pulls_towards_the_start_and_not_towards_zero():
    """After one step away the pull back is l2_sp times the distance; it replaces weight decay of the stages."""
    weight, head = parameter(3.0, -2.0), parameter(4.0)
    made = descent({"s": {"w": weight}}, {"h": head}, [weight], lr=0.5, l2_sp=0.2, weight_decay=0.1)
    with torch.no_grad():
        weight += torch.tensor([[1.0, 2.0]])
    made.start()
    weight.grad, head.grad = torch.zeros_like(weight), torch.zeros_like(head)
    made.update()
    torch.testing.assert_close(weight.detach(), torch.tensor([[4.0 - 0.5 * 0.2 * 1, 0.0 - 0.5 * 0.2 * 2]]))
    torch.testing.assert_close(head.detach(), torch.tensor([[4.0 - 0.5 * 0.1 * 4]]))


def test_l2_sp_leaves_new_parameters_alone():
    new = parameter(3.0)
    made = descent({"s": {"s.adapter.0": new}}, l2_sp=0.2)
    with torch.no_grad():
        new += 1
    made.start()
    new.grad = torch.zeros_like(new)
    made.update()
    assert new.item() == 4


def test_stages_with_one_learning_rate_are_one_group():
    """Each group costs a GPU some launches per step."""
    groups = []
    stages = {name: {f"{name}.weight": parameter(1.0), f"{name}.bias": nn.Parameter(torch.zeros(1))} for name in "abc"}
    training = Training(epochs=1, batch_size=1, head_lr=0.1, stage_lr=dict.fromkeys("abc", 0.2), weight_decay=0.1)
    head = {"weight": parameter(1.0)}
    Descent(training, head, stages, pretrained=(), exempt=frozenset(), build=groups.extend, advance=None, steps=1)
    assert [(len(each["params"]), each["lr"], each["weight_decay"]) for each in groups] == [
        (1, 0.1, 0.1),
        (3, 0.2, 0.1),
        (3, 0.2, 0.0),
    ]


def test_the_average_is_that_of_the_steps():
    live = torch.zeros(1)
    average = Average({"x": live}, decay=0.9)
    expected, value = 0.0, 0.0
    for step in range(1, 200):
        value += 1.0
        live.fill_(value)
        average.update()
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    average.swap()
    assert live.item() == pytest.approx(expected, rel=1e-5)
    assert expected == pytest.approx(199 - 9, abs=0.1)  # it lags by 0.9 / (1 - 0.9) steps
    average.swap()
    assert live.item() == 199


def test_counters_are_not_averaged():
    steps = torch.zeros((), dtype=torch.int64)
    average = Average({"steps": steps}, decay=0.99)
    steps += 5
    average.update()
    average.swap()
    assert steps.item() == 5


def test_parameters_that_are_not_finite_are_found():
    weight = parameter(1.0, 2.0)
    made = descent({"s": {"w": weight}})
    assert made.finite()
    with torch.no_grad():
        weight[0, 1] = float("inf")
    assert not made.finite()
