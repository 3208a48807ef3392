"""What is checked of every strategy."""

import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any

import optuna

from autotl.plan import TransferPlan
from autotl.testing.lab import Lab, assert_only_trained_moves, assert_same, shortened, stir
from autotl.testing.parameters import DRAWS, unused_parameters
from autotl.testing.plugins import PluginTests

SHARED = ("backbone", "cut", "frozen", "pooling", "token_pooling", "input_size", "augmentation")


class StrategyTests(PluginTests):
    kind = "strategies"

    def test_every_parameter_that_is_asked_for_is_used(self, lab: Lab, name: str) -> None:
        """A parameter that changes no plan is noise to the sampler, and a column of nonsense to who reads the study."""
        unused = unused_parameters(partial(suggested, lab, name), lambda one, two: one.hash == two.hash)
        assert not unused, f"'{name}' asks for {unused} and never uses it: the plan is the same whatever its value."

    def test_its_own_parameters_carry_a_prefix(self, lab: Lab, name: str) -> None:
        for seed in range(DRAWS):
            _, trial = suggested(lab, name, {}, seed)
            bare = [each for each in trial.params if each not in SHARED and "." not in each]
            assert not bare, (
                f"'{name}' asks for '{bare[0]}', a name that another plugin may use otherwise: call it "
                f"'{name}.{bare[0]}'."
            )

    def test_equal_parameters_give_equal_plans(self, lab: Lab, name: str) -> None:
        for seed in range(DRAWS):
            stir(1)
            plan, trial = suggested(lab, name, {}, seed)
            stir(2)
            again, _ = suggested(lab, name, trial.params, seed + 1)
            assert again == plan, f"'{name}' gives two plans for one set of parameters: {trial.params}."

    def test_its_plans_survive_json(self, lab: Lab, name: str) -> None:
        for seed in range(DRAWS):
            plan, _ = suggested(lab, name, {}, seed)
            again = TransferPlan.from_json(plan.to_json(), name=f"A plan of '{name}'")
            assert again == plan, (
                f"A plan of '{name}' is another one after a trip through JSON: {_difference(plan, again)}"
            )

    def test_its_first_guess_is_one_that_it_could_draw(self, lab: Lab, name: str) -> None:
        guess: Mapping[str, Any] = getattr(lab.host.strategies[name].item, "first_guess", {})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna warns of what is checked below
            _, trial = suggested(lab, name, guess, 0)
        for parameter, value in guess.items():
            distribution = trial.distributions.get(parameter)
            assert distribution is not None, (
                f"The first guess of '{name}' names '{parameter}', which its suggest does not ask for."
            )
            assert distribution._contains(distribution.to_internal_repr(value)), (
                f"The first guess of '{name}' sets '{parameter}' to {value!r}, which is not in {distribution}."
            )

    def test_two_trainings_of_a_plan_are_equal(self, lab: Lab, name: str) -> None:
        plan = shortened(suggested(lab, name, first_guess(lab, name), 0)[0])
        stir(1)
        first = lab.fit(plan)
        stir(2)
        assert_same(first, lab.fit(plan), f"'{name}'")

    def test_what_is_frozen_stays_and_what_has_a_rate_moves(self, lab: Lab, name: str) -> None:
        for seed, share in enumerate((0.0, 0.6)):
            known = {**first_guess(lab, name), "frozen": share}
            plan = shortened(suggested(lab, name, known, seed)[0])
            assert_only_trained_moves(lab, lab.fit(plan), f"'{name}'")


def suggested(lab: Lab, name: str, known: Mapping[str, Any], seed: int) -> tuple[TransferPlan, optuna.Trial]:
    """A plan of a strategy, and the trial of which it drew what is not `known`."""
    trial = lab.trial(known, seed)
    plan = lab.host.strategies[name].item.suggest(trial, lab.context(trial))
    assert isinstance(plan, TransferPlan), f"'{name}' suggests {type(plan).__name__}, not a plan."
    return plan, trial


def first_guess(lab: Lab, name: str) -> dict[str, Any]:
    """Where the checks that train begin: with the smaller network."""
    return {"backbone": "tiny:net", **getattr(lab.host.strategies[name].item, "first_guess", {})}


def _difference(one: TransferPlan, two: TransferPlan) -> str:
    changed = [name for name in type(one).model_fields if getattr(one, name) != getattr(two, name)]
    return "; ".join(f"{name} was {getattr(one, name)!r}, is {getattr(two, name)!r}" for name in changed)
