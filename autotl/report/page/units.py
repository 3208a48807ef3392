"""Values as people read them on a page."""

import math
from collections.abc import Callable, Sequence

from autotl.engine.scale import Scale


def percent(value: float) -> str:
    """0.975 → `97.5%`."""
    return f"{100 * value:.4g}%"


def label_of(scale: Scale) -> Callable[[float], str]:
    """How an axis writes values of a metric."""
    return percent if scale.percent else "{:.4g}".format


def limits_of(scale: Scale) -> tuple[float, float]:
    """The limits of an axis for values of a metric."""
    return (0, 1) if scale.percent else (-math.inf, math.inf)


def duration(seconds: float) -> str:
    """3700 → `1 h 2 min`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.3g} s"


def listed(names: Sequence[str], last: str) -> str:
    """`a, b and c`, with `last` for `and`."""
    return f" {last} ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
