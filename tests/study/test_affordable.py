"""First guesses freeze more, then train for fewer epochs, and only then start on another backbone."""

import pytest

from autotl.study.affordable import FREEZE, SHORTEN, first_affordable, is_cheaper, versions

TUNE = {"strategy": "fine-tune", "backbone": "good", "cut": 1.0, "frozen": 0.0, "recipe.length": 0.5}
FULL = {"strategy": "full", "backbone": "good", "recipe.length": 0.5}


def on(backbone, *guesses):
    return {at: {**guess, "backbone": backbone} for at, guess in enumerate(guesses)}


def cost(guess):
    """What is not frozen × epochs: 100 s for an unchanged guess on `good`, 10 s on `small`."""
    whole = {"good": 100.0, "small": 10.0}[guess["backbone"]]
    return whole * (1 - guess.get("frozen", 0.0)) * (0.5 + guess["recipe.length"])


def test_half_of_the_stages_are_frozen_before_the_schedule_is_shortened_and_more_after_that():
    found = [(guess["recipe.length"], guess["frozen"]) for guess in versions(TUNE)]
    shares = (0.0, *FREEZE)
    half = [(length, frozen) for length in (0.5, *SHORTEN) for frozen in shares if frozen <= 1 / 2]
    more = [(length, frozen) for length in (0.5, *SHORTEN) for frozen in shares if frozen > 1 / 2]
    assert more and found == half + more
    assert all({**guess, "frozen": 0.0, "recipe.length": 0.5} == TUNE for guess in versions(TUNE))


@pytest.mark.parametrize(
    ("guess", "found"),
    [
        (FULL, [{}, {"recipe.length": 0.25}, {"recipe.length": 0.0}]),
        ({"frozen": 0.5}, [{}, {"frozen": 2 / 3}]),
        ({"frozen": 1.0, "recipe.length": 0.0}, [{}]),
        ({"own.momentum": 0.9, "cut": 0.5}, [{}]),
    ],
)
def test_only_what_a_guess_names_is_changed_and_only_to_less(guess, found):
    assert versions(guess) == [{**guess, **change} for change in found]
    assert [is_cheaper(each, guess) for each in versions(guess)] == [False, *[True] * (len(found) - 1)]


@pytest.mark.parametrize(
    ("seconds", "frozen", "length", "backbone"),
    [
        (1_000, 0.0, 0.5, "good"),
        (70, 1 / 3, 0.5, "good"),
        (51, 1 / 2, 0.5, "good"),
        (49, 1 / 2, 0.25, "good"),
        (36, 1 / 3, 0.0, "good"),
        (26, 1 / 2, 0.0, "good"),
        (17, 2 / 3, 0.0, "good"),
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


def test_no_training_takes_longer_than_a_single_one_may():
    (guess,) = first_affordable([on("good", TUNE)], 1_000, 40, cost).values()
    assert cost(guess) <= 40


def test_the_last_guesses_are_dropped_until_each_share_is_enough():
    """`full` needs 50 s at least, and its equal share is 40 s; without the last one the others get 60 s."""
    found = first_affordable([on("good", FULL, TUNE, FULL)], 120, 1_000, cost)
    assert list(found) == [0, 1]
    assert [cost(guess) for guess in found.values()] == [50, pytest.approx(100 * 2 / 3)]


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
