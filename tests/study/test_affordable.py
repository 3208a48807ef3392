"""First guesses freeze more, then train for fewer epochs, and only then start on another backbone."""

import pytest

from autotl.study import affordable
from autotl.study.affordable import FREEZE, SHORTEN, is_cheaper, versions

TUNE = {"strategy": "fine-tune", "backbone": "good", "cut": 1.0, "frozen": 0.0, "recipe.length": 0.5}
FULL = {"strategy": "full", "backbone": "good", "recipe.length": 0.5}


def on(backbone, *guesses):
    return {at: {**guess, "backbone": backbone} for at, guess in enumerate(guesses)}


def cost(guess):
    """What is not frozen × epochs: 100 s for an unchanged guess on `good`, 10 s on `small`."""
    whole = {"good": 100.0, "small": 10.0}[guess["backbone"]]
    return whole * (1 - guess.get("frozen", 0.0)) * (0.5 + guess["recipe.length"])


def first_affordable(places, seconds, most, cost, at_least=None):
    return affordable.first_affordable(places, seconds, most, cost, at_least or cost)


def test_more_is_frozen_before_the_schedule_is_shortened():
    for freeze in FREEZE:
        found = versions(TUNE, freeze)
        shares = [(guess["recipe.length"], guess["frozen"]) for guess in found]
        assert shares == [(length, frozen) for length in (0.5, *SHORTEN) for frozen in (0.0, *freeze)]
        assert all({**guess, "frozen": 0.0, "recipe.length": 0.5} == TUNE for guess in found)


@pytest.mark.parametrize(
    ("guess", "found"),
    [
        (FULL, [{}, {"recipe.length": 0.25}, {"recipe.length": 0.0}]),
        ({"frozen": 0.4}, [{}, {"frozen": 1 / 2}]),
        ({"frozen": 1.0, "recipe.length": 0.0}, [{}]),
        ({"own.momentum": 0.9, "cut": 0.5}, [{}]),
    ],
)
def test_only_what_a_guess_names_is_changed_and_only_to_less(guess, found):
    cheaper = versions(guess, FREEZE[0])
    assert cheaper == [{**guess, **change} for change in found]
    assert [is_cheaper(each, guess) for each in cheaper] == [False, *[True] * (len(found) - 1)]


@pytest.mark.parametrize(
    ("seconds", "frozen", "length", "backbone"),
    [
        (1_000, 0.0, 0.5, "good"),
        (70, 1 / 3, 0.5, "good"),
        (51, 1 / 2, 0.5, "good"),
        (49, 1 / 2, 0.25, "good"),
        (36, 1 / 3, 0.0, "good"),
        (26, 1 / 2, 0.0, "good"),
        (24, 2 / 3, 0.0, "good"),
        (16, 0.0, 0.5, "small"),
        (5.5, 1 / 2, 0.5, "small"),
        (1, 2 / 3, 0.0, "small"),  # the least of all, although there is no time for it
    ],
)
def test_the_best_version_that_fits_is_tried_on_the_best_backbone_that_allows_any(seconds, frozen, length, backbone):
    (guess,) = first_affordable([on("good", TUNE), on("small", TUNE)], seconds, 1_000, cost).values()
    assert (guess["frozen"], guess["recipe.length"], guess["backbone"]) == (frozen, length, backbone)


def test_a_place_is_not_priced_if_an_earlier_one_is_affordable():
    def places():
        yield on("good", TUNE)
        raise AssertionError

    assert first_affordable(places(), 100, 100, cost)


def test_without_any_time_there_is_one_training_of_the_shortest_kind():
    assert first_affordable([on("good", FULL, TUNE)], -5, -5, cost) == {
        1: {**TUNE, "frozen": 2 / 3, "recipe.length": 0.0}
    }


def test_the_shares_of_guesses_add_up_to_no_more_than_there_is():
    for seconds in range(17, 300, 7):
        found = first_affordable([on("good", TUNE, FULL, TUNE, TUNE)], seconds, 90, cost)
        assert found and sum(map(cost, found.values())) <= seconds + 1e-6


def test_no_training_takes_longer_than_a_single_one_may():
    (guess,) = first_affordable([on("good", TUNE)], 1_000, 40, cost).values()
    assert cost(guess) <= 40


def test_guesses_are_kept_in_their_order_as_long_as_there_is_time_for_the_cheapest_version_of_each():
    """`full` needs 50 s at least, fine-tuning 25 s."""
    found = first_affordable([on("good", TUNE, FULL, TUNE, FULL)], 70, 1_000, cost)
    assert list(found) == [0, 2]
    assert [cost(guess) for guess in found.values()] == pytest.approx([100 / 3, 100 / 3])


def test_guesses_are_dropped_before_more_than_half_is_frozen():
    """With half of the stages frozen each takes 25 s at least, otherwise 17 s."""
    assert list(first_affordable([on("good", TUNE, TUNE, TUNE)], 60, 1_000, cost)) == [0, 1]
    found = first_affordable([on("good", TUNE, TUNE, TUNE)], 20, 1_000, cost)
    assert [guess["frozen"] for guess in found.values()] == [2 / 3]


def test_what_a_guess_does_not_need_is_for_those_after_it():
    cheap = {**TUNE, "frozen": 0.9}
    found = first_affordable([on("good", cheap, TUNE)], 110, 1_000, cost)
    assert cost(found[0]) == pytest.approx(10)
    assert found[1]["frozen"] == 0.0


def test_guesses_that_train_nothing_are_always_tried_and_do_not_decide_on_the_backbone():
    head = {"strategy": "own", "backbone": "good", "recipe.length": -0.5}
    places = [on("good", head, TUNE), on("small", head, TUNE)]
    found = first_affordable(places, 12, 12, cost)
    assert {at: guess["backbone"] for at, guess in found.items()} == {0: "small", 1: "small"}
    too_short = first_affordable(places, 0.1, 0.1, cost)
    assert list(too_short) == [0, 1]
    assert first_affordable([on("good", head)], 0.1, 0.1, cost) == on("good", head)
    assert first_affordable([{}], 1, 1, cost) == {}


def test_no_training_is_measured_where_the_least_seconds_are_too_many():
    def measured(guess):
        assert guess["backbone"] == "small"
        return cost(guess)

    places = [on("good", TUNE), on("small", TUNE)]
    for seconds, most, frozen in ((12, 12, 0.0), (0.1, 12, 2 / 3), (0.1, 0.1, 2 / 3)):
        (guess,) = first_affordable(places, seconds, most, measured, cost).values()
        assert (guess["backbone"], guess["frozen"]) == ("small", frozen)
