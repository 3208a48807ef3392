"""First guesses that a budget has time for: what each of them freezes, how long it trains, and which are tried.

The outputs of frozen stages are computed once, and the first stages, with their large maps, are most of the cost of
training. So first up to half of the stages are frozen, then schedules become shorter, and only then more is frozen or
another backbone trained.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter

from autotl.study.guesses import Guess
from autotl.study.space import RECIPE

FROZEN, LENGTH = "frozen", f"{RECIPE}.length"
FREEZE = (1 / 3, 1 / 2, 2 / 3)
"""The shares of the stages that the cheaper versions of a first guess freeze."""
MUCH = 1 / 2
"""Freezing more than this share costs more accuracy than training for fewer epochs."""
SHORTEN = (0.25, 0.0)
"""The shares between the fewest and the most epochs that they train."""


def versions(guess: Guess) -> list[Guess]:
    """A first guess and cheaper versions of it, best first. Only what the guess itself names is changed."""
    lengths = [{}, *({LENGTH: length} for length in SHORTEN if length < _named(guess, LENGTH, 0.0))]
    frozen = [{}, *({FROZEN: share} for share in FREEZE if share > _named(guess, FROZEN, 1.0))]
    found = [{**guess, **shorter, **more} for shorter in lengths for more in frozen]
    return sorted(found, key=lambda each: _named(each, FROZEN, 0.0) > MUCH)


def first_affordable(
    places: Iterable[Mapping[int, Guess]], seconds: float, most: float, cost: Callable[[Guess], float]
) -> dict[int, Guess]:
    """The numbered guesses at the first place with time for a training, each in its best affordable version.

    If there is no such place, the only training is the one that takes the shortest time.

    `places`: the same guesses on one backbone after another; `seconds`: for all of them together; `most`: for a single
    one; `cost(guess)`: the seconds that a training with these parameters takes, 0 for a guess that trains nothing.
    """
    shortest: tuple[float, dict[int, Guess]] | None = None
    for guesses in places:
        priced = {at: [(cost(each), each) for each in versions(guess)] for at, guess in guesses.items()}
        least = {at: min(choices, key=itemgetter(0)) for at, choices in priced.items()}
        free = {at: guesses[at] for at, (needed, _) in least.items() if not needed}
        trainings = {at: choices for at, choices in priced.items() if at not in free}
        found = _shared_out(trainings, seconds, most)
        if found or not trainings:
            return dict(sorted({**free, **found}.items()))
        at = min(trainings, key=lambda at: least[at][0])
        if shortest is None or least[at][0] < shortest[0]:
            shortest = least[at][0], dict(sorted({**free, at: least[at][1]}.items()))
    return shortest[1] if shortest else {}


def _shared_out(priced: Mapping[int, Sequence[tuple[float, Guess]]], seconds: float, most: float) -> dict[int, Guess]:
    """The best version of each guess that its share of the seconds allows; `priced`: its versions with their seconds.

    The last guesses are dropped while there is one whose share would not be enough for any of its versions. What a
    guess does not need of its share is for those after it.
    """
    least = {at: min(needed for needed, _ in choices) for at, choices in priced.items()}
    kept = [at for at in priced if least[at] <= most]
    while too_long := [at for at in kept if least[at] > seconds / len(kept)]:
        kept.remove(too_long[-1])
    found = {}
    for turn, at in enumerate(kept):
        share = max(least[at], min(most, seconds / (len(kept) - turn)))
        needed, found[at] = next(each for each in priced[at] if each[0] <= share)
        seconds -= needed
    return found


def is_cheaper(guess: Guess, usual: Guess) -> bool:
    """Whether a version of a first guess freezes more or trains fewer epochs than this one."""
    return any(guess.get(name) != usual.get(name) for name in (FROZEN, LENGTH))


def _named(guess: Guess, name: str, otherwise: float) -> float:
    value = guess.get(name)
    return value if isinstance(value, int | float) else otherwise
