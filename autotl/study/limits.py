"""The limits on what a network may cost: which cuts, inputs and heads are within them."""

from collections.abc import Iterator, Mapping, Sequence

from autotl.backbones.catalogue import RANDOM, Catalogue
from autotl.contracts import BackboneInfo, StageInfo
from autotl.engine import head_kinds
from autotl.plan import Head, Input
from autotl.study.costs import COSTS, count

Costs = dict[str, float]
"""What a network costs, by the settings that limit it."""
LIMITED = {cost.limit: cost for cost in COSTS.values()}
LINEAR = Head(pooling="avg")


class Limits:
    """The limits of a study; what a network costs is known before it is trained."""

    def __init__(
        self,
        catalogue: Catalogue,
        classes: int,
        most: Mapping[str, float] | None = None,
        heads: Sequence[Head] = (),
        latency: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        """`most`: by the names of the settings. `heads`: besides a linear one, the smallest of each kind.
        `latency`: milliseconds up to each stage, by `timed`."""
        self._catalogue, self._classes = catalogue, classes
        self._most = dict(most or {})
        self._heads = (LINEAR, *heads)
        self._latency = latency or {}

    def __str__(self) -> str:
        return " and ".join(f"--{name.replace('_', '-')} {count(most)}" for name, most in self._most.items())

    def cuts(self, name: str, input: Input) -> tuple[str, ...]:
        """The cuts of a backbone that are within the limits with a linear head and with the smallest of each kind."""
        info = self._catalogue.info(name, input)
        return tuple(stage.name for stage in info.stages if not self._over(self._needed(info, stage)))

    def excess(self, name: str, input: Input, cut: str, head: Head) -> str:
        """What a network costs beyond the limits, in words; empty if it is within them."""
        if not self._most:
            return ""
        return _words(self._over(self._costs(self._catalogue.info(name, input), cut, head)))

    def least(self, name: str, input: Input) -> str:
        """What the cheapest cut of a backbone costs beyond the limits, in words."""
        info = self._catalogue.info(name, input)
        every = (self._over(self._needed(info, stage)) for stage in info.stages)
        return _words(min(every, key=lambda over: max(over[name] / self._most[name] for name in over)))

    def latency(self, name: str, input: Input, cut: str) -> Costs:
        """The latency of a network without its head, as metrics; empty if the study does not need it."""
        measured = self._latency.get(timed(name, input))
        return {"latency_ms": measured[self._catalogue.info(name, input).names.index(cut)]} if measured else {}

    def _needed(self, info: BackboneInfo, stage: StageInfo) -> Costs:
        """What a cut after this stage costs, with the head that costs most."""
        every = [self._costs(info, stage.name, head) for head in self._allowed(stage)] if self._most else []
        return {name: max(costs[name] for costs in every) for name in self._most}

    def _over(self, costs: Costs) -> Costs:
        return {name: costs[name] for name, most in self._most.items() if costs[name] > most}

    def _costs(self, info: BackboneInfo, cut: str, head: Head) -> Costs:
        costs: Costs = {
            "max_params": info.parameters(cut) + head_kinds.parameters(head, info, cut, self._classes),
            "max_flops": info.flops(cut) + head_kinds.flops(head, info, cut, self._classes),
        }
        if "max_latency_ms" in self._most:
            costs["max_latency_ms"] = self.latency(info.name, info.input, cut)["latency_ms"]
        return costs

    def _allowed(self, stage: StageInfo) -> Iterator[Head]:
        return (head for head in self._heads if head_kinds.is_possible(head, stage))


def timed(name: str, input: Input) -> str:
    """What was timed: a backbone, with any weights, at an input size."""
    return f"{name.removesuffix(RANDOM)} at {input.size} px"


def _words(costs: Costs) -> str:
    return " and ".join(LIMITED[name].text(value) for name, value in costs.items())
