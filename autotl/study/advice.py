"""The advice for a data set: which of the four situations of transfer learning it is in, and what to try first.

Whether to train only a classifier or the network too depends on how many images there are, and on how similar they are
to those of the pretraining (Yosinski et al. 2014, arXiv 1411.1792; Kornblith et al. 2019, arXiv 1805.08974).
"""

import math
from collections.abc import Iterable, Sequence
from itertools import product

from autotl.contracts import Situation
from autotl.engine.scale import Scale
from autotl.errors import PluginError
from autotl.registry import Entry
from autotl.study import select
from autotl.tracking.advice import Advice, AdviceTested, Similarity
from autotl.tracking.log import TrialRecord

FEW, MANY = 50, 200
"""Images of each class up to which there are few, and from which on there are many."""
SIMILAR = 0.18
"""The `Similarity.gain` from which on images are similar to those of the pretraining."""
FALL = 0.03
"""How much less accurate the last cut is than the best one if its features are too specific to the pretraining."""


def advise(per_class: float, similarity: Similarity, strategies: Iterable[Entry]) -> Advice:
    """The advice; strategies that suit the situation are suggested, in the given order."""
    amounts = ["few"] * (per_class < MANY) + ["many"] * (per_class > FEW)
    situations: list[Situation] = [
        f"{amount}-{kin}"  # type: ignore[misc]
        for amount, kin in product(amounts, kins(similarity))
    ]
    known = list(strategies)
    suggested = [entry.name for entry in known if set(situations).intersection(_suits(entry))]
    return Advice(
        per_class=per_class,
        similarity=similarity,
        situations=tuple(situations),
        suggested=tuple(suggested),
        others=tuple(entry.name for entry in known if entry.name not in suggested),
    )


def kins(similarity: Similarity) -> list[str]:
    """`similar` or `different`, or both if too few images were measured to tell."""
    best = similarity.best.pretrained
    error = math.sqrt(best * (1 - best) / similarity.images)
    noise = error / (1 - similarity.chance)
    if similarity.fall > max(FALL, 2 * error):
        return ["different"]
    return ["similar"] * (similarity.gain > SIMILAR - noise) + ["different"] * (similarity.gain < SIMILAR + noise)


def _suits(entry: Entry) -> Sequence[str]:
    """The situations that a strategy suits; none if it cannot be loaded, which the search reports."""
    try:
        return tuple(getattr(entry.item, "suits", ()))
    except PluginError:
        return ()


def tested(advice: Advice, board: Sequence[TrialRecord], images: int, scale: Scale) -> AdviceTested:
    """Whether the best plan is a suggested one, or as good as the best suggested one.

    `images`: how many images the values were measured on. Values that are no shares have no known error: then only the
    best plan counts.
    """
    own = next((record for record in board if record.params["strategy"] in advice.suggested), None)
    best = select.value_of(board[0])
    if own is None:
        return AdviceTested(advice=advice, trial=None, value=None, best=best, held=False)
    value = select.value_of(own)
    error = math.sqrt(best * (1 - best) / images) if scale.percent else 0.0
    held = scale.order(value) - scale.order(best) <= error
    return AdviceTested(advice=advice, trial=own.number, value=value, best=best, held=held)
