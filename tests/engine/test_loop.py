import math
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from tiny import NAMES, TIMES, Between, after, make_bench, plan, taught
from torch import nn
from torch.nn import functional as F

from autotl import Adapted, Mixed, hookimpl
from autotl.backbones.catalogue import Catalogue
from autotl.backbones.splitting import split
from autotl.backbones.stages import Stages
from autotl.builtin import logistic
from autotl.engine import loop, teacher, trainee
from autotl.engine.activations import Source
from autotl.engine.bench import Bench
from autotl.engine.best import Best
from autotl.engine.fit import fit, on_all_images
from autotl.engine.model import Model
from autotl.engine.objective import Objective
from autotl.engine.observe import Enough, Nobody
from autotl.engine.optim import Descent
from autotl.engine.seeds import generator
from autotl.engine.teacher import probabilities
from autotl.engine.tools import Transform
from autotl.engine.trainee import Trainee
from autotl.errors import PlanError, PluginError, TrainingError
from autotl.export import bundle
from autotl.plan import Component, Phase, Stop, Training
from autotl.testing.lab import TinyFamily

ADAMW = Component(name="adamw")
ONE_STEP = {"batch_size": 1000}
SLOW = dict.fromkeys(NAMES, 0.0005)
PROBE = Phase(method="logistic", frozen="2.1", options={"penalty": [0.1]})


@pytest.fixture
def bench(host, stripes, tmp_path):
    """The striped images with stores, and the backbone `tiny:net`."""
    return make_bench(host, stripes, tmp_path / "cache")


def sgd(momentum=0.0):
    return Component(name="sgd", params={"momentum": momentum})


def phase(frozen=None, **changes):
    """Two epochs at moderate learning rates; `lrs` replaces those of some stages."""
    lrs = dict.fromkeys(after(frozen), 0.002) | changes.pop("lrs", {})
    values = {
        "stage_lr": lrs,
        "head_lr": 0.02,
        "epochs": 2,
        "batch_size": 16,
        "optimizer": sgd(),
        "schedule": "constant",
        **changes,
    }
    return Phase(method="gradient-descent", frozen=frozen, training=Training(**values))


def start(bench):
    """The initial weights of all plans."""
    return bench.catalogue.build(bench.catalogue.network("tiny:net@random", seed=0)).state_dict()


def weights(fitted):
    return {key: value.clone() for key, value in fitted.model.stages.state_dict().items()}


def of(stage):
    """Whether a name in the state belongs to a stage."""
    return lambda key: key.startswith(stage.partition(".")[0] + ".")


def same(one, other, stage=""):
    keys = [key for key in one if not stage or of(stage)(key)]
    assert keys
    return all(torch.equal(one[key], other[key]) for key in keys)


class Recorder(Nobody):
    def __init__(self):
        self.steps, self.epochs, self.notes = 0, [], []

    def step(self):
        self.steps += 1

    def epoch(self, phase, epoch, facts):
        self.epochs.append((phase, epoch, dict(facts)))

    def note(self, text):
        self.notes.append(text)


class OneValue:
    """A network whose last batch-norm has one position per image."""

    def names(self):
        return ["net"]

    def card(self, name):
        return TinyFamily().card("net")

    def build(self, name, weights):
        small = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(12, 16, 1), nn.BatchNorm2d(16))
        return nn.Sequential(*list(TinyFamily().build("net", None))[:2], small, nn.Flatten(), nn.Linear(16, 2))


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_batch_with_one_value_for_batch_norm_is_an_error_before_the_first_step(host, bench, batch_size, monkeypatch):
    """Also for the last batch of an epoch: an odd number of images in batches of two."""

    class Plugin:
        @hookimpl
        def register_backbones(self, register):
            register("one", OneValue, summary="For a test")

    host.add(Plugin(), "one")
    names, splits = bench.catalogue.info("one:net").names, ("train", "early_stop")
    assert len(bench.shas(*splits)) % 2

    def one(batch_norm, batch_size):
        rates = dict.fromkeys(names, 1e-5)
        each = phase(stage_lr=rates, head_lr=1e-5, epochs=1, batch_norm=batch_norm, batch_size=batch_size)
        return plan(bench, each, backbone="one:net@random", cut=names[-1], train_on=splits)

    fit(one("eval", batch_size), bench)
    fit(one("train", batch_size + 2), bench)
    monkeypatch.setattr(trainee, "SCALING_IMAGES", 10)  # fewer than there are: without the last batch
    monkeypatch.setattr(Descent, "update", None)
    with pytest.raises(PlanError, match=f"batch_size of {batch_size} a batch here is one image.*set a larger"):
        fit(one("train", batch_size), bench)


# What is trained, and at which learning rate


@pytest.mark.parametrize("batch_norm", ["eval", "train"])
@pytest.mark.parametrize("frozen", [None, "0.2", "1.2", "2.1"])
def test_frozen_stages_stay_bit_equal_and_the_others_change(bench, frozen, batch_norm):
    before = start(bench)
    after = weights(fit(plan(bench, PROBE, phase(frozen, batch_norm=batch_norm)), bench))
    first = NAMES.index(frozen) + 1 if frozen else 0
    for stage in NAMES[:first]:
        assert same(before, after, stage)
    for stage in NAMES[first:]:
        changed = {key for key in filter(of(stage), before) if not torch.equal(before[key], after[key])}
        # The bias of a convolution before a batch-norm with batch statistics has no effect and no gradient.
        assert any(key.endswith("weight") for key in changed)
        if stage != "2.1":
            statistics = {key for key in changed if "running" in key}
            assert len(statistics) == (2 if batch_norm == "train" else 0)


@pytest.mark.parametrize("part", [*NAMES, "head"])
def test_each_part_moves_in_proportion_to_its_learning_rate_and_moves_no_other(bench, part):
    def after_one_step(factor):
        lrs = {part: factor * 0.02} if part in NAMES else {}
        head_lr = factor * 0.02 if part == "head" else 0.05
        tuned = phase(lrs=lrs, head_lr=head_lr, epochs=1, **ONE_STEP)
        fitted = fit(plan(bench, PROBE, tuned), bench)
        return weights(fitted), fitted.model.head

    (still, still_head), (once, head), (twice, head_2) = map(after_one_step, (0, 1, 2))
    before = start(bench)
    for stage in NAMES:
        if stage == part:
            assert same(before, still, stage)
            for key in filter(of(stage), before):
                moved = once[key].double() - before[key]
                torch.testing.assert_close(twice[key].double() - before[key], 2 * moved, rtol=1e-3, atol=3e-7)
            assert not same(before, once, stage)
        else:
            assert same(still, once, stage) and same(once, twice, stage)
    if part == "head":
        probed = fit(plan(bench, PROBE), bench).model.head
        torch.testing.assert_close(still_head.weight, probed.weight, rtol=1e-4, atol=1e-5)
        moved = head.weight.double() - still_head.weight
        assert moved.abs().max() > 1e-3
        torch.testing.assert_close(head_2.weight.double() - still_head.weight, 2 * moved, rtol=1e-3, atol=1e-5)
    else:
        assert torch.equal(head.weight, head_2.weight) and torch.equal(head.bias, head_2.bias)


def test_the_head_alone_can_be_trained_and_learns(bench):
    observer = Recorder()
    tuned = phase("2.1", head_lr=0.5, epochs=30)
    fitted = fit(plan(bench, tuned), bench, observer)
    assert not fitted.model.trained  # its features come from the store
    losses = [facts["train.loss"] for _, _, facts in observer.epochs]
    accuracies = [facts["train.accuracy"] for _, _, facts in observer.epochs]
    assert accuracies[0] < accuracies[-1] <= 1
    assert losses[0] < math.log(3) + 0.1  # a head of zeros guesses
    assert losses[-1] < 0.8 * losses[0]


def test_training_the_stages_is_better_than_the_head_alone(bench):
    options = {"optimizer": sgd(0.9), "schedule": "cosine"}
    tuned = phase(epochs=15, **options)
    fitted = fit(plan(bench, tuned), bench)
    assert fitted.metrics["val.accuracy"] > 0.8


def test_weights_decay_and_norms_and_biases_do_not(bench):
    decay, rate = 0.5, 0.05
    before = start(bench)

    def after_one_step(weight_decay):
        tuned = phase(lrs=dict.fromkeys(NAMES, rate), epochs=1, **ONE_STEP, weight_decay=weight_decay)
        return weights(fit(plan(bench, PROBE, tuned), bench))

    without, decayed = after_one_step(0.0), after_one_step(decay)
    for key, value in before.items():
        if value.dim() > 1:
            torch.testing.assert_close(decayed[key] - without[key], -rate * decay * value, rtol=1e-3, atol=1e-6)
        else:
            assert torch.equal(decayed[key], without[key]), key


def test_what_a_network_exempts_from_weight_decay_does_not_decay():
    """In timm's transformers: learned position embeddings and tokens."""
    stages = split(timm.create_model("test_vit3"), 160)
    for part in (stages, stages.cut(stages.names[0])):
        training = phase(stage_lr=dict.fromkeys(part.names, 0.1), weight_decay=0.3).training
        groups = []
        Descent(
            training,
            dict(torch.nn.Linear(4, 3).named_parameters()),
            {name: part.stage_parameters(name) for name in part.names},
            pretrained=(),
            exempt=part.no_weight_decay(),
            build=groups.extend,
            advance=None,
            steps=1,
        )
        decays = {id(each): group["weight_decay"] for group in groups for each in group["params"]}
        named = dict(part.named_parameters())
        exempt = {name for name, each in named.items() if each.ndim > 1 and not decays[id(each)]}
        assert exempt == {"pos_embed", "reg_token"}
        assert all(decays[id(each)] == 0.3 for name, each in named.items() if each.ndim > 1 and name not in exempt)


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_learning_rates_follow_the_schedule(bench, monkeypatch, optimizer, schedule):
    made = []
    base = []
    seen = []

    class Spied(type(bench.catalogue.host.optimizers[optimizer].item)):
        def build(self, groups, params):
            made.append(super().build(groups, params))
            base.append([group["lr"] for group in groups])
            return made[-1]

    monkeypatch.setitem(vars(bench.catalogue.host.optimizers[optimizer]), "item", Spied())

    class Watching(Nobody):
        def step(self):
            if made:
                seen.append(dict(zip(base[-1], (group["lr"] for group in made[-1].param_groups), strict=True)))

        def epoch(self, phase, epoch, facts):
            assert facts["learning_rate"] == seen[-1][0.004]

    options = {"optimizer": Component(name=optimizer), "schedule": schedule, "warmup_ratio": 0.25}
    lrs = {"0.2": 0.001, "1.2": 0.002, "2.1": 0.003}
    tuned = phase(lrs=lrs, head_lr=0.004, epochs=10, **options)
    fit(plan(bench, tuned), bench, Watching())
    for rate in (*lrs.values(), 0.004):
        shares = [step[rate] / rate for step in seen]
        top = len(shares) // 4
        assert shares[0] < 1.5 / top
        assert all(earlier < later for earlier, later in pairwise(shares[:top]))
        assert max(shares) == pytest.approx(1, abs=0.02)
        if schedule == "constant":
            assert set(shares[top:]) == {1.0}
        else:
            assert all(earlier > later for earlier, later in pairwise(shares[top:]))
            assert 0 < shares[-1] < 0.01
            assert shares[top + 3 * len(shares) // 8] == pytest.approx(0.5, abs=0.05)


def test_clipping_bounds_the_step(bench):
    before = start(bench)

    def moved(clip):
        tuned = phase(lrs=dict.fromkeys(NAMES, 1.0), head_lr=0.0, epochs=1, **ONE_STEP, clip_grad=clip)
        after = weights(fit(plan(bench, PROBE, tuned), bench))
        return math.sqrt(sum((after[key] - before[key]).double().square().sum().item() for key in before))

    assert moved(None) > 0.01
    assert moved(1e-3) <= 1.001e-3
    assert moved(1e6) == moved(None)


# What a plan must say


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"stage_lr": {"1.2": 0.1}}, "lacks a learning rate for the stage '2.1'"),
        ({"stage_lr": {"0.2": 0.1, "1.2": 0.1, "2.1": 0.1}}, "a learning rate for '0.2', but by 'frozen' and 'cut'"),
        ({"stage_lr": {"1.2": 0.1, "2.1": 0.1, "9": 0.1}}, "has a learning rate for '9'"),
        ({"optimizer": Component(name="sgdd")}, "Unknown optimizer 'sgdd'. Did you mean 'sgd'"),
        ({"optimizer": Component(name="sgd", params={"momentun": 0.9})}, "sgd has one parameter, momentum"),
        ({"optimizer": Component(name="adamw", params={"beta": 0.9})}, "adamw has no parameters besides"),
        ({"objective": Component(name="focal", params={"gamma": -1})}, "focal has one parameter, gamma, of 0 or more"),
        ({"objective": Component(name="fokal")}, "Unknown objective 'fokal'. Did you mean 'focal'"),
        ({"adapter": Component(name="lora", params={"rank": 0})}, "lora has the parameters rank, of 1 or more"),
        ({"adapter": Component(name="lore")}, "Unknown adapter 'lore'. Did you mean 'lora'"),
    ],
)
def test_a_phase_with_missing_or_superfluous_fields_is_refused(bench, wrong, says):
    with pytest.raises(PlanError, match=says) as error:
        fit(plan(bench, phase("0.2", **wrong)), bench)
    assert "\n" not in str(error.value)


def test_patience_needs_an_early_stop_split(bench):
    patient = phase(stop=Stop(patience=2))
    with pytest.raises(PlanError, match="stops by the loss on 'early_stop'"):
        fit(plan(bench, patient, train_on=("train", "early_stop")), bench)


# When it ends, and with which weights


def test_the_best_epoch_is_restored_and_the_training_ends_when_patience_does(bench):
    observer = Recorder()
    tuned = phase(epochs=60, lrs=SLOW, stop=Stop(patience=3), optimizer=sgd(0.9))
    fitted = fit(plan(bench, tuned), bench, observer)
    losses = [facts["early_stop.loss"] for _, _, facts in observer.epochs]
    best = int(np.argmin(losses))
    assert [epoch for _, epoch, _ in observer.epochs] == list(range(1, best + 1 + 3 + 1))
    assert best > 0 and len(losses) < 60
    assert fitted.metrics["phase1.best_epoch"] == best + 1
    for name, value in observer.epochs[best][2].items():
        if "." in name:
            assert fitted.metrics[f"phase1.{name}"] == value
    labels = bench.labels("early_stop")
    judged = F.cross_entropy(fitted.model.logits("early_stop"), labels).item()
    assert judged == pytest.approx(losses[best], rel=1e-4)
    assert judged != pytest.approx(losses[-1], rel=1e-3)


def test_without_patience_the_last_epoch_stays(bench):
    observer = Recorder()
    tuned = phase(epochs=12, lrs=SLOW, optimizer=sgd(0.9))
    fitted = fit(plan(bench, tuned), bench, observer)
    assert fitted.metrics["phase1.best_epoch"] == 12
    judged = F.cross_entropy(fitted.model.logits("early_stop"), bench.labels("early_stop")).item()
    assert judged == pytest.approx(observer.epochs[-1][2]["early_stop.loss"], rel=1e-4)


def test_weights_are_copied_only_if_an_earlier_epoch_may_be_restored(bench, monkeypatch):
    really, copied = Best._copy, []

    def copy(best):
        really(best)
        if best._state:
            copied.append({name: value.data_ptr() for name, value in best._state.items()})

    monkeypatch.setattr(Best, "_copy", copy)

    def copies(observer=None, **options):
        copied.clear()
        fit(plan(bench, PROBE, phase(epochs=3, **options)), bench, observer)
        assert all(places == copied[0] for places in copied)  # no new memory each time
        return len(copied)

    class Limited(Nobody):
        may_have_enough = True

    assert copies() == 0
    assert copies(Limited()) == 5  # with the initial weights, before and after their evaluation
    assert copies(lrs=SLOW, stop=Stop(patience=3)) >= 2


@pytest.mark.parametrize("batch_norm", ["eval", "train"])
def test_a_phase_that_only_makes_the_model_worse_is_undone(bench, batch_norm):
    observer = Recorder()
    ruin = phase(
        epochs=6,
        lrs=dict.fromkeys(NAMES, 3.0),
        head_lr=3.0,
        stop=Stop(patience=2),
        clip_grad=5.0,
        batch_norm=batch_norm,
    )
    fitted = fit(plan(bench, PROBE, ruin), bench, observer)
    assert [epoch for _, epoch, _ in observer.epochs] == [0, 1, 2]
    assert fitted.metrics["phase2.best_epoch"] == 0
    assert same(weights(fitted), start(bench))
    probed = fit(plan(bench, PROBE), bench)
    torch.testing.assert_close(fitted.model.head.weight, probed.model.head.weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fitted.model.head.bias, probed.model.head.bias, rtol=1e-4, atol=1e-4)
    assert fitted.metrics["val.loss"] == pytest.approx(probed.metrics["val.loss"], rel=1e-4)
    assert fitted.metrics["phase2.early_stop.loss"] == pytest.approx(
        F.cross_entropy(probed.model.logits("early_stop"), bench.labels("early_stop")).item(), rel=1e-4
    )


@pytest.mark.parametrize("after", [0, 1, 3])
def test_ending_after_an_epoch_gives_what_the_whole_schedule_had_there(bench, monkeypatch, after):
    trainings = []

    class Spied(Trainee):
        def __init__(self, *args):
            super().__init__(*args)
            trainings.append(self)

    class Keeping(Nobody):
        def epoch(self, phase, epoch, facts):
            if epoch == after:
                state, head = trainings[-1].stages.state_dict(), trainings[-1].head.folded()
                self.kept = {key: value.clone() for key, value in state.items()}, head.weight.clone(), head.bias.clone()

    monkeypatch.setattr(loop, "Trainee", Spied)
    options = {"optimizer": ADAMW, "schedule": "cosine", "warmup_ratio": 0.2, "dropout": 0.3}
    tuned = phase(epochs=5, **options, batch_norm="train", lrs=dict.fromkeys(NAMES, 0.005))
    observer = Keeping()
    fit(plan(bench, PROBE, tuned), bench, observer)
    state, weight, bias = observer.kept
    ended = fit(plan(bench, PROBE, tuned.trained_by(stop=Stop(at_epoch=after))), bench)
    assert ended.metrics["phase2.best_epoch"] == after
    assert same(weights(ended), state)
    assert torch.equal(ended.model.head.weight, weight)
    assert torch.equal(ended.model.head.bias, bias)


class Impatient(Nobody):
    """Ends phase `number` at step `step` after the end of epoch `epoch`; with step 0 right after that epoch."""

    may_have_enough = True

    def __init__(self, number, epoch, step):
        self.at, self.left, self.reached = (number, epoch), step, False

    def epoch(self, phase, epoch, facts):
        self.reached = self.reached or (phase, epoch) == self.at
        if self.reached and self.left == 0:
            raise Enough

    def step(self):
        self.left -= self.reached
        if self.reached and self.left <= 0:
            raise Enough


TUNED = {"dropout": 0.3}
PATH = logistic.probe("2.1")


@pytest.mark.parametrize(
    ("phases", "observer", "kept"),
    [
        ((phase(epochs=6, lrs=SLOW, stop=Stop(patience=6), **TUNED),), Impatient(1, 3, 2), 1),
        ((phase(epochs=6, **TUNED),), Impatient(1, 3, 0), 1),
        ((phase("1.2", epochs=3, **TUNED), phase("0.2", batch_norm="train", **TUNED)), Impatient(2, 0, 3), 2),
        ((PATH, phase(epochs=4, stop=Stop(patience=4), **TUNED), phase("0.2")), Impatient(2, 0, 2), 2),
    ],
    ids=["within an epoch", "after an epoch, without a patience", "in a second phase", "after a head"],
)
def test_a_training_that_is_cut_off_gives_a_model_and_its_plan(bench, phases, observer, kept):
    whole = plan(bench, *phases)
    cut = fit(whole, bench, observer)
    assert cut.plan != whole
    assert len(cut.plan.phases) == kept
    assert cut.plan.phases[-1].training.epochs == whole.phases[kept - 1].training.epochs
    again = fit(cut.plan, bench)
    assert again.plan == cut.plan
    assert same(weights(again), weights(cut))
    assert torch.equal(again.model.head.weight, cut.model.head.weight)
    assert torch.equal(again.model.head.bias, cut.model.head.bias)
    assert {**again.metrics, **TIMES} == {**cut.metrics, **TIMES}
    assert fit(on_all_images(cut.plan, cut.metrics, bench), bench).plan.train_on == ("train", "early_stop", "val")


def test_a_training_that_is_cut_off_before_its_first_step_keeps_the_fitted_head(bench, monkeypatch):
    def once(*args):
        if len(cut) == 0:
            cut.append(args)
            raise Enough
        return really(*args)

    really, cut = Trainee._scaling, []
    monkeypatch.setattr(Trainee, "_scaling", once)
    fitted = fit(plan(bench, PATH, phase(epochs=4)), bench)
    assert [each.stop for each in fitted.plan.trainings] == [Stop(at_epoch=0)]
    again = fit(fitted.plan, bench)
    assert torch.equal(again.model.head.weight, fitted.model.head.weight)
    assert again.metrics["val.loss"] == fitted.metrics["val.loss"]
    cut.clear()
    with pytest.raises(Enough):
        fit(plan(bench, phase(epochs=4)), bench)


def test_the_refit_repeats_the_best_number_of_epochs_on_all_images(bench):
    patient = phase(epochs=30, lrs=SLOW, stop=Stop(patience=3), optimizer=sgd(0.9))
    fitted = fit(plan(bench, patient), bench)
    best = int(fitted.metrics["phase1.best_epoch"])
    everything = on_all_images(fitted.plan, fitted.metrics, bench)
    assert everything.train_on == ("train", "early_stop", "val")
    assert everything.phases[0].training.stop == Stop(at_epoch=best)
    assert everything.phases[0].training.epochs == 30
    observer = Recorder()
    last = fit(everything, bench, observer)
    assert [epoch for _, epoch, _ in observer.epochs] == list(range(1, best + 1))
    assert [name for name in last.metrics if "loss" in name] == ["phase1.train.loss"]
    assert not same(weights(last), weights(fitted))


ENDING = Stop(patience=2, ends_plan=True)


def test_a_phase_that_lowers_no_loss_ends_the_plan(bench):
    still = {"lrs": dict.fromkeys(after("0.2"), 0.0), "head_lr": 0.0}
    whole = plan(bench, phase("1.2", stop=ENDING), phase("0.2", stop=ENDING, **still), phase(None, stop=ENDING))
    observer = Recorder()
    fitted = fit(whole, bench, observer)
    assert fitted.metrics["phase1.best_epoch"] > 0 and fitted.metrics["phase2.best_epoch"] == 0
    assert fitted.plan.phases == whole.phases[:2]
    assert {number for number, *_ in observer.epochs} == {1, 2}
    before = fit(plan(bench, *whole.phases[:1]), bench)
    assert same(weights(fitted), weights(before))
    # By itself, the plan that was run gives the same model, and so does the longer one with its metrics.
    again = fit(fitted.plan, bench)
    assert again.plan == fitted.plan == whole.as_run(again.metrics)
    assert {**again.metrics, **TIMES} == {**fitted.metrics, **TIMES}
    everything = on_all_images(fitted.plan, fitted.metrics, bench)
    best = int(fitted.metrics["phase1.best_epoch"])
    assert [each.stop for each in everything.trainings] == [Stop(at_epoch=best), Stop(at_epoch=0)]
    last = fit(everything, bench, observer := Recorder())
    assert [(number, epoch) for number, epoch, _ in observer.epochs] == [(1, epoch) for epoch in range(1, best + 1)]
    assert last.plan == everything


def test_phases_that_lower_the_loss_do_not_end_the_plan(bench):
    whole = plan(bench, *(phase(frozen, stop=ENDING) for frozen in ("1.2", "0.2", None)))
    fitted = fit(whole, bench)
    assert fitted.plan == whole == whole.as_run(fitted.metrics)
    assert all(fitted.metrics[f"phase{number}.best_epoch"] > 0 for number in (1, 2, 3))


# Repeatability


def test_a_plan_gives_the_same_bits_twice_and_another_seed_does_not(bench, host, stripes, tmp_path):
    options = {"optimizer": ADAMW, "dropout": 0.3}
    tuned = phase("0.2", epochs=3, **options, views=2, lrs={"1.2": 0.003, "2.1": 0.003})
    flip = Component(name="flip")
    torch.manual_seed(1)
    first = fit(plan(bench, tuned, augmentation=flip), bench)
    torch.manual_seed(2)
    elsewhere = make_bench(host, stripes, tmp_path / "another")
    again = fit(plan(elsewhere, tuned, augmentation=flip), elsewhere)
    other = fit(plan(bench, tuned, augmentation=flip, seed=1), bench)
    assert same(weights(first), weights(again))
    assert torch.equal(first.model.head.weight, again.model.head.weight)
    assert {**first.metrics, **TIMES} == {**again.metrics, **TIMES}
    assert not same(weights(first), weights(other), "2.1")
    assert first.metrics["val.loss"] != other.metrics["val.loss"]


def test_a_phase_continues_from_the_result_of_the_one_before(bench):
    def still(frozen):
        trained = after(frozen)
        return phase(frozen, lrs=dict.fromkeys(trained, 0.0), head_lr=0.0)

    one = fit(plan(bench, phase("1.2")), bench)
    three = fit(plan(bench, phase("1.2"), still("0.2"), still(None)), bench)
    assert same(weights(one), weights(three))
    assert not same(weights(one), start(bench), "2.1")
    torch.testing.assert_close(three.model.head.weight, one.model.head.weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(three.model.head.bias, one.model.head.bias, rtol=1e-4, atol=1e-4)

    # Only newly unfrozen stages change.
    middle = fit(plan(bench, phase("1.2"), phase("0.2", lrs={"2.1": 0.0})), bench)
    assert same(weights(middle), weights(one), "2.1") and same(weights(middle), weights(one), "0.2")
    assert not same(weights(middle), weights(one), "1.2")
    whole = fit(plan(bench, phase("1.2"), phase("0.2"), phase(None)), bench)
    assert all(not same(weights(whole), start(bench), stage) for stage in NAMES)
    assert [whole.metrics[f"phase{number}.best_epoch"] for number in (1, 2, 3)] == [2, 2, 2]


# What can go wrong


@pytest.fixture
def memory(monkeypatch):
    """`memory(n)`: the stages fail on batches of more than n images; by default only if gradients are needed."""

    def limit(most, always=False):
        really = Stages.forward

        def forward(self, images, to=None, *, start=None):
            if (always or torch.is_grad_enabled()) and len(images) > most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return really(self, images, to, start=start)

        monkeypatch.setattr(Stages, "forward", forward)

    return limit


def test_a_batch_that_does_not_fit_is_split(bench, memory):
    tuned = phase("0.2", epochs=1, batch_size=30, clip_grad=1.0, label_smoothing=0.1)
    whole = fit(plan(bench, PROBE, tuned), bench)
    assert "phase2.micro_batch" not in whole.metrics
    memory(8)
    observer = Recorder()
    parts = fit(plan(bench, PROBE, tuned), bench, observer)
    assert parts.metrics["phase2.micro_batch"] == 8
    assert len(observer.notes) == 2  # 15, then 8
    assert "micro-batches of 8" in observer.notes[-1]
    assert parts.metrics["phase2.train.loss"] == pytest.approx(whole.metrics["phase2.train.loss"], rel=1e-5)
    for key, value in weights(whole).items():
        torch.testing.assert_close(weights(parts)[key], value, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(parts.model.head.weight, whole.model.head.weight, rtol=1e-3, atol=1e-4)


def test_batches_without_gradients_are_split_too(bench, memory):
    """Frozen stages, the scale of the features, the evaluation on `early_stop` and `val`."""
    tuned = phase("0.2", epochs=1, batch_size=30)
    whole = fit(plan(bench, PROBE, tuned), bench)
    bench.memory.clear()
    memory(4, always=True)
    parts = fit(plan(bench, PROBE, tuned), bench)
    assert parts.metrics["phase2.early_stop.loss"] == pytest.approx(whole.metrics["phase2.early_stop.loss"], rel=1e-4)
    assert parts.metrics["val.loss"] == pytest.approx(whole.metrics["val.loss"], rel=1e-4)


def test_training_does_not_seed_gpus_that_it_does_not_use(bench, monkeypatch):
    """Building a network and seeding a phase happen on the CPU; `torch.manual_seed` would seed every GPU."""
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("a GPU's generator was seeded"))
    before = torch.get_rng_state()
    fit(plan(bench, phase(epochs=1, dropout=0.5)), bench)
    assert torch.equal(torch.get_rng_state(), before)


def test_if_not_even_one_image_fits_the_training_fails(bench, memory):
    memory(0)
    with pytest.raises(TrainingError, match="not even one image fits"):
        fit(plan(bench, phase()), bench)


@pytest.mark.parametrize(("rate", "train_on"), [(1e30, ("train",)), (1e300, ("train", "early_stop", "val"))])
@pytest.mark.parametrize("epochs", [4, 1])
def test_a_loss_that_is_not_finite_is_an_error_with_its_epoch(bench, epochs, rate, train_on):
    """Even if the last step is the one that spoils the weights."""
    wild = phase(lrs=dict.fromkeys(NAMES, rate), head_lr=rate, epochs=epochs, **ONE_STEP)
    with pytest.raises(TrainingError, match="loss became (nan|inf) in epoch [12]"):
        fit(plan(bench, PROBE, wild, train_on=train_on), bench)


def test_the_observer_sees_every_batch_and_may_end_it(bench):
    steps = math.ceil(len(bench.shas("train")) / 16)
    observer = Recorder()
    fit(plan(bench, phase(epochs=3)), bench, observer)
    assert observer.steps == 3 * steps
    assert [(number, epoch) for number, epoch, _ in observer.epochs] == [(1, 1), (1, 2), (1, 3)]
    assert set(observer.epochs[0][2]) >= {
        "train.loss",
        "train.accuracy",
        "early_stop.loss",
        "early_stop.accuracy",
        "seconds",
    }

    class Enough(Exception):
        pass

    class Impatient(Recorder):
        def step(self):
            super().step()
            if self.steps == steps + 2:
                raise Enough

    impatient = Impatient()
    with pytest.raises(Enough):
        fit(plan(bench, phase(epochs=3)), bench, impatient)
    assert len(impatient.epochs) == 1


def test_decoding_for_another_size_may_be_ended_too(bench, monkeypatch):
    class Impatient(Recorder):
        def step(self):
            super().step()
            if self.steps == 5:
                raise TimeoutError

    made = plan(bench, PROBE)
    larger = made.model_copy(update={"input": made.input.at(64)})
    monkeypatch.setattr(bench.catalogue, "inputs", lambda name: [larger.input])
    with pytest.raises(TimeoutError):
        fit(larger, bench, Impatient())
    assert bench.features.pixels.rows(larger.input).missing(bench.shas("train"))


def test_features_of_a_trained_network_allow_gradients(bench):
    model = fit(plan(bench, PROBE, phase(epochs=1)), bench).model
    assert model.trained
    weight = torch.zeros(model.features("train").shape[1], requires_grad=True)
    (model.features("train") @ weight).sum().backward()
    assert weight.grad is not None


# Precision


@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
def test_bfloat16_trains_as_well_and_metrics_are_computed_in_float32(bench, host, tmp_path, memory_format):
    tuned = phase("0.2", epochs=4, lrs={"1.2": 0.0005, "2.1": 0.0005})
    exact = fit(plan(bench, PROBE, tuned), bench)
    half = {"compute_dtype": "bfloat16", "boundary_dtype": "bfloat16", "memory_format": memory_format}
    rounded = fit(plan(bench, PROBE, tuned, **half), bench)
    assert not same(weights(rounded), weights(exact), "2.1")
    assert all(value.dtype != torch.bfloat16 for value in weights(rounded).values())
    assert rounded.metrics["val.loss"] == pytest.approx(exact.metrics["val.loss"], rel=0.05)

    bundle.save(tmp_path / "bundle", rounded, bench.dataset.classes, {"validation": rounded.metrics})
    loaded = bundle.load(tmp_path / "bundle", Catalogue(host, tmp_path / "cache"))
    images = torch.from_numpy(bench.features.pixels.rows(rounded.plan.input).read(bench.shas("val")))
    probabilities = loaded.probabilities(images)
    assert np.array_equal(probabilities.argmax(1), rounded.logits("val").argmax(1))
    loss = F.nll_loss(probabilities.log(), bench.labels("val")).item()
    assert loss == pytest.approx(rounded.metrics["val.loss"], rel=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("backbone", ["tiny:net", "autotl:resnet10", "autotl:convnext", "autotl:pvt_v2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_on_a_gpu_the_same_plan_gives_the_same_numbers(host, stripes, tmp_path, cuda, backbone, dtype):
    catalogue = Catalogue(host, tmp_path / "cache")
    network = catalogue.network(backbone, seed=0)
    bench = Bench.open(stripes, [network.input], catalogue, cuda, seed=0)
    names = catalogue.info(backbone).names
    lrs = dict.fromkeys(names, 0.001)
    tuned = phase(epochs=3, stage_lr=lrs, dropout=0.3)
    made = plan(bench, tuned, backbone=backbone, cut=names[-1], compute_dtype=dtype)
    one, other = fit(made, bench), fit(made, bench)
    assert one.metrics["val.loss"] == other.metrics["val.loss"]
    for key, value in weights(one).items():
        assert torch.equal(weights(other)[key], value)


@pytest.mark.gpu
@pytest.mark.parametrize("frozen", [None, "0.2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_on_a_gpu_a_step_waits_for_nothing(host, stripes, tmp_path, cuda, frozen, dtype):
    """`pretended_gpu.py` tests it without a GPU, and for other plans."""
    bench = make_bench(host, stripes, tmp_path / "cache", cuda)
    steps, options = math.ceil(len(bench.shas("train")) / 4), {"mixup": 0.4, "cutmix": 1.0, "ema": 0.9, "dropout": 0.1}
    made = plan(bench, phase(frozen, batch_size=4, optimizer=ADAMW, **options), compute_dtype=dtype)
    try:
        fit(made, bench, Between(steps, lambda on: torch.cuda.set_sync_debug_mode("error" if on else "default")))
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_on_a_gpu_stored_values_equal_recomputed_ones(host, stripes, tmp_path, cuda):
    bench = make_bench(host, stripes, tmp_path / "cache", cuda)
    flip = Component(name="flip")
    tuned = phase("0.2", epochs=4, views=2)
    half = {"compute_dtype": "bfloat16", "boundary_dtype": "bfloat16", "augmentation": flip}
    made = plan(bench, PROBE, tuned, **half)
    bench.decode(made.input)
    transform = Transform(host.augmentations["flip"], flip)
    rows = torch.randperm(len(bench.shas("train")), generator=torch.Generator().manual_seed(0))

    def values():
        source = Source(Model(made, bench, Nobody()), "0.2", ("train",), transform=transform, views=2)
        return source.kept, torch.cat([value for value, _ in source.batches(rows, 5, epoch=2)])

    (kept, stored), stored_fit = values(), fit(made, bench)
    bench.memory.most = 0
    (not_kept, computed), computed_fit = values(), fit(made, bench)
    assert kept and not not_kept
    assert stored.device.type == "cuda"
    assert torch.equal(stored, computed)
    # A GPU sums gradients in no fixed order.
    assert computed_fit.metrics["val.loss"] == pytest.approx(stored_fit.metrics["val.loss"], rel=0.05)
    assert math.isfinite(stored_fit.metrics["val.loss"])


@pytest.mark.gpu
def test_on_a_gpu_a_batch_that_does_not_fit_is_split(host, stripes, tmp_path, cuda):
    catalogue = Catalogue(host, tmp_path / "cache")
    network = catalogue.network("autotl:resnet10", seed=0)
    large = network.input.at(128)
    bench = Bench.open(stripes, [large], catalogue, cuda, seed=0)
    names = catalogue.info("autotl:resnet10").names
    tuned = phase(stage_lr=dict.fromkeys(names, 0.001), **ONE_STEP)
    made = plan(bench, tuned, backbone="autotl:resnet10", cut=names[-1], input=large)
    whole = fit(made, bench)
    bench.memory.clear()
    allowed = torch.cuda.memory_reserved() + 96 * 2**20
    torch.cuda.set_per_process_memory_fraction(allowed / torch.cuda.mem_get_info()[1])
    try:
        parted = fit(made, bench)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "phase1.micro_batch" not in whole.metrics
    assert 1 <= parted.metrics["phase1.micro_batch"] < ONE_STEP["batch_size"] / 4
    # Gradients that are summed in parts differ in their last digits.
    assert parted.metrics["val.loss"] == pytest.approx(whole.metrics["val.loss"], rel=0.05)


# What is trained, by which loss, and how


PARTS = {"norm": ("0.1.weight", "0.1.bias", "1.1.weight", "1.1.bias"), "bias": ("0.0.bias", "2.0.bias")}
"""Some parameters of `tiny:net` that an adapter trains."""


@pytest.mark.parametrize("adapter", ["norm", "bias", "lora"])
def test_an_adapter_changes_what_it_chooses_and_nothing_else(bench, host, tmp_path, adapter):
    before = start(bench)
    tuned = phase(adapter=Component(name=adapter), epochs=3)
    fitted = fit(plan(bench, PROBE, tuned), bench)
    after = weights(fitted)
    assert after.keys() == before.keys()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    if adapter == "lora":
        assert changed == {"0.0.weight", "1.0.weight", "2.0.weight"}
    else:
        assert set(PARTS[adapter]) <= changed
        assert all(key.endswith("bias") or (adapter == "norm" and ".1." in key) for key in changed)
    assert all(parameter.requires_grad for parameter in fitted.model.stages.parameters())
    again = fit(plan(bench, PROBE, tuned), bench)
    assert same(weights(again), after)
    bundle.save(tmp_path / "bundle", fitted, bench.dataset.classes, {"validation": fitted.metrics})
    loaded = bundle.load(tmp_path / "bundle", Catalogue(host, tmp_path / "cache"))
    images = torch.from_numpy(bench.features.pixels.rows(fitted.plan.input).read(bench.shas("val")))
    np.testing.assert_allclose(
        loaded.probabilities(images), torch.from_numpy(fitted.logits("val")).softmax(1), atol=1e-5
    )


def test_each_stage_may_have_its_own_adapter(bench):
    before = start(bench)
    few = {"0.2": Component(name="norm"), "2.1": Component(name="bias")}
    after = weights(fit(plan(bench, PROBE, phase(epochs=2, stage_adapters=few)), bench))
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert {key for key in changed if of("0.2")(key)} == {"0.1.weight", "0.1.bias"}
    assert {key for key in changed if of("1.2")(key)} >= {"1.0.weight", "1.1.weight"}
    assert {key for key in changed if of("2.1")(key)} == {"2.0.bias"}
    with pytest.raises(PlanError, match="'stage_adapters' names '0.2', but by 'frozen' and 'cut' stages 1.2 to 2.1"):
        fit(plan(bench, phase("0.2", stage_adapters=few)), bench)


def test_lora_learns(bench):
    lora = Component(name="lora", params={"rank": 4, "alpha": 8.0})
    tuned = phase(adapter=lora, epochs=20, optimizer=sgd(0.9), schedule="cosine", lrs=dict.fromkeys(NAMES, 0.01))
    fitted, alone = fit(plan(bench, tuned), bench), fit(plan(bench, phase("2.1", epochs=20)), bench)
    assert fitted.metrics["phase1.train.accuracy"] > 0.9
    assert fitted.metrics["phase1.train.loss"] < alone.metrics["phase1.train.loss"] - 0.2


def test_an_average_of_the_weights_is_judged_and_kept(bench):
    observer = Recorder()
    noisy = phase(epochs=8, lrs=dict.fromkeys(NAMES, 0.02), ema=0.8, batch_norm="train")
    fitted = fit(plan(bench, noisy), bench, observer)
    judged = F.cross_entropy(fitted.model.logits("early_stop"), bench.labels("early_stop")).item()
    assert judged == pytest.approx(observer.epochs[-1][2]["early_stop.loss"], rel=1e-4)
    live = fit(plan(bench, noisy.trained_by(ema=0.0)), bench)
    assert live.metrics["phase1.train.loss"] == fitted.metrics["phase1.train.loss"]  # it does not change the training
    assert not same(weights(live), weights(fitted))
    patient = fit(plan(bench, noisy.trained_by(stop=Stop(patience=8))), bench, stopped := Recorder())
    losses = [facts["early_stop.loss"] for _, _, facts in stopped.epochs]
    judged = F.cross_entropy(patient.model.logits("early_stop"), bench.labels("early_stop")).item()
    assert judged == pytest.approx(min(losses), rel=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"mixup": 0.4},
        {"cutmix": 1.0},
        {"mixup": 0.2, "cutmix": 1.0, "label_smoothing": 0.1},
        {"objective": Component(name="focal", params={"gamma": 2.0})},
        {"class_weights": "effective"},
        {"sampling": "balanced"},
        {"l2_sp": 0.1},
        {"ema": 0.9},
    ],
    ids=lambda changes: "-".join(changes),
)
@pytest.mark.parametrize("frozen", [None, "0.2"])
def test_each_way_to_train_learns_and_gives_the_same_bits_twice(bench, changes, frozen):
    usual = {"epochs": 15, "optimizer": sgd(0.9), "schedule": "cosine"}
    tuned = phase(frozen, **usual, **changes)
    one, other = fit(plan(bench, tuned), bench), fit(plan(bench, tuned), bench)
    plain = fit(plan(bench, phase(frozen, **usual)), bench)
    assert same(weights(one), weights(other))
    assert one.metrics["phase1.early_stop.loss"] < math.log(3) - 0.05  # better than guessing
    if changes != {"class_weights": "effective"}:  # the classes are equal
        assert not torch.equal(one.model.head.weight, plain.model.head.weight)


def test_epochs_are_evaluated_by_cross_entropy_with_every_objective(bench):
    """With the smoothing of the training: by plain cross-entropy a head that was fitted before would always win."""
    changes = {"label_smoothing": 0.5, "objective": Component(name="focal", params={"gamma": 4.0})}
    observer = Recorder()
    fitted = fit(plan(bench, phase(epochs=2, **changes)), bench, observer)
    logits, labels = fitted.model.logits("early_stop"), bench.labels("early_stop")
    judged = F.cross_entropy(logits, labels, label_smoothing=0.5).item()
    assert observer.epochs[-1][2]["early_stop.loss"] == pytest.approx(judged, rel=1e-4)


def rare(bench, monkeypatch, count=5):
    """Give the first `count` train images, and the first `early_stop` image, class 1, and the others class 0."""

    def labels(*splits):
        parts = [torch.zeros(len(bench.shas(name)), dtype=torch.long) for name in splits]
        for name, part in zip(splits, parts, strict=True):
            part[: count if name == "train" else 1] = 1
        return torch.cat(parts)

    monkeypatch.setattr(bench, "labels", labels)


def test_balanced_sampling_draws_all_classes_equally(bench, monkeypatch):
    rare(bench, monkeypatch)
    seen = []
    really = Objective.__call__
    monkeypatch.setattr(Objective, "__call__", lambda self, *args: seen.append(args[1]) or really(self, *args))
    fit(plan(bench, phase(epochs=3, sampling="balanced")), bench)
    targets, images = torch.cat(seen), len(bench.shas("train"))
    for epoch in targets.split(images):
        assert abs(epoch[:, 1].sum().item() - images / 2) <= 0.5
    seen.clear()
    fit(plan(bench, phase(epochs=1)), bench)
    assert torch.cat(seen)[:, 1].sum() == 5


def test_a_balanced_epoch_uses_the_images_of_a_class_equally_often():
    """Eleven images, of three classes: 4, 4 and 3 of each are drawn, of the only two images of the first class twice
    or once each, of the others at most once."""
    classes = [torch.tensor([0, 1]), torch.tensor([2, 3, 4, 5]), torch.arange(6, 11)]
    seen = set()
    for seed in range(40):
        counts = loop.balanced(classes, generator(seed)).bincount(minlength=11)
        each = sorted(counts[rows].sum().item() for rows in classes)
        assert each == [3, 4, 4]
        assert set(counts[:2].tolist()) <= {1, 2} and counts[2:].max() == 1
        seen.add(tuple(counts.tolist()))
    assert len(seen) > 20


@pytest.mark.parametrize("changes", [{"class_weights": "balanced"}, {"sampling": "balanced"}])
def test_epochs_are_evaluated_with_the_class_weights_of_the_training(bench, monkeypatch, changes):
    """Of N train images 5 are of class 1, so an image of class 1 counts (N - 5) / 5 times as much."""
    rare(bench, monkeypatch)
    observer = Recorder()
    fitted = fit(plan(bench, phase(epochs=1, label_smoothing=0.2, **changes)), bench, observer)
    shares = fitted.model.logits("early_stop").log_softmax(1)
    targets = 0.8 * F.one_hot(bench.labels("early_stop"), 3) + 0.2 / 3
    others = len(bench.shas("train")) - 5
    weights = torch.tensor([1 / others, 1 / 5, 1.0]) * (others + 5) / 2  # class 2 has no images
    each = -(weights * targets * shares).sum(1)
    expected = each.sum() / weights[bench.labels("early_stop")].sum()
    assert observer.epochs[-1][2]["early_stop.loss"] == pytest.approx(expected.item(), rel=1e-4)


def test_a_teacher_is_part_of_the_targets(bench, monkeypatch):
    seen = []
    really = Objective.__call__
    monkeypatch.setattr(Objective, "__call__", lambda self, *args: seen.append(args[1]) or really(self, *args))
    made = plan(bench, phase(epochs=1, teacher=taught(bench), batch_size=1000))
    one = fit(made, bench)
    (targets,) = seen
    thought = probabilities(Model(made, bench, Nobody()), taught(bench))
    order = torch.randperm(len(thought), generator=generator(0, 1, 1))
    expected = 0.6 * F.one_hot(bench.labels("train"), 3) + 0.4 * thought
    torch.testing.assert_close(targets, expected[order])
    assert same(weights(one), weights(fit(made, bench)))


def test_a_teacher_is_fitted_on_other_images_than_it_teaches(bench, monkeypatch):
    """With labels at random it is right on few of them, although it has more features than images."""
    draw = torch.Generator().manual_seed(0)
    shuffled = {
        splits: labels[torch.randperm(len(labels), generator=draw)]
        for splits in [("train",)]
        for labels in [bench.labels(*splits)]
    }
    monkeypatch.setattr(bench, "labels", lambda *splits: shuffled[splits])
    made = plan(bench, phase(epochs=1))
    thought = probabilities(Model(made, bench, Nobody()), taught(bench, temperature=1.0))
    torch.testing.assert_close(thought.sum(1), torch.ones(len(thought)))
    assert (thought.argmax(1) == shuffled[("train",)]).float().mean() < 0.6


def test_a_higher_temperature_makes_a_teacher_less_sure(bench, monkeypatch):
    """The same classifier, which is fitted once."""
    made = Model(plan(bench, phase(epochs=1)), bench, Nobody())
    cold = probabilities(made, taught(bench, temperature=1.0))
    monkeypatch.setattr(teacher, "logistic_path", lambda *_: pytest.fail("fitted again"))
    warm = probabilities(made, taught(bench, temperature=4.0, share=0.1))
    assert torch.equal(cold.argmax(1), warm.argmax(1))
    assert (warm.max(1).values <= cold.max(1).values + 1e-6).all()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"weights": "sha256:0"}, "The teacher 'reference:pixels' has the weights none here, not sha256:0"),
        ({"cut": "nowhere"}, "stage of reference:pixels 'nowhere'"),
        ({"pooling": "token"}, "Unknown pooling after"),
    ],
)
def test_a_teacher_that_is_not_here_is_refused(bench, wrong, says):
    with pytest.raises(PlanError, match=says):
        fit(plan(bench, phase(teacher=taught(bench, **wrong))), bench)


class Pairs:
    """Mixes each image with the next one in its batch: a quarter of it."""

    mixes = True

    def suggest(self, trial, context):
        return {}

    def build(self, params):
        def blend(images, draw):
            partners = torch.arange(len(images)).roll(-1)
            blended = (0.75 * images + 0.25 * images[partners]).round().to(torch.uint8)
            return Mixed(blended, partners, torch.full((len(images),), 0.75))

        return blend


class Unsaid(Pairs):
    mixes = False


class Sometimes(Pairs):
    """Mixes only batches of sixteen."""

    def build(self, params):
        blend = super().build(params)
        return lambda images, draw: blend(images, draw) if len(images) == 16 else images


class Mixers:
    @hookimpl
    def register_augmentations(self, register):
        register("pairs", Pairs, summary="For a test")
        register("sometimes", Sometimes, summary="For a test")
        register("unsaid", Unsaid, summary="For a test")


@pytest.mark.parametrize("frozen", [None, "0.2"])
def test_an_augmentation_may_mix_images_with_their_targets(bench, host, monkeypatch, frozen):
    """The targets that reach the loss are three quarters of the image's class and a quarter of its partner's."""
    host.add(Mixers(), "mixers")
    seen = []
    really = Objective.__call__
    monkeypatch.setattr(Objective, "__call__", lambda self, *args: seen.append(args[1]) or really(self, *args))
    tuned = phase(frozen, epochs=1, batch_size=16, views=2)
    pairs = Component(name="pairs")
    one, other = (fit(plan(bench, tuned, augmentation=pairs), bench) for _ in range(2))
    assert same(weights(one), weights(other))
    targets = torch.cat(seen)
    assert set(targets.flatten().tolist()) <= {0.0, 0.25, 0.75, 1.0}
    assert 0.2 < (targets == 0.75).any(1).float().mean() < 1  # of two classes, unless the partner has the same
    torch.testing.assert_close(targets.sum(1), torch.ones(len(targets)))


def test_a_batch_that_is_not_mixed_forgets_earlier_partners(bench, host):
    host.add(Mixers(), "mixers")
    sometimes = Component(name="sometimes")
    model = Model(plan(bench, phase(), augmentation=sometimes), bench, Nobody())
    bench.decode(model.plan.input)
    source = Source(model, None, ("train",), transform=Transform(host.augmentations["sometimes"], sometimes))
    rows = torch.arange(16)
    for steps, partners, share in ((1, rows.roll(-1), 0.75), (2, rows, 1.0)):
        assert len(list(source.batches(rows, steps))) == steps
        found = source.mixed(len(rows))
        assert torch.equal(found[0], partners) and (found[1] == share).all()


@pytest.mark.parametrize("frozen", [None, "0.2"])
def test_an_image_that_is_drawn_twice_is_mixed_with_two_partners(bench, host, frozen):
    host.add(Mixers(), "mixers")
    pairs = Component(name="pairs")
    model = Model(plan(bench, phase(frozen), augmentation=pairs), bench, Nobody())
    bench.decode(model.plan.input)
    source = Source(model, frozen, ("train",), transform=Transform(host.augmentations["pairs"], pairs))
    rows = torch.tensor([4, 4, 7, 4, 9, 4])
    found = [source.mixed(3)[0].tolist() for _ in source.batches(rows, 2)]
    assert found == [[4, 7, 4], [9, 4, 4]]


def test_an_augmentation_that_mixes_must_say_so(bench, host):
    host.add(Mixers(), "mixers")
    with pytest.raises(PluginError, match="Augmentation 'unsaid' .* it returned Mixed; set mixes = True"):
        fit(plan(bench, phase(epochs=1), augmentation=Component(name="unsaid")), bench)


class Parts:
    """Objectives, adapters and methods with faults."""

    @hookimpl
    def register_objectives(self, register):
        register("vector", lambda: Given(lambda logits, targets, weights: logits.sum(1)), summary="For a test")
        register("number", lambda: Given(lambda logits, targets, weights: 1.0), summary="For a test")

    @hookimpl
    def register_adapters(self, register):
        register(
            "alien", lambda: Given(lambda weights: Adapted([], lambda: {"x": torch.zeros(1)})), summary="For a test"
        )
        register("elsewhere", lambda: Given(_on_another_device), summary="For a test")
        register("list", lambda: Given(lambda weights: [each.parameter for each in weights]), summary="For a test")
        register("tensor", lambda: Given(lambda weights: Adapted([torch.zeros(1)])), summary="For a test")

        late = Adapted([nn.Parameter(torch.ones(1))], iter([{}, {}]).__next__)
        register("tired", lambda: Given(lambda weights: late), summary="For a test")

    @hookimpl
    def register_optimizers(self, register):
        register("stuck", Stuck, summary="For a test")

    @hookimpl
    def register_methods(self, register):
        register("idle", lambda: Steps(lambda batch: None), summary="For a test")
        register("early", lambda: Steps(lambda batch: batch.update()), summary="For a test")
        register("late", lambda: Steps(lambda batch: batch.gradients()), summary="For a test")


def _on_another_device(weights):
    return Adapted([], lambda: {each.name: each.parameter.to("meta") for each in weights})


class Stuck:
    def suggest(self, trial, context, pretrained):
        raise NotImplementedError

    def build(self, groups, params):
        class Optimizer(torch.optim.SGD):
            def step(self):
                raise ZeroDivisionError("no step")

        return Optimizer(groups)


class Given:
    def __init__(self, built):
        self.built = built

    def suggest(self, trial, context):
        return {}

    def build(self, params):
        return self.built


class Steps:
    options = ("pace",)

    def __init__(self, step):
        self._step = step

    def suggest(self, trial, context):
        return {"pace": 1}

    def step(self, batch, options):
        self._step(batch)


@pytest.mark.parametrize(
    ("changes", "method", "says"),
    [
        (
            {"objective": "vector"},
            None,
            r"Objective 'vector' of plugin 'parts' .* its loss returned \(16,\), not a scalar",
        ),
        ({"objective": "number"}, None, "Objective 'number' .* its loss returned float, not a scalar"),
        ({"adapter": "alien"}, None, "Adapter 'alien' .* it replaces 'x', which is not in the stage"),
        (
            {"adapter": "elsewhere"},
            None,
            r"Adapter 'elsewhere' .* it replaces '0.0.weight' by .*float32 on meta; it must be .*float32 on cpu",
        ),
        ({"adapter": "list"}, None, "Adapter 'list' .* it returned list, not Adapted"),
        ({"adapter": "tensor"}, None, "Adapter 'tensor' .* it returned Tensor among the parameters"),
        ({"adapter": "tired"}, None, "Adapter 'tired' .* fails: StopIteration"),
        ({"optimizer": "stuck"}, None, "Optimizer 'stuck' .* fails: ZeroDivisionError: no step"),
        ({}, "idle", r"Method 'idle' .* its step did not call batch.update\(\)"),
        ({}, "late", r"Method 'late' .* its step did not call batch.update\(\)"),
        ({}, "early", r"Method 'early' .* update\(\) was called before gradients\(\)"),
    ],
)
def test_what_a_plugin_does_wrong_in_training_names_it(bench, host, changes, method, says):
    host.add(Parts(), "parts")
    assert not host.problems
    tuned = phase(**{name: Component(name=value) for name, value in changes.items()})
    if method:
        tuned = tuned.model_copy(update={"method": method, "options": {"pace": 1}})
    with pytest.raises(PluginError, match=says):
        fit(plan(bench, tuned), bench)


@pytest.mark.parametrize(
    ("options", "says"),
    [({}, "idle needs options.pace"), ({"pase": 1, "pace": 1}, "option of idle 'pase'. Did you mean")],
)
def test_the_options_of_a_gradient_method_are_those_that_it_names(bench, host, options, says):
    host.add(Parts(), "parts")
    with pytest.raises(PlanError, match=says):
        fit(plan(bench, phase().model_copy(update={"method": "idle", "options": options})), bench)


def test_sam_trains(bench):
    usual = phase(epochs=15, optimizer=sgd(0.9), schedule="cosine")
    tuned = usual.model_copy(update={"method": "sam", "options": {"rho": 0.005}})
    plain, flat = fit(plan(bench, usual), bench), fit(plan(bench, tuned), bench)
    assert flat.metrics["val.accuracy"] > 0.7
    assert not same(weights(plain), weights(flat))


def test_cutmix_needs_height_and_width(host, bench):
    info = SimpleNamespace(stage=lambda name: SimpleNamespace(layout="tokens"))
    assert loop.places(info, "blocks.0") is None
    assert loop.places(info, None) == (2, 3)
