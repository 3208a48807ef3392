"""The tests for objectives, optimizers, adapters and gradient methods: what a phase of gradient descent is made of."""

import copy
import json
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import optuna
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autotl.contracts import Adapted, DataFacts, Loss, Optimization, Weight
from autotl.errors import PluginError
from autotl.plan import Component, Phase
from autotl.testing.lab import FACTS, FEWER, SEED, Lab, assert_only_trained_moves, assert_same, sgd, stir, well_behaved
from autotl.testing.parameters import DRAWS, assert_one_study, own_names, unused_parameters
from autotl.testing.plugins import PluginTests

IMAGES, CLASSES, WIDTH = 12, 3, 6
FEW_DRAWS = 4
STEPS = 4


class _SuggestedTests(PluginTests):
    """What is suggested and built, of any of these kinds."""

    field: str
    """The field of a phase's training that names it."""

    def result(self, lab: Lab, name: str, params: dict[str, Any]) -> Tensor:
        """Numbers that depend on what is built from these parameters."""
        raise NotImplementedError

    def phase(self, lab: Lab, name: str, params: dict[str, Any]) -> Phase:
        """A phase with it, on the upper stages of `tiny:net`."""
        names = lab.catalogue.info("tiny:net").names
        return sgd(names[0], names[1:]).trained_by(**{self.field: Component(name=name, params=params)})

    def test_every_parameter_that_is_asked_for_is_used(self, lab: Lab, name: str) -> None:
        def found(known: Mapping[str, Any], seed: int) -> tuple[Tensor, optuna.Trial]:
            params, rest, trial = self.suggested(lab, name, known, seed)
            return torch.cat([self.result(lab, name, params).flatten(), rest]), trial

        unused = unused_parameters(found, torch.equal)
        assert not unused, f"'{name}' draws {unused} but never uses it: what it builds does not depend on its value."

    def test_its_own_parameters_carry_a_prefix(self, lab: Lab, name: str) -> None:
        with own_names():
            for seed in range(DRAWS):
                self.suggested(lab, name, {}, seed)

    def test_one_study_can_hold_its_trials(self, lab: Lab, name: str) -> None:
        """For every backbone, and when images are added to the data."""
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Inconsistent parameter values")
            try:
                trials = [self.suggested(lab, name, {}, s, facts)[2] for s in range(DRAWS) for facts in (FACTS, FEWER)]
            except RuntimeWarning as error:
                raise AssertionError(
                    f"'{name}' draws a parameter from two ranges in one trial: give it two names. {error}"
                ) from None
        assert_one_study(trials, name)

    def test_equal_draws_give_equal_parameters_that_survive_json(self, lab: Lab, name: str) -> None:
        for seed in range(DRAWS):
            stir(2 * seed)
            params, rest, trial = self.suggested(lab, name, {}, seed)
            stir(2 * seed + 1)
            again, other, _ = self.suggested(lab, name, trial.params, seed + 1)
            same = again == params and torch.equal(rest, other)
            assert same, f"'{name}' gives {params} and {again} for the same draws: {trial.params}."
            written = json.loads(json.dumps(params))
            assert written == params, f"'{name}' gives {params}, which JSON changes to {written}."

    def test_it_prints_nothing_and_leaves_global_generators_alone(self, lab: Lab, name: str) -> None:
        """Adapters and methods may draw from torch's global generator."""
        draws = ("torch",) if self.kind in ("adapters", "methods") else ()
        for seed in range(FEW_DRAWS):
            with well_behaved(f"'{name}'", draws):
                self.result(lab, name, self.suggested(lab, name, {}, seed)[0])

    def test_training_twice_gives_equal_weights(self, lab: Lab, name: str) -> None:
        plan = lab.plan(self.phase(lab, name, self.suggested(lab, name, {}, 0)[0]))
        stir(1)
        try:
            first = lab.fit(plan)
        except PluginError as error:
            raise AssertionError(str(error)) from error
        stir(2)
        assert_same(first, lab.fit(plan), f"'{name}'")

    def suggested(
        self, lab: Lab, name: str, known: Mapping[str, Any], seed: int, facts: DataFacts = FACTS
    ) -> tuple[dict[str, Any], Tensor, optuna.Trial]:
        """The parameters, the other numbers that it suggests, and the trial from which it drew what is not `known`."""
        trial = lab.trial(known, seed)
        item, asked = lab.host.registries[self.kind][name].item, lab.asked(self.kind, name, trial)
        if self.kind != "optimizers":
            return item.suggest(asked, lab.context(trial, facts)), torch.zeros(0), trial
        found = [item.suggest(asked, lab.context(trial, facts), pretrained) for pretrained in (True, False)]
        for each in found:
            assert isinstance(each, Optimization), f"'{name}' suggests {type(each).__name__}, not Optimization."
            assert each.lr > 0 and each.head_lr > 0, f"'{name}' suggests learning rates that are not above zero."
        rest = [number for each in found for number in (each.lr, each.head_lr, each.weight_decay)]
        return dict(found[0].params), torch.tensor(rest), trial


class ObjectiveTests(_SuggestedTests):
    kind, field = "objectives", "objective"

    def result(self, lab: Lab, name: str, params: dict[str, Any]) -> Tensor:
        return _loss(lab, name, params)(*_batch(), torch.ones(CLASSES)).detach()

    def test_its_loss_is_a_finite_mean_with_finite_gradients(self, lab: Lab, name: str) -> None:
        for loss in self.losses(lab, name):
            logits, targets = _batch()
            for scale in (0.0, 1.0, 100.0):
                scaled = (scale * logits).requires_grad_()
                value = loss(scaled, targets, torch.ones(CLASSES))
                assert value.dim() == 0, f"'{name}' returns {tuple(value.shape)}, not a scalar."
                value.backward()
                finite = value.isfinite() and scaled.grad is not None and scaled.grad.isfinite().all()
                assert finite, f"'{name}' gives a loss or a gradient that is not finite for logits times {scale:g}."
            one, twice = (loss(logits.repeat(n, 1), targets.repeat(n, 1), torch.ones(CLASSES)) for n in (1, 2))
            mean = torch.allclose(one, twice, rtol=1e-4, atol=1e-6)
            assert mean, f"'{name}' gives {twice:.4g} for twice the images of {one:.4g}: return the mean over images."

    def test_better_logits_have_a_lower_loss(self, lab: Lab, name: str) -> None:
        _, targets = _batch()
        for loss in self.losses(lab, name):
            right, wrong = (loss(sign * 3 * targets, targets, torch.ones(CLASSES)).item() for sign in (1, -1))
            assert right < wrong, f"'{name}' gives {right:.4g} for logits that are right, {wrong:.4g} for wrong ones."

    def test_class_weights_reach_the_loss(self, lab: Lab, name: str) -> None:
        logits, targets = _batch()
        weights = torch.tensor([3.0, 0.5, 0.5])
        for loss in self.losses(lab, name):
            same = torch.equal(loss(logits, targets, weights), loss(logits, targets, torch.ones(CLASSES)))
            assert not same, f"'{name}' ignores the class weights."

    def losses(self, lab: Lab, name: str) -> Iterator[Loss]:
        for seed in range(FEW_DRAWS):
            yield _loss(lab, name, self.suggested(lab, name, {}, seed)[0])


class OptimizerTests(_SuggestedTests):
    kind, field = "optimizers", "optimizer"

    def result(self, lab: Lab, name: str, params: dict[str, Any]) -> Tensor:
        return _after_steps(lab, name, params)

    def test_it_minimises(self, lab: Lab, name: str) -> None:
        for seed in range(FEW_DRAWS):
            params = self.suggested(lab, name, {}, seed)[0]
            start, end = (_after_steps(lab, name, params, steps=steps).square().sum() for steps in (0, 50))
            assert end < start, f"'{name}' with {params} moves away from the minimum."

    def test_learning_rates_reach_it_before_every_step(self, lab: Lab, name: str) -> None:
        params = self.suggested(lab, name, {}, 0)[0]
        still = _after_steps(lab, name, params, factors=(0.0,) * STEPS)
        start = _after_steps(lab, name, params, steps=0)
        assert torch.equal(still, start), f"'{name}' moves parameters although the groups' 'lr' is 0."
        once = _after_steps(lab, name, params, factors=(1.0, *(0.0,) * (STEPS - 1)))
        assert not torch.equal(once, start), f"'{name}' does not move parameters with the groups' 'lr'."
        assert torch.equal(once, _after_steps(lab, name, params, steps=1)), (
            f"'{name}' moves parameters after the groups' 'lr' became 0: read it in every step."
        )


class AdapterTests(_SuggestedTests):
    kind, field = "adapters", "adapter"

    def result(self, lab: Lab, name: str, params: dict[str, Any]) -> Tensor:
        """The weights of a small module after a few steps."""
        torch.manual_seed(SEED)
        module = _module()
        adapted = lab.host.adapters[name].item.build(params)(_weights(module))
        optimizer = torch.optim.SGD(adapted.parameters, lr=0.1) if adapted.parameters else None
        images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(SEED))
        for _ in range(STEPS):
            if optimizer:
                optimizer.zero_grad()
                _run(module, adapted, images).square().mean().backward()
                optimizer.step()
        computed = adapted.weights() if adapted.weights else {}
        return torch.cat([computed.get(key, value).detach().flatten() for key, value in module.named_parameters()])

    def test_the_network_starts_unchanged(self, lab: Lab, name: str) -> None:
        for seed in range(FEW_DRAWS):
            module = _module()
            before = copy.deepcopy(module.state_dict())
            adapt = lab.host.adapters[name].item.build(self.suggested(lab, name, {}, seed)[0])
            adapted = adapt(_weights(module))
            assert isinstance(adapted, Adapted), f"'{name}' returns {type(adapted).__name__}, not Adapted."
            same = all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
            assert same, f"'{name}' changes the stage's parameters: return new tensors in 'weights' instead."
            images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(SEED))
            off = (_run(module, adapted, images) - module(images)).abs().max().item()
            assert off < 1e-4, f"'{name}' changes the network before it is trained, by {off:.2g}: start at its weights."

    def test_its_parameters_get_a_gradient(self, lab: Lab, name: str) -> None:
        for seed in range(FEW_DRAWS):
            module = _module()
            adapted = lab.host.adapters[name].item.build(self.suggested(lab, name, {}, seed)[0])(_weights(module))
            images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(SEED))
            _run(module, adapted, images).square().mean().backward()
            idle = [number for number, each in enumerate(adapted.parameters) if each.grad is None]
            assert not idle, f"'{name}' returns parameters that have no effect on the network: numbers {idle}."

    def test_frozen_stages_stay(self, lab: Lab, name: str) -> None:
        params = self.suggested(lab, name, {}, 0)[0]
        names = lab.catalogue.info("tiny:net").names
        fitted = lab.fit(lab.plan(self.phase(lab, name, params)))
        frozen = fitted.model.stages.stage_parameters(names[0])
        before = lab.catalogue.build(fitted.plan.network).state_dict()
        for key, value in frozen.items():
            assert torch.equal(value, before[key]), f"'{name}' changes '{key}' of a frozen stage."


class GradientMethodTests(_SuggestedTests):
    """Of the methods that train by gradient descent; `MethodTests` is for those that fit a head."""

    kind = "methods"

    def phase(self, lab: Lab, name: str, params: dict[str, Any]) -> Phase:
        names = lab.catalogue.info("tiny:net").names
        return sgd(names[0], names[1:]).model_copy(update={"method": name, "options": params})

    def result(self, lab: Lab, name: str, params: dict[str, Any]) -> Tensor:
        batch = _Batch(name)
        options = {**getattr(lab.host.methods[name].item, "defaults", {}), **params}
        for _ in range(STEPS):
            batch.updated = False
            lab.host.methods[name].item.step(batch, dict(options))
            assert batch.updated, f"'{name}' takes no step: call batch.update()."
        return batch.parameters[0].detach()

    def test_it_minimises(self, lab: Lab, name: str) -> None:
        for seed in range(FEW_DRAWS):
            end = self.result(lab, name, self.suggested(lab, name, {}, seed)[0]).square().sum()
            start = _Batch(name).parameters[0].detach().square().sum()
            assert end < start, f"'{name}' moves away from the minimum."

    def test_frozen_stages_stay_and_stages_with_a_learning_rate_change(self, lab: Lab, name: str) -> None:
        fitted = lab.fit(lab.plan(self.phase(lab, name, self.suggested(lab, name, {}, 0)[0])))
        assert_only_trained_moves(lab, fitted, f"'{name}'")


class _Batch:
    """A batch with a quadratic loss; plain gradient descent."""

    def __init__(self, name: str) -> None:
        self.parameters = [nn.Parameter(torch.tensor([3.0, -4.0, 0.5]))]
        self.updated = False
        self._name = name

    def gradients(self) -> None:
        (parameter,) = self.parameters
        parameter.grad = parameter.detach() * torch.tensor([1.0, 2.0, 0.5])

    def update(self) -> None:
        (parameter,) = self.parameters
        assert parameter.grad is not None, f"'{self._name}' calls batch.update() before batch.gradients()."
        with torch.no_grad():
            parameter.sub_(0.1 * parameter.grad)
        self.updated = True


def _loss(lab: Lab, name: str, params: dict[str, Any]) -> Loss:
    loss: Loss = lab.host.objectives[name].item.build(params)
    return loss


def _batch() -> tuple[Tensor, Tensor]:
    """Logits, and targets with hard and soft ones."""
    draw = torch.Generator().manual_seed(SEED)
    targets = F.one_hot(torch.arange(IMAGES) % CLASSES, CLASSES).float()
    targets[::2] = 0.8 * targets[::2] + 0.2 / CLASSES
    return torch.randn(IMAGES, CLASSES, generator=draw), targets


def _after_steps(
    lab: Lab, name: str, params: dict[str, Any], steps: int = STEPS, factors: tuple[float, ...] | None = None
) -> Tensor:
    """A parameter after steps towards zero; `factors` multiply the learning rate in each step."""
    parameter = nn.Parameter(torch.tensor([[3.0, -4.0, 0.5]]))
    lr = 1e-2
    optimizer = lab.host.optimizers[name].item.build([{"params": [parameter], "lr": lr, "weight_decay": 0.0}], params)
    for factor in factors or (1.0,) * steps:
        for group in optimizer.param_groups:
            group["lr"] = factor * lr
        optimizer.zero_grad()
        parameter.square().sum().backward()
        optimizer.step()
    return parameter.detach()


def _module() -> nn.Module:
    torch.manual_seed(SEED)
    layers = nn.Conv2d(3, WIDTH, 3), nn.BatchNorm2d(WIDTH), nn.ReLU(), nn.Flatten(), nn.Linear(36 * WIDTH, 5)
    return nn.Sequential(*layers).eval()


def _weights(module: nn.Module) -> list[Weight]:
    return [
        Weight(key, parameter, module.get_submodule(key.rpartition(".")[0]))
        for key, parameter in module.named_parameters()
    ]


def _run(module: nn.Module, adapted: Adapted, images: Tensor) -> Tensor:
    computed = dict(adapted.weights()) if adapted.weights else {}
    value: Tensor = torch.func.functional_call(module, computed, (images,))
    return value
