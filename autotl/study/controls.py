"""The baselines that a winner is compared with: a linear probe, raw pixels, training from random weights.

A winner with random weights is compared with the best plan with pretrained ones.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

from optuna.trial import FixedTrial

from autotl.backbones.catalogue import Catalogue
from autotl.contracts import DataFacts
from autotl.engine.precision import Arithmetic
from autotl.errors import PluginError, one_line
from autotl.plan import NO_AUGMENTATION, ClassWeights, TransferPlan
from autotl.registry import Entry
from autotl.study import select
from autotl.study.guesses import place, probes_among
from autotl.study.inputs import Inputs
from autotl.study.space import OwnTrial, SearchContext
from autotl.tracking.log import TrialRecord
from autotl.tracking.probe import ProbeRow

PROBE_SECONDS = 3.0
"""About how long a linear probe takes."""


@dataclass(frozen=True)
class Control:
    """A plan that the winner is compared with; `measured` if the plan has been run already."""

    name: str
    plan: TransferPlan
    measured: dict[str, float] | None
    seconds: float
    """About how long its plan takes to run."""

    @classmethod
    def known(cls, name: str, record: TrialRecord) -> "Control":
        return cls(name, select.plan_of(record), record.metrics, record.metrics["seconds"])


def baselines(catalogue: Catalogue) -> list[str]:
    """The backbones that the linear probe names as baselines, as far as they are installed."""
    probes = probes_among(catalogue.host.strategies)[:1]
    named = [name for entry in probes for name in getattr(entry.item, "baselines", ())]
    return [name for name in named if str(name).partition(":")[0] in catalogue.host.backbones]


def controls_of(
    won: TransferPlan,
    seconds: float,
    board: Sequence[TrialRecord],
    rows: Sequence[ProbeRow],
    catalogue: Catalogue,
    facts: DataFacts,
    note: Callable[[str], None],
) -> Iterator[Control]:
    """The controls of a plan that won and took `seconds`; `note` is called with which one is missing, and why.

    `rows`: the probe's scores, on backbones that are installed.
    """
    scratch = [record for record in board if select.from_scratch(select.plan_of(record))]
    known = probes_among(catalogue.host.strategies)
    names = {entry.name for entry in known}
    probes = [
        record
        for record in board
        if record.params["strategy"] in names and not select.has_random_weights(select.plan_of(record))
    ]

    def probe(name: str, row: ProbeRow) -> Iterator[Control]:
        try:
            plan = _plan(known[0], won, row, catalogue, facts)
        except PluginError as error:
            note(f"The winner is not compared with {name}: {one_line(error)}")
        else:
            yield Control(name, plan, None, PROBE_SECONDS)

    if won.trainings and probes:
        yield Control.known(f"the best linear probe (trial {probes[0].number})", probes[0])
    elif won.trainings and known and (best := select.starting_cuts(rows)):
        yield from probe(f"a linear probe of {best[0].backbone} at {best[0].cut}", best[0])
    for name in baselines(catalogue):
        if name != won.backbone:
            last = catalogue.info(name).stages[-1]
            yield from probe(name, ProbeRow(name, last.name, last.poolings[0], accuracy=0.0))
    if select.has_random_weights(won):
        pretrained = [record for record in board if select.is_pretrained(select.plan_of(record))][:1]
        if pretrained and pretrained != probes[:1]:
            yield Control.known(f"the best plan with pretrained weights (trial {pretrained[0].number})", pretrained[0])
        return
    if scratch:
        yield Control.known(f"the best training from scratch (trial {scratch[0].number})", scratch[0])
    elif won.trainings:
        # Learning rates for pretrained weights are too low for random ones: the comparison would not be fair.
        note("The winner is not compared with training from scratch: no finished trial started from random weights.")
    elif at_random := _at_random(won, catalogue):
        yield Control("the same frozen backbone with random weights", at_random, None, seconds)


def _at_random(plan: TransferPlan, catalogue: Catalogue) -> TransferPlan | None:
    """The same plan on the same network with random weights; None if that is the plan itself."""
    network = catalogue.at_random(plan.network, plan.seed)
    if network == plan.network:
        return None
    return plan.model_copy(update={"backbone": network.backbone, "weights": network.weights})


def _plan(entry: Entry, won: TransferPlan, row: ProbeRow, catalogue: Catalogue, facts: DataFacts) -> TransferPlan:
    """The plan of a linear probe at a cell of the probe, with the data, seed and class weights of the plan that won.

    Raises: PluginError if the strategy draws anything else, or fails.
    """
    used = [phase.training.counted if phase.training else phase.options.get("class_weights") for phase in won.phases]
    weights: ClassWeights = next((each for each in get_args(ClassWeights)[1:] if each in used), "none")
    cuts = catalogue.info(row.backbone).names
    trial = FixedTrial(place(catalogue, Inputs(catalogue, facts), row, weights, cuts))
    none = catalogue.host.augmentations[NO_AUGMENTATION.name]
    context = SearchContext(
        trial,  # type: ignore[arg-type]
        catalogue=catalogue,
        backbones=[row.backbone],
        drawn={"augmentations": {none.name: none}},
        data=facts,
        data_ref=won.data,
        seed=won.seed,
        arithmetic=lambda backbone: Arithmetic(),
    )
    what = f"Strategy '{entry.name}'"
    with entry.owner.answers_for(what):
        own = OwnTrial(trial, entry, what, catalogue.host)  # type: ignore[arg-type]
        plan = entry.item.suggest(own, context)
        if not isinstance(plan, TransferPlan):
            raise TypeError(f"it suggested {type(plan).__name__}, not a plan")
    return plan
