import math
import weakref

import pytest
import torch
from tiny import TIMES, after, make_bench, plan

from autotl import hookimpl
from autotl.backbones.stages import Stages
from autotl.engine import activations
from autotl.engine.activations import Source
from autotl.engine.fit import fit
from autotl.engine.model import Model
from autotl.engine.observe import Nobody
from autotl.engine.tools import Transform
from autotl.errors import PluginError
from autotl.plan import NO_AUGMENTATION, Component, Phase, Training

PLAIN = {"optimizer": Component(name="sgd", params={"momentum": 0.0}), "batch_size": 7}
PROBE = Phase(method="logistic", frozen="2.1", options={"penalty": [0.1]})
CHUNK = 16


class Given:
    """An augmentation that applies a function of the test."""

    def __init__(self, transform):
        self.transform = transform

    def suggest(self, trial, context):
        return {}

    def build(self, params):
        return self.transform


@pytest.fixture
def augment(host):
    """Offers a transform as an augmentation; returns how a plan names it."""

    def offer(transform):
        class Plugin:
            @hookimpl
            def register_augmentations(self, register):
                register("given", lambda: Given(transform), summary="What the test says")

        host.add(Plugin(), "given-plugin")
        assert not host.problems
        return Component(name="given")

    return offer


@pytest.fixture
def bench(host, stripes, tmp_path, monkeypatch):
    """The striped images with stores, and `tiny:net`, whose frozen stages get few images per batch."""
    monkeypatch.setattr(activations, "batch_size", lambda input, device: CHUNK)
    return make_bench(host, stripes, tmp_path / "cache")


def phase(frozen, *, rate=0.001, head_lr=0.02, epochs=2, **options):
    values = {**PLAIN, "stage_lr": dict.fromkeys(after(frozen), rate), "head_lr": head_lr, "epochs": epochs, **options}
    return Phase(method="gradient-descent", frozen=frozen, training=Training(**values))


class Facts(Nobody):
    """Keeps the metrics of each epoch, without the time."""

    def __init__(self):
        self.reported = []

    def epoch(self, phase, epoch, facts):
        self.reported.append({name: value for name, value in facts.items() if name != "seconds"})


def everything(fitted):
    """All tensors of what was trained."""
    return [*fitted.model.stages.state_dict().values(), fitted.model.head.weight, fitted.model.head.bias]


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(everything(one), everything(other), strict=True))


@pytest.fixture
def calls(monkeypatch):
    """How many images went through the stages from the first one up to a frozen boundary, call by call."""
    seen = []
    really = Stages.forward

    def forward(self, images, to=None, *, start=None):
        if to is not None and start is None:
            seen.append(len(images))
        return really(self, images, to, start=start)

    monkeypatch.setattr(Stages, "forward", forward)
    return seen


FLIP = Component(name="flip")
ZOOM = Component(name="flip-rotate-zoom", params={"degrees": 20.0, "zoom": 0.2})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("memory_format", ["channels_last", "contiguous"])
@pytest.mark.parametrize(("augmentation", "views"), [(NO_AUGMENTATION, 0), (FLIP, 3), (ZOOM, 3)])
@pytest.mark.parametrize(("frozen", "batch"), [("0.2", 7), ("1.2", 20)])
def test_stored_and_computed_again_give_the_same_bits(
    bench, calls, frozen, batch, augmentation, views, memory_format, dtype
):
    tuned = phase(frozen, epochs=4, views=views, batch_size=batch)
    precision = {"compute_dtype": dtype, "boundary_dtype": dtype, "memory_format": memory_format}
    made = plan(bench, tuned, augmentation=augmentation, **precision)
    stored = fit(made, bench)
    once = len(calls)
    calls.clear()
    bench.memory.most = 0
    computed = fit(made, bench)
    assert len(calls) > once  # it was computed again
    assert {*calls} == {CHUNK}  # only full batches of one size
    assert equal(stored, computed)
    assert {**stored.metrics, **TIMES} == {**computed.metrics, **TIMES}


def test_frozen_stages_see_each_image_once(bench, calls):
    def passes(split):
        return math.ceil(len(bench.shas(split)) / CHUNK)

    fit(plan(bench, phase("0.2", epochs=5)), bench)
    assert len(calls) == passes("train") + passes("early_stop")
    fit(plan(bench, phase("0.2", epochs=3, rate=0.0005, batch_size=12), seed=5), bench)  # another trial
    assert len(calls) == passes("train") + passes("early_stop")

    calls.clear()
    fit(plan(bench, phase("0.2", epochs=7, views=3), augmentation=FLIP), bench)
    assert len(calls) == 3 * passes("train")  # early_stop is stored already


def test_a_prefix_that_an_earlier_phase_trained_is_not_that_of_the_untrained(bench):
    first, second = phase(None, rate=0.01), phase("1.2")
    made = plan(bench, first, second)
    bench.memory.most = 0
    computed = fit(made, bench)
    bench.memory.most = 10**9
    fit(plan(bench, second), bench)  # fills the store with the untrained prefix
    assert bench.memory.held
    assert equal(fit(made, bench), computed)
    other = fit(plan(bench, phase(None, rate=0.02), second), bench)  # trained with other settings
    assert not equal(other, computed)
    assert equal(fit(made, bench), computed)


@pytest.mark.parametrize(
    "changes",
    [
        {"memory_format": "contiguous"},
        {"boundary_dtype": "bfloat16"},
        {"compute_dtype": "bfloat16"},
        {"backbone": "tiny:net", "weights": "none"},
        {"weights": "random:1"},
        {"augmentation": FLIP},
        {"augmentation": ZOOM},
        {"augmentation": ZOOM.model_copy(update={"params": {"degrees": 5.0, "zoom": 0.2}})},
        {"augmentation": ZOOM, "seed": 3},
        {"train_on": ("train", "val")},
    ],
)
def test_everything_that_changes_a_value_is_part_of_its_key(bench, changes):
    tuned = phase("1.2", epochs=1, views=1)
    fit(plan(bench, tuned), bench)
    fit(plan(bench, tuned, augmentation=ZOOM), bench)
    after = fit(plan(bench, tuned, **changes), bench)
    bench.memory.clear()
    assert equal(after, fit(plan(bench, tuned, **changes), bench))


# Augmentation


@pytest.mark.parametrize(("frozen", "views"), [(None, 0), ("0.2", 2), ("0.2", 0)])
def test_only_training_images_are_augmented(bench, augment, frozen, views):
    seen = []

    def negative(images, draw):
        seen.append(len(images))
        return 255 - images

    def facts(augmentation):
        observer = Facts()
        still = phase(frozen, rate=0.0, head_lr=0.0, epochs=2, views=views)
        fitted = fit(plan(bench, PROBE, still, augmentation=augmentation), bench, observer)
        return observer.reported, fitted

    changed, changed_fit = facts(augment(negative))
    assert seen
    plain, plain_fit = facts(NO_AUGMENTATION)
    for one, other in zip(changed, plain, strict=True):
        for name in ("early_stop.loss", "early_stop.accuracy"):
            assert one[name] == pytest.approx(other[name], rel=1e-4)
    assert changed[1]["train.loss"] != pytest.approx(plain[1]["train.loss"], rel=1e-3)
    assert torch.equal(changed_fit.model.features("val"), plain_fit.model.features("val"))
    assert torch.equal(changed_fit.model.features("test"), plain_fit.model.features("test"))


@pytest.mark.parametrize(("views", "distinct"), [(3, 3), (0, 7)])
@pytest.mark.parametrize("frozen", [None, "0.2"])
def test_views_are_used_in_turn_and_are_the_same_each_time(bench, augment, frozen, views, distinct):
    drawn = {}  # by image: what it drew, epoch by epoch

    def watch(images, draw):
        for image, value in zip(images, draw(1)[:, 0].tolist(), strict=True):
            drawn.setdefault(image.numpy().tobytes(), []).append(value)
        return images

    bench.memory.most = 0
    model = Model(plan(bench, phase(frozen, views=views), augmentation=augment(watch)), bench, Nobody())
    bench.decode(model.plan.input)
    transform = Transform(bench.catalogue.host.augmentations["given"], Component(name="given"))
    source = Source(model, frozen, ("train",), transform=transform, views=views)
    for epoch in range(1, 8):
        rows = torch.randperm(len(source), generator=torch.Generator().manual_seed(epoch))
        for _ in source.batches(rows, 5, epoch):
            pass
    assert len(drawn) == len(bench.shas("train"))
    for values in drawn.values():
        assert len(values) == 7
        assert len(set(values)) == distinct
        if views:
            assert values[:3] == values[3:6] and values[6] == values[0]
    assert len({values[0] for values in drawn.values()}) == len(drawn)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda images, draw: images[..., :16],
        lambda images, draw: images[:-1],
        lambda images, draw: images.float(),
        lambda images, draw: images.to("meta"),
        lambda images, draw: None,
    ],
)
@pytest.mark.parametrize("frozen", [None, "0.2"])
def test_an_augmentation_that_changes_shape_type_or_device_is_named(bench, augment, frozen, wrong):
    says = "Augmentation 'given' of plugin 'given-plugin' .* returned .* it must keep shape, type and device"
    with pytest.raises(PluginError, match=says):
        fit(plan(bench, phase(frozen), augmentation=augment(wrong)), bench)


# What a source returns


def test_values_and_labels_are_in_the_requested_order(bench):
    model = Model(plan(bench, phase("0.2")), bench, Nobody())
    bench.decode(model.plan.input)
    rows = torch.tensor([5, 3, 40, 0, 7, 22, 11])
    labels = bench.labels("train")
    for budget in (10**9, 0):
        bench.memory.most = budget
        source = Source(model, "0.2", ("train",))
        assert source.kept == bool(budget)
        batches = list(source.batches(rows, 3))
        assert [len(values) for values, _ in batches] == [3, 2, 2]
        assert torch.equal(torch.cat([label for _, label in batches]), labels[rows])
        alone = [next(iter(source.batches(rows[at : at + 1], 1)))[0] for at in range(len(rows))]
        assert torch.equal(torch.cat([values for values, _ in batches]), torch.cat(alone))


# When the memory is needed for something else


def test_values_that_are_given_up_in_the_middle_of_an_epoch_are_computed_from_then_on(bench, calls):
    model = Model(plan(bench, phase("0.2")), bench, Nobody())
    bench.decode(model.plan.input)
    rows = torch.arange(48).flip(0)
    whole = torch.cat([values for values, _ in Source(model, "0.2", ("train",)).batches(rows, 8)])
    source, found = Source(model, "0.2", ("train",)), []
    calls.clear()
    for number, (values, labels) in enumerate(source.batches(rows, 8)):
        found.append((values, labels))
        if number == 2:
            assert not calls  # they are there from before
            bench.memory.clear()
    assert not source.kept and not bench.memory.held
    assert torch.equal(torch.cat([values for values, _ in found]), whole)
    assert torch.equal(torch.cat([labels for _, labels in found]), bench.labels("train")[rows])
    assert calls


def test_nothing_refers_to_what_is_given_up(bench):
    """A batch that training uses is a copy: the rest of the memory is free again while the batch is trained on."""
    model = Model(plan(bench, phase("0.2")), bench, Nobody())
    bench.decode(model.plan.input)
    batches = Source(model, "0.2", ("train",)).batches(torch.arange(48), 8)
    next(batches)
    (kept,) = map(weakref.ref, bench.memory._kept.values())
    bench.memory.clear()
    assert kept() is None
    assert len(list(batches)) == 7


def test_a_training_gives_the_same_numbers_when_its_memory_is_taken_away(bench):
    class Taker(Facts):
        def epoch(self, phase, epoch, facts):
            super().epoch(phase, epoch, facts)
            assert bench.memory.held == 0 if epoch > 1 else bench.memory.held > 0
            bench.memory.clear()

    made, usual, taken = plan(bench, phase("0.2", epochs=3)), Facts(), Taker()
    stored = fit(made, bench, usual)
    bench.memory.clear()
    assert equal(fit(made, bench, taken), stored)
    assert taken.reported == usual.reported


def test_values_that_do_not_fit_when_they_are_made_are_computed_for_each_batch(bench, monkeypatch):
    """Another process may have taken the memory since the phase has started."""
    model = Model(plan(bench, phase("0.2")), bench, Nobody())
    bench.decode(model.plan.input)
    rows = torch.arange(48)
    whole = torch.cat([values for values, _ in Source(model, "0.2", ("train",)).batches(rows, 8)])
    bench.memory.clear()
    really, asked = torch.empty, []

    def empty(shape, **how):
        if shape[0] == len(bench.shas("train")):
            asked.append(shape)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return really(shape, **how)

    source = Source(model, "0.2", ("train",))
    assert source.kept
    monkeypatch.setattr(torch, "empty", empty)
    assert torch.equal(torch.cat([values for values, _ in source.batches(rows, 8)]), whole)
    assert len(asked) == 1 and not source.kept


def test_a_step_without_memory_gets_that_of_the_store_before_its_batch_is_split(bench, monkeypatch):
    made, really, failed = plan(bench, phase("0.2", epochs=3)), Stages.forward, []
    usual = fit(made, bench)

    def forward(self, images, to=None, *, start=None):
        if torch.is_grad_enabled() and bench.memory.held:
            failed.append(bench.memory.held)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return really(self, images, to, start=start)

    monkeypatch.setattr(Stages, "forward", forward)
    fitted = fit(made, bench)
    assert failed == sorted(failed, reverse=True) and failed
    assert "phase1.micro_batch" not in fitted.metrics
    assert equal(fitted, usual)
