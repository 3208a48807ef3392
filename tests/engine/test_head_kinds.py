"""Each kind of head on a case worked out by hand, and trained in plans."""

import math

import numpy as np
import pytest
import torch
from tiny import after, make_bench, plan
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from autotl.contracts import Boundary, StageInfo
from autotl.engine import head_kinds
from autotl.engine.features import pool
from autotl.engine.fit import check, fit, on_all_images
from autotl.engine.head_kinds import ConvHead, CosineHead, MlpHead, Scaled, TrainedHead
from autotl.engine.heads import LinearHead, Scaling
from autotl.engine.observe import Nobody
from autotl.errors import PlanError
from autotl.plan import (
    HEADS,
    WIDE,
    Component,
    Head,
    Phase,
    Stop,
    Training,
)
from autotl.testing.lab import assert_same

KINDS = [Head(pooling="avg", kind=kind, width=16 if kind in WIDE else None) for kind in HEADS]
EVENLY = Scaling(torch.zeros(2), torch.ones(2))


def stage(layout="NCHW", shape=(2, 3, 5), prefix_tokens=0):
    return StageInfo(name="s", shape=shape, layout=layout, prefix_tokens=prefix_tokens, parameters=0, flops=0)


def by_name(head):
    return f"{head.kind}-{head.pooling}"


# By hand


def test_an_mlp_is_two_layers_with_relu():
    hidden = LinearHead(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), torch.tensor([0.0, 0.5]))
    output = LinearHead(torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0]]), torch.tensor([0.0, 1.0, -1.0]))
    # (1, 2): hidden (3, -0.5) → (3, 0). (2, 1): hidden (3, 1.5).
    logits = MlpHead(hidden, output)(torch.tensor([[1.0, 2.0], [2.0, 1.0]]))
    assert logits.tolist() == [[6.0, 1.0, 2.0], [6.0, 5.5, 3.5]]


def test_a_cosine_is_that_of_scaled_features():
    scaled = Scaled(torch.tensor([1.0, 0.0]), torch.tensor([0.5, 1.0]))
    head = CosineHead(scaled, torch.tensor([[2.0, 0.0], [0.0, -5.0], [1.0, 1.0]]), torch.tensor(10.0))
    # (7, 4) scaled is (3, 4), whose length is 5.
    logits = head(torch.tensor([[7.0, 4.0]]))
    torch.testing.assert_close(logits, torch.tensor([[6.0, -8.0, 70 / math.sqrt(50)]]))
    assert head(torch.tensor([[1.0, 0.0]])).tolist() == [[0.0, 0.0, 0.0]]  # the mean image has no direction


def test_a_convolution_comes_before_the_pooling():
    """Two channels that sum their 3 x 3 neighbourhood of an image with one bright corner, one of them negated."""
    maps = torch.zeros(1, 1, 2, 2)
    maps[0, 0, 0, 0] = 4.0
    kernel = torch.ones(1, 1, 3, 3)
    output = LinearHead(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.zeros(2))
    one, zero = torch.ones(2), torch.zeros(2)
    scaled = Scaled(torch.zeros(1), torch.ones(1))
    head = ConvHead(scaled, torch.cat([kernel, -kernel]), one, zero, output, "avg")
    # Every position sees the corner: 4 and -4. Over the group, mean 0 and deviation 4: 1 and -1, then ReLU.
    torch.testing.assert_close(head(maps), torch.tensor([[1.0, 0.0]]), atol=1e-5, rtol=0)
    flat = LinearHead(torch.eye(8), torch.zeros(8))
    head = ConvHead(scaled, torch.cat([kernel, -kernel]), one, zero, flat, "flatten")
    torch.testing.assert_close(head(maps), torch.tensor([[1.0] * 4 + [0.0] * 4]), atol=1e-5, rtol=0)


def test_the_norm_of_a_convolution_has_groups_of_16_channels():
    def head(width):
        draw = torch.Generator().manual_seed(0)
        weight = torch.randn(width, 3, 3, 3, generator=draw) * torch.arange(1, width + 1).view(-1, 1, 1, 1)
        output = LinearHead(torch.eye(width), torch.zeros(width))
        return ConvHead(Scaled(torch.zeros(3), torch.ones(3)), weight, *torch.eye(2, 1).expand(2, width), output, "max")

    maps = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    for width, groups in ((32, 2), (24, 1)):
        made = head(width)
        expected = F.group_norm(F.conv2d(maps, made.weight, padding=1), groups).relu().amax((2, 3))
        torch.testing.assert_close(made(maps), expected)


def test_gem_is_the_cubic_mean_of_values_that_are_not_negative():
    boundary = Boundary(name="s", shape=(2, 1, 2), layout="NCHW", prefix_tokens=0)
    value = torch.tensor([[[[1.0, 3.0]], [[-5.0, 2.0]]]], requires_grad=True)
    found = pool(value, boundary, "gem")
    torch.testing.assert_close(found, torch.tensor([[14 ** (1 / 3), 4 ** (1 / 3)]]))
    found.sum().backward()
    assert value.grad.isfinite().all()
    negative = torch.full((1, 2, 1, 2), -1.0, requires_grad=True)
    pool(negative, boundary, "gem").sum().backward()
    assert negative.grad.isfinite().all()


def test_poolings_are_the_same_in_every_layout():
    value = torch.rand(2, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    tokens = torch.cat([torch.full((2, 1, 4), 9.0), value.flatten(2).mT], 1)
    layouts = {
        "NCHW": (value, (4, 3, 5), 0),
        "NHWC": (value.movedim(1, -1), (3, 5, 4), 0),
        "tokens": (tokens, (16, 4), 1),
    }
    for pooling in ("avg", "max", "gem"):
        each = [
            pool(given, Boundary(name="s", shape=shape, layout=layout, prefix_tokens=prefix), pooling)
            for layout, (given, shape, prefix) in layouts.items()
        ]
        torch.testing.assert_close(each[1], each[0])
        torch.testing.assert_close(each[2], each[0])
    for layout, (given, shape, prefix) in layouts.items():
        flat = pool(given, Boundary(name="s", shape=shape, layout=layout, prefix_tokens=prefix), "flatten")
        assert sorted(flat[0].tolist()) == sorted(value[0].flatten().tolist())
        assert stage(layout, shape, prefix).places == 15


# How a head starts, and what training leaves


@pytest.mark.parametrize("head", KINDS, ids=by_name)
def test_a_new_head_passes_gradients_after_its_first_step_and_has_no_layer_of_zeros_inside(head):
    torch.manual_seed(0)
    where = stage(shape=(2, 4, 4))
    trained = TrainedHead(head_kinds.start(head, where, EVENLY, 3, None), EVENLY, 0.0)
    seen = torch.randn(6, *((2, 4, 4) if head.kind == "conv" else (2,)), requires_grad=True)
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.5)
    start = trained(seen)
    assert head.kind == "cosine" or not start.any()  # all classes have the same chance
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(trained(seen), torch.arange(6) % 3).backward()
        optimizer.step()
    assert all(parameter.grad.any() for parameter in trained.parameters())
    assert seen.grad.any()


@pytest.mark.parametrize("head", KINDS, ids=by_name)
def test_the_scaling_is_in_the_head_that_training_leaves(head):
    torch.manual_seed(0)
    scaling = Scaling(torch.tensor([5.0, -3.0]), torch.tensor([2.0, torch.inf]))
    trained = TrainedHead(head_kinds.start(head, stage(shape=(2, 4, 4)), scaling, 3, None), scaling, 0.5).eval()
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    seen = 10 * torch.randn(6, *((2, 4, 4) if head.kind == "conv" else (2,)))
    left = trained.folded()
    assert not any(parameter.requires_grad for parameter in left.parameters())
    torch.testing.assert_close(left(seen), trained(seen), atol=1e-4, rtol=1e-4)
    other = seen.clone()
    other[:, 1] += 7  # a feature that was constant has no effect
    torch.testing.assert_close(left(other), left(seen))
    # The next phase starts where this one ended, on features of another scale.
    again = Scaling(torch.tensor([1.0, 1.0]), torch.tensor([0.5, 3.0]))
    following = TrainedHead(head_kinds.start(head, stage(shape=(2, 4, 4)), again, 3, left), again, 0.0)
    torch.testing.assert_close(following(seen), left(seen), atol=1e-4, rtol=1e-4)
    before = [parameter.clone() for parameter in left.parameters()]
    with torch.no_grad():
        for parameter in following.parameters():
            parameter += 1
    assert all(torch.equal(one, two) for one, two in zip(before, left.parameters(), strict=True))
    state = {name: value.clone() for name, value in left.state_dict().items()}
    assert torch.equal(head_kinds.restored(head, state)(seen), left(seen))


def test_dropout_is_before_the_last_layer():
    torch.manual_seed(0)
    for head in KINDS:
        trained = TrainedHead(head_kinds.start(head, stage(shape=(2, 4, 4)), EVENLY, 3, None), EVENLY, 0.5)
        with torch.no_grad():
            for parameter in trained.parameters():
                parameter += 0.1
        seen = torch.randn(64, *((2, 4, 4) if head.kind == "conv" else (2,)))
        assert not torch.equal(trained(seen), trained(seen))
        assert torch.equal(trained.eval()(seen), trained(seen))
        if head.kind == "mlp":  # the hidden units are dropped, not the features
            hidden = trained.train().head.hidden
            hidden.register_forward_pre_hook(lambda module, given: setattr(module, "given", given[0]))
            trained(seen)
            assert torch.equal(hidden.given, seen)


@pytest.mark.parametrize(
    "head",
    [*KINDS, Head(pooling="flatten"), Head(pooling="flatten", kind="conv", width=8), Head(pooling="gem")],
    ids=by_name,
)
def test_the_costs_are_those_that_torch_counts(head):
    torch.manual_seed(0)
    where = stage(shape=(4, 3, 5))
    info = type("Info", (), {"stage": lambda self, name: where})()
    maps = torch.randn(1, 4, 3, 5)
    seen = maps if head.kind == "conv" else pool(maps, where, head.pooling)
    scaling = Scaling(torch.zeros(seen.shape[1]), torch.ones(seen.shape[1]))
    made = TrainedHead(head_kinds.start(head, where, scaling, 7, None), scaling, 0.0).folded()
    with FlopCounterMode(display=False) as counter:
        made(seen)
    assert head_kinds.flops(head, info, "s", 7) == counter.get_total_flops()
    assert head_kinds.parameters(head, info, "s", 7) == sum(each.numel() for each in made.parameters())


# What is allowed


@pytest.mark.parametrize(
    ("head", "where", "says"),
    [
        (
            Head(pooling="avg", kind="conv", width=8),
            stage("tokens", (17, 8), 1),
            "'s' ends in tokens: use another kind",
        ),
        (Head(pooling="token", kind="mlp", width=8), stage(), "pooling after s"),
        (Head(pooling="flatten"), stage(shape=(65, 8, 8)), "4,160 features after 's', but at most 4,096"),
        (Head(pooling="flatten", kind="conv", width=80), stage(shape=(4, 8, 8)), "5,120 features after 's'"),
    ],
)
def test_a_head_that_does_not_fit_the_cut_is_refused(head, where, says):
    with pytest.raises(PlanError, match=says):
        head_kinds.check(head, where)


def test_a_head_that_fits_the_cut_is_accepted():
    head_kinds.check(Head(pooling="flatten"), stage(shape=(64, 8, 8)))
    head_kinds.check(Head(pooling="flatten"), stage("tokens", (65, 64), 1))
    head_kinds.check(Head(pooling="token", kind="cosine"), stage("tokens", (65, 64), 1))
    head_kinds.check(Head(pooling="gem", kind="conv", width=8), stage("NHWC", (8, 8, 64)))


# In plans

PLANNED = [*KINDS, Head(pooling="gem", kind="mlp", width=8), Head(pooling="flatten", kind="conv", width=8)]


@pytest.fixture
def bench(host, stripes, tmp_path):
    return make_bench(host, stripes, tmp_path / "cache")


def phase(frozen, epochs=3, **changes):
    values = {
        "epochs": epochs,
        "batch_size": 16,
        "head_lr": 0.01,
        "stage_lr": dict.fromkeys(after(frozen), 0.002),
        "optimizer": Component(name="adamw"),
        **changes,
    }
    return Phase(method="gradient-descent", frozen=frozen, training=Training(**values))


@pytest.mark.parametrize("head", PLANNED, ids=by_name)
def test_a_plan_with_each_head_restores_its_best_epoch_and_gives_the_same_bits_twice(bench, head):
    """The learning rate is so high that a later epoch is worse than an earlier one."""
    told = []

    class Telling(Nobody):
        def epoch(self, number, epoch, facts):
            told.append(facts["early_stop.loss"])

    tuned = phase("1.2", epochs=12, head_lr=0.3, dropout=0.2, ema=0.5, stop=Stop(patience=3))
    fitted = fit(plan(bench, tuned, head=head), bench, Telling())
    best = int(fitted.metrics["phase1.best_epoch"])
    assert told[best - 1] == min(told) and best < len(told)
    loss = F.cross_entropy(fitted.model.logits("early_stop"), bench.labels("early_stop")).item()
    assert loss == pytest.approx(min(told), rel=1e-4)
    assert_same(fitted, fit(plan(bench, tuned, head=head), bench), by_name(head))
    info = bench.catalogue.info("tiny:net")
    parameters = sum(each.numel() for each in fitted.model.head.parameters())
    assert fitted.metrics["parameters"] == info.parameters("2.1") + parameters
    assert fitted.metrics["flops"] == info.flops("2.1") + head_kinds.flops(head, info, "2.1", 3)


@pytest.mark.parametrize("head", PLANNED, ids=by_name)
def test_a_head_is_kept_from_phase_to_phase(bench, head):
    """Three phases, each with more stages; the first epoch of a phase, 0, is the model of the previous one."""
    told = {}

    class Telling(Nobody):
        def epoch(self, number, epoch, facts):
            told[number, epoch] = facts["early_stop.loss"], facts["early_stop.accuracy"]

    phases = [phase(frozen, epochs=2) for frozen in ("2.1", "1.2", None)]
    fitted = fit(plan(bench, *phases, head=head), bench, Telling())
    for number in (2, 3):
        assert told[number, 0] == pytest.approx(told[number - 1, 2], rel=1e-4)
    assert fitted.metrics["phase3.best_epoch"] == 2
    # A phase with learning rates of zero changes nothing, although it scales the features again.
    still = phase("1.2", epochs=1, head_lr=0.0, stage_lr={"2.1": 0.0}, weight_decay=0.0)
    one, two = fit(plan(bench, phases[0], head=head), bench), fit(plan(bench, phases[0], still, head=head), bench)
    torch.testing.assert_close(two.model.logits("val"), one.model.logits("val"), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("head", PLANNED, ids=by_name)
def test_a_plan_with_each_head_is_refit_on_all_images(bench, head):
    phases = [phase("2.1", stop=Stop(patience=2)), phase("1.2", epochs=16, head_lr=0.03)]
    fitted = fit(plan(bench, *phases, head=head), bench)
    again = on_all_images(fitted.plan, fitted.metrics, bench)
    assert again.head == head and again.train_on == ("train", "early_stop", "val")
    refit = fit(again, bench)
    labels = bench.labels("train", "early_stop", "val")
    assert (refit.model.logits("train", "early_stop", "val").argmax(1) == labels).float().mean() > 0.5


@pytest.mark.gpu
@pytest.mark.parametrize("head", PLANNED, ids=by_name)
def test_a_gpu_gives_the_same_bits_twice_and_about_those_of_the_cpu(host, stripes, tmp_path, cuda, head):
    """From the same start: it is drawn on the CPU."""
    on_gpu, on_cpu = (make_bench(host, stripes, tmp_path / device, device) for device in (cuda, "cpu"))
    tuned = phase("1.2", epochs=1, batch_size=1000, optimizer=Component(name="sgd"), head_lr=0.01)
    one, two, other = (fit(plan(bench, tuned, head=head), bench) for bench in (on_gpu, on_gpu, on_cpu))
    assert_same(one, two, by_name(head))
    np.testing.assert_allclose(one.logits("val"), other.logits("val"), atol=1e-3, rtol=1e-3)


def test_more_than_a_line_is_learnt_by_a_hidden_layer(bench):
    """Classes that no linear classifier separates: the sign of a product (exclusive or)."""
    torch.manual_seed(0)
    seen = torch.randn(400, 2)
    labels = (seen[:, 0] * seen[:, 1] > 0).long()
    accuracy = {}
    for head in KINDS[:2]:
        trained = TrainedHead(head_kinds.start(head, stage(), EVENLY, 2, None), EVENLY, 0.0)
        optimizer = torch.optim.AdamW(trained.parameters(), lr=0.03)
        for _ in range(200):
            optimizer.zero_grad()
            F.cross_entropy(trained(seen), labels).backward()
            optimizer.step()
        accuracy[head.kind] = (trained(seen).argmax(1) == labels).float().mean().item()
    assert accuracy["linear"] < 0.7 and accuracy["mlp"] > 0.95


@pytest.mark.parametrize("head", KINDS[1:], ids=by_name)
def test_a_method_that_fits_the_head_needs_a_linear_one(bench, head):
    probe = Phase(method="logistic", frozen="2.1", options={"penalty": [0.1]})
    says = f"logistic fits a linear head, but the head of this plan is '{head.kind}'"
    for phases in ([probe], [probe, phase("1.2")]):
        with pytest.raises(PlanError, match=says):
            check(plan(bench, *phases, head=head), bench)


@pytest.mark.parametrize("pooling", ["gem", "flatten"])
def test_a_method_that_fits_the_head_needs_stored_features(bench, pooling):
    probe = Phase(method="logistic", frozen="2.1", options={"penalty": [0.1]})
    with pytest.raises(PlanError, match=f"not pooled by '{pooling}': train the head .* or use avg, max, token"):
        check(plan(bench, probe, phase("1.2"), head=Head(pooling=pooling)), bench)


def test_a_linear_head_is_written_as_before():
    assert Head(pooling="avg").model_dump_json() == '{"pooling":"avg","taps":[]}'
    wide = Head(pooling="gem", kind="mlp", width=64)
    assert Head.from_json(wide.to_json()) == wide
    for text, says in (
        ('{"pooling": "avg", "kind": "mlp"}', "a head of kind 'mlp' needs a width"),
        ('{"pooling": "avg", "kind": "cosine", "width": 64}', "a head of kind 'cosine' has no width"),
        ('{"pooling": "avg", "kind": "conv", "width": 2}', "greater than or equal to 8"),
        ('{"pooling": "avg", "kind": "deep"}', "Input should be 'linear', 'mlp', 'conv' or 'cosine'"),
    ):
        with pytest.raises(PlanError, match=says):
            Head.from_json(text)
