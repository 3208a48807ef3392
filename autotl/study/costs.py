"""What a network may cost, and large numbers as people write and read them: `5M`, `1.23 M`."""

import math
import re
from dataclasses import dataclass
from typing import Any

from autotl.plan import Minimized

POWERS = {"": 0, "k": 1, "m": 2, "g": 3}
_AMOUNT = re.compile(r"(\d+\.?\d*(?:e\+?\d+)?|\.\d+)\s*([kmg]?)", re.IGNORECASE)


@dataclass(frozen=True)
class Cost:
    """A cost of a network that is known without training it."""

    metric: str
    """The metric of a trained plan that has it."""
    limit: str
    """The setting that limits it."""
    unit: str
    less: str
    """How a plan with less of it is described."""
    by_view: bool = True
    """Whether each view of an image costs as much again."""

    def text(self, value: float) -> str:
        return f"{count(value)} {self.unit}"


COSTS: dict[Minimized, Cost] = {
    "params": Cost("parameters", "max_params", "parameters", "fewer parameters", by_view=False),
    "flops": Cost("flops", "max_flops", "FLOPs per image", "fewer FLOPs"),
    "latency": Cost("latency_ms", "max_latency_ms", "ms per image", "lower latency"),
}
USUAL: Minimized = "flops"
"""The cost that accuracy is compared with unless the user names another one to minimise."""


def amount(value: Any) -> int | None:
    """`5M`, `600 M`, `1.5g`, `2k`, or a number alone.

    Raises: ValueError for anything else, and for less than 1.
    """
    if value is None:
        return None
    match = _AMOUNT.fullmatch(str(value).strip())
    if isinstance(value, bool) or not match:
        raise ValueError(f"'{value}' is not an amount; allowed are 5000000, 5M, 1.5G, 300k and the like")
    number = float(match[1]) * 1000 ** POWERS[match[2].lower()]
    if not 1 <= number < math.inf:
        raise ValueError(f"'{value}' is out of range: it must be at least 1 and finite")
    return round(number)


def count(number: float) -> str:
    """1234567 → `1.23 M`."""
    rounded = float(f"{number:.3g}")
    power = min(4, max(0, int(math.log10(max(1.0, rounded))) // 3))
    return f"{rounded / 1000**power:.3g}{('', ' k', ' M', ' G', ' T')[power]}"
