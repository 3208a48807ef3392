"""The trials before the sampler starts: linear probes at promising cuts, and the first guess of each strategy."""

import json
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial

from autotl.backbones.catalogue import Catalogue
from autotl.errors import PluginError
from autotl.plan import HEADS, ClassWeights, HeadKind
from autotl.registry import Entry
from autotl.study import select
from autotl.study.inputs import Inputs
from autotl.study.space import DRAWN, HEAD_NAMES, head_kinds, pooling_name, share_of
from autotl.tracking.probe import ProbeRow

PROBES = 5
"""How many backbones get a linear probe."""
HEAD_WIDTH_LOG2 = 8
"""The base-2 logarithm of the width of a head's new layer in a first guess."""

Guess = dict[str, object]
"""Parameters of a trial."""


class Guesses:
    """The trials of a study whose parameters follow from the probe."""

    def __init__(
        self,
        catalogue: Catalogue,
        inputs: Inputs,
        strategies: Mapping[str, Entry],
        drawn: Mapping[str, Mapping[str, Entry]],
        skip: Callable[[PluginError], None],
        *,
        class_weights: ClassWeights,
        heads: Sequence[HeadKind],
        cuts: Callable[[str], Sequence[str]],
        classifiers: Sequence[str],
    ) -> None:
        """`class_weights` are those of the metric; `cuts(backbone)`: those that trials draw. `skip` is called with the
        error of a first guess that cannot be tried, or only with changes."""
        self._catalogue, self._inputs = catalogue, inputs
        self._strategies, self._drawn = strategies, drawn
        self._skip, self._reported = skip, set[str]()
        self._heads, self._classifiers, self._cuts = heads, classifiers, cuts
        self._class_weights = class_weights

    def linear_probes(self, rows: Sequence[ProbeRow]) -> list[Guess]:
        """A linear probe of each backbone, the best one first."""
        found = probes_among(self._strategies.values())[:1]
        return [
            {"strategy": entry.name, **self._place(row)}
            for entry in found
            for row in select.starting_cuts(rows)[:PROBES]
        ]

    def other_probes(self, rows: Sequence[ProbeRow]) -> list[Guess]:
        """Linear probes on all backbones except the first."""
        return [guess for guess in self.linear_probes(rows) if guess["backbone"] != rows[0].backbone]

    def of_strategies(self, rows: Sequence[ProbeRow], trained: ProbeRow, suggested: Container[str]) -> list[Guess]:
        """The first guess of each strategy at `trained`, of the `suggested` ones first."""
        place, backbones = self._place(trained), {row.backbone for row in rows}
        ordered = sorted(self._strategies.values(), key=lambda entry: entry.name not in suggested)
        return [guess for entry in ordered if (guess := self._first(entry, place, backbones))]

    def _first(self, entry: Entry, place: Guess, backbones: Container[object]) -> Guess | None:
        """The first guess of a strategy: at `place`, unless it names another one on one of these backbones."""
        try:
            with entry.owner.answers_for(f"Strategy '{entry.name}'", "has a first guess that cannot be tried"):
                first = getattr(entry.item, "first_guess", None)
                if first is None:
                    return None
                guess: Guess = {"strategy": entry.name, **place, **first}
                json.dumps(guess)  # as the storage does
        except PluginError as error:
            self._report(error)
            return None
        # What the study does not use is replaced; what is not installed at all is the author's mistake.
        if guess["backbone"] not in backbones:
            self._require_known(entry, lambda: self._catalogue.card(str(guess["backbone"])))
            guess |= place
        for name, kind in DRAWN.items():
            if name in guess and guess[name] not in self._drawn[kind]:
                self._require_known(entry, partial(self._catalogue.host.registries[kind].__getitem__, str(guess[name])))
            if name in guess and (guess[name] not in self._drawn[kind] or len(self._drawn[kind]) == 1):
                del guess[name]  # it is not drawn
        for name in HEAD_NAMES:
            if guess.get(name) in HEADS and guess[name] not in self._heads:
                guess[name] = place[name]
        return guess

    def _require_known(self, entry: Entry, look_up: Callable[[], object]) -> None:
        """Report a first guess that names something that is not installed."""
        try:
            look_up()
        except PluginError as error:
            how = f"has a first guess that names something unknown, and is tried without it: {error}"
            self._report(entry.owner.fault(f"Strategy '{entry.name}'", how))

    def _report(self, error: PluginError) -> None:
        """Report an error once, also if several places are tried."""
        if str(error) not in self._reported:
            self._reported.add(str(error))
            self._skip(error)

    def _place(self, row: ProbeRow) -> Guess:
        """The parameters of a cell of the probe, with class weights that suit the metric.

        The head is the first that the user named and that the cut allows, the classifier the first that was named;
        so is the pooling of a head that is trained by gradient descent, if any was named.
        """
        heads = {name: kinds[0] for name in HEAD_NAMES if (kinds := head_kinds(name, self._heads))}
        found = place(self._catalogue, self._inputs, row, self._class_weights, self._cuts(row.backbone))
        classifier = {"classifier": self._classifiers[0]} if self._classifiers else {}
        return {**found, **heads, **classifier, "head_width_log2": HEAD_WIDTH_LOG2, "head_pooling": 0.0}


def place(
    catalogue: Catalogue, inputs: Inputs, row: ProbeRow, class_weights: ClassWeights, cuts: Sequence[str]
) -> Guess:
    """A backbone, one of the cuts that are drawn and a pooling as parameters of a trial."""
    return {
        "backbone": row.backbone,
        "cut": share_of(cuts.index(row.cut), len(cuts)),
        pooling_name(catalogue.info(row.backbone).stage(row.cut).poolings): row.pooling,
        "class_weights": class_weights,
        "sampling": "shuffled",
        **inputs.guess(row.backbone),
    }


def probes_among(strategies: Iterable[Entry]) -> list[Entry]:
    """The strategies that are linear probes. One that cannot be loaded is none; the search has reported it."""
    found = []
    for entry in strategies:
        with suppress(PluginError):
            if getattr(entry.item, "is_probe", False):
                found.append(entry)
    return found
