"""The tests for every strategy."""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, get_args

import optuna

from autotl.contracts import DataFacts, Situation
from autotl.engine.fit import check
from autotl.errors import PlanError
from autotl.plan import TransferPlan
from autotl.testing.lab import FACTS, FEWER, Lab, assert_only_trained_moves, assert_same, shortened, stir, well_behaved
from autotl.testing.parameters import DRAWS, assert_one_study, own_names, unused_parameters
from autotl.testing.plugins import PluginTests


class StrategyTests(PluginTests):
    kind = "strategies"

    def test_every_parameter_that_it_draws_is_used(self, lab: Lab, name: str) -> None:
        """A parameter without effect is noise for the sampler, and a meaningless column for readers of the study."""
        unused = unused_parameters(partial(suggested, lab, name), lambda one, two: one.hash == two.hash)
        assert not unused, f"'{name}' draws {unused} but never uses it: the plan does not depend on its value."

    def test_its_own_parameters_have_a_prefix(self, lab: Lab, name: str) -> None:
        with own_names():
            for seed in range(DRAWS):
                suggested(lab, name, {}, seed)

    def test_one_study_can_hold_its_trials(self, lab: Lab, name: str) -> None:
        """For every backbone, and when images are added to the data."""
        drawn = [suggested(lab, name, {}, seed, facts)[1] for seed in range(DRAWS) for facts in (FACTS, FEWER)]
        assert_one_study(drawn, name)

    def test_it_prints_nothing_and_leaves_global_generators_alone(self, lab: Lab, name: str) -> None:
        for seed in range(DRAWS):
            with well_behaved(f"'{name}'"):
                suggested(lab, name, {}, seed)

    def test_equal_parameters_give_equal_plans(self, lab: Lab, name: str) -> None:
        for seed in range(DRAWS):
            stir(2 * seed)  # two seeds might draw the same of two choices
            plan, trial = suggested(lab, name, {}, seed)
            stir(2 * seed + 1)
            again, _ = suggested(lab, name, trial.params, seed + 1)
            assert again == plan, f"'{name}' gives different plans for the same parameters: {trial.params}."

    def test_its_plans_survive_json(self, lab: Lab, name: str) -> None:
        for seed in range(DRAWS):
            plan, _ = suggested(lab, name, {}, seed)
            again = TransferPlan.from_json(plan.to_json(), name=f"A plan of '{name}'")
            assert again == plan, (
                f"A plan of '{name}' changes by conversion to JSON and back: {_difference(plan, again)}"
            )

    def test_its_first_guess_is_one_that_it_could_draw(self, lab: Lab, name: str) -> None:
        guess = first_guess(lab, name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna warns about what is checked below
            try:
                _, trial = suggested(lab, name, guess, 0)
            except ValueError as error:
                raise AssertionError(f"The first guess of '{name}' cannot be tried: {error}") from error
        for parameter, value in guess.items():
            distribution = trial.distributions.get(parameter)
            assert distribution is not None, (
                f"The first guess of '{name}' sets '{parameter}', which its suggest does not draw."
            )
            try:
                optuna.create_trial(value=0.0, params={parameter: value}, distributions={parameter: distribution})
            except ValueError:
                raise AssertionError(
                    f"The first guess of '{name}' sets '{parameter}' to {value!r}, which is not in {distribution}."
                ) from None

    def test_it_suits_situations_that_exist(self, lab: Lab, name: str) -> None:
        unknown = set(getattr(lab.host.strategies[name].item, "suits", ())).difference(get_args(Situation))
        assert not unknown, f"'{name}' suits {sorted(unknown)}; the situations are {', '.join(get_args(Situation))}."

    def test_its_plans_can_be_trained(self, lab: Lab, name: str) -> None:
        """Also if there are too few images for choosing the epoch, when `context.data.has_early_stop` is False."""
        for seed in range(DRAWS):
            for facts in (FACTS, replace(FACTS, has_early_stop=False)):
                plan, _ = suggested(lab, name, {}, seed, facts)
                try:
                    check(plan, lab.bench)
                    unjudged = [each for each in plan.trainings if each.stop and each.stop.patience]
                    if unjudged and not facts.has_early_stop:
                        raise PlanError(
                            "it stops by the loss on 'early_stop', but context.data.has_early_stop is False"
                        )
                except PlanError as error:
                    raise AssertionError(f"A plan of '{name}' cannot be trained: {error}") from error

    def test_frozen_stages_stay_and_stages_with_a_learning_rate_change(self, lab: Lab, name: str) -> None:
        for seed, share in enumerate((0.0, 0.6)):
            plan = shortened(suggested(lab, name, {**first_guess(lab, name), "frozen": share}, seed)[0])
            stir(1)
            fitted = lab.fit(plan)
            assert_only_trained_moves(lab, fitted, f"'{name}'")
            stir(2)
            assert_same(fitted, lab.fit(plan), f"'{name}'")


def suggested(
    lab: Lab, name: str, known: Mapping[str, Any], seed: int, facts: DataFacts = FACTS
) -> tuple[TransferPlan, optuna.Trial]:
    """A plan of a strategy, and the trial from which it drew the parameters that are not `known`."""
    trial = lab.trial(known, seed)
    plan = lab.host.strategies[name].item.suggest(lab.asked("strategies", name, trial), lab.context(trial, facts))
    assert isinstance(plan, TransferPlan), f"'{name}' suggests {type(plan).__name__}, not a plan."
    return plan, trial


def first_guess(lab: Lab, name: str) -> dict[str, Any]:
    """The first guess, with its backbone replaced by the smaller test network."""
    return {**getattr(lab.host.strategies[name].item, "first_guess", {}), "backbone": "tiny:net"}


def _difference(one: TransferPlan, two: TransferPlan) -> str:
    changed = [name for name in type(one).model_fields if getattr(one, name) != getattr(two, name)]
    return "; ".join(f"{name} was {getattr(one, name)!r}, is {getattr(two, name)!r}" for name in changed)
