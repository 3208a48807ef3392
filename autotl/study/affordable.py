"""First guesses that a budget has time for: what each of them freezes, how long it trains, and which are tried.

The outputs of frozen stages are computed once, and the first stages, with their large maps, are most of the cost of
training. So first up to half of the stages are frozen, then schedules become shorter, then guesses are dropped. Only if
none fits even so, more is frozen, and only then another backbone is trained.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

from autotl.study.guesses import Guess
from autotl.study.space import RECIPE

FROZEN, LENGTH = "frozen", f"{RECIPE}.length"
FREEZE = ((1 / 3, 1 / 2), (2 / 3,))
"""The shares of the stages that cheaper versions of a first guess freeze: the second ones if none of the first fits."""
SHORTEN = (0.25, 0.0)
"""The shares between the fewest and the most epochs that they train."""


def versions(guess: Guess, freeze: Sequence[float]) -> list[Guess]:
    """A first guess and cheaper versions of it, best first. Only what the guess itself names is changed."""
    lengths = [{}, *({LENGTH: length} for length in SHORTEN if length < _named(guess, LENGTH, 0.0))]
    frozen = [{}, *({FROZEN: share} for share in freeze if share > _named(guess, FROZEN, 1.0))]
    return [{**guess, **shorter, **more} for shorter in lengths for more in frozen]


def first_affordable(
    places: Iterable[Mapping[int, Guess]],
    seconds: float,
    most: float,
    cost: Callable[[Guess], float],
    at_least: Callable[[Guess], float],
) -> dict[int, Guess]:
    """The numbered guesses at the first place with time for a training, each in its best affordable version.

    If there is no such place, the only training is the one that takes the shortest time.

    `places`: the same guesses on one backbone after another; `seconds`: for all of them together; `most`: for a single
    one; `cost(guess)`: the seconds that a training with these parameters takes; `at_least(guess)`: a lower limit that
    is known without measuring a training, 0 for a guess that trains nothing.
    """
    shortest: tuple[bool, float, dict[int, Guess]] | None = None
    for guesses in places:
        limits = {at: at_least(_cheapest(guess)) for at, guess in guesses.items()}
        trainings = {at: guess for at, guess in guesses.items() if limits[at]}
        free = {at: guess for at, guess in guesses.items() if not limits[at]}
        if not trainings:
            return free
        hopeless = min(limits[at] for at in trainings) > most
        for freeze in () if hopeless else FREEZE:
            priced = {at: [(cost(each), each) for each in versions(guess, freeze)] for at, guess in trainings.items()}
            if found := _shared_out(priced, seconds, most):
                return dict(sorted({**free, **found}.items()))
        needed = {at: limits[at] if hopeless else cost(_cheapest(guess)) for at, guess in trainings.items()}
        at = min(needed, key=needed.__getitem__)
        if shortest is None or (hopeless, needed[at]) < shortest[:2]:
            shortest = hopeless, needed[at], {**free, at: _cheapest(guesses[at])}
    return dict(sorted(shortest[2].items())) if shortest else {}


def _cheapest(guess: Guess) -> Guess:
    return versions(guess, FREEZE[-1])[-1]


def _shared_out(priced: Mapping[int, Sequence[tuple[float, Guess]]], seconds: float, most: float) -> dict[int, Guess]:
    """The best version of each guess that its share of the seconds allows; `priced`: its versions with their seconds.

    Guesses are kept in their order, each if there is time for its cheapest version. The remaining seconds are divided
    equally; those that a guess does not need are for the ones after it.
    """
    least = {at: min(needed for needed, _ in choices) for at, choices in priced.items()}
    kept: list[int] = []
    spare = seconds
    for at, needed in least.items():
        if needed <= min(most, spare):
            kept.append(at)
            spare -= needed
    found = {}
    for turn, at in enumerate(kept):
        share = max(least[at], min(most, least[at] + spare / (len(kept) - turn)))
        needed, found[at] = next(each for each in priced[at] if each[0] <= share)
        spare -= needed - least[at]
    return found


def is_cheaper(guess: Guess, usual: Guess) -> bool:
    """Whether a version of a first guess freezes more or trains fewer epochs than this one."""
    return any(guess.get(name) != usual.get(name) for name in (FROZEN, LENGTH))


def _named(guess: Guess, name: str, otherwise: float) -> float:
    value = guess.get(name)
    return value if isinstance(value, int | float) else otherwise
