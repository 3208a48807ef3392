"""The fourth part of a page: pictures of the search."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

from autotl.plan import TransferPlan
from autotl.report.page.chart import COLOURS, Axis, Chart, Dot, Series, chart, thinned
from autotl.report.page.study import Finished
from autotl.report.page.units import label_of, limits_of, percent
from autotl.report.tables import frozen
from autotl.study import select
from autotl.study.costs import COSTS, USUAL, Cost, count
from autotl.study.select import plan_of, value_of
from autotl.tracking.log import TrialRecord

BEST = 5
"""How many of the best plans are shown stage by stage."""
FEW = 20
"""Of more plans than this, those that are far worse than the others are not shown."""
OTHERS, WINNER = "others", "winner"


def charts(study: Finished) -> tuple[Chart, ...]:
    """Those for which the study has records."""
    made = [_probe(study), *_costs(study), _history(study), *_curves(study), _frozen(study), _depth(study)]
    return tuple(each for each in made if each)


def _probe(study: Finished) -> Chart | None:
    cuts = {name: select.by_cut(row for row in study.probe if row.backbone == name) for name in _backbones(study)}
    ranked = sorted(cuts, key=lambda name: -max(cuts[name].values()))
    series = []
    for number, name in enumerate(ranked[:COLOURS]):
        found = cuts[name]
        top = max(found, key=found.__getitem__)
        dots = [
            Dot(at / len(found), value, f"{name}, {cut}: {percent(value)}", 5 if cut == top else 2.5, cut == top)
            for at, (cut, value) in enumerate(found.items(), 1)
        ]
        series.append(Series(f"{name}, best at {top}", dots, number, line=True))
    hidden = f" The best {COLOURS} of {len(ranked)} backbones are shown." if len(ranked) > COLOURS else ""
    return chart(
        "Where to cut each backbone",
        series,
        Axis("cut, as a share of the backbone's stages", percent, within=(0, 1)),
        Axis("accuracy on held-out train images", percent, within=(0, 1)),
        f"Accuracy of a linear classifier on the features of each cut.{hidden}",
    )


def _backbones(study: Finished) -> list[str]:
    return list(dict.fromkeys(row.backbone for row in study.probe))


def _costs(study: Finished) -> Iterator[Chart | None]:
    shown = _near(study, study.board)
    for cost in COSTS.values():
        if all(cost.metric in record.metrics for record in shown):
            yield _cost(study, shown, cost)


def _cost(study: Finished, shown: Sequence[TrialRecord], cost: Cost) -> Chart | None:
    points = {record.number: (study.scale.order(value_of(record)), record.metrics[cost.metric]) for record in shown}
    front = select.front(points)
    sized = cost is COSTS[USUAL]
    largest = max((record.metrics["parameters"] for record in shown), default=1.0) or 1.0

    def dot(record: TrialRecord) -> Dot:
        area = record.metrics["parameters"] / largest
        return Dot(
            max(record.metrics[cost.metric], 1e-3),
            value_of(record),
            _what(study, record, cost.text(record.metrics[cost.metric])),
            2.5 + 9 * math.sqrt(area) if sized else 3.5,
            record.number in front,
            WINNER * (record is study.winner),
        )

    best = sorted((record for record in shown if record.number in front), key=lambda each: each.metrics[cost.metric])
    line = Series(
        f"no plan with {cost.less} is as good",
        [Dot(max(each.metrics[cost.metric], 1e-3), value_of(each)) for each in best],
        None,
        line=True,
        bare=True,
    )
    hidden = len(study.board) - len(shown)
    notes = ["The larger a circle, the more parameters."] * sized
    notes += [f"{hidden:,} plans that are much worse are not shown."] * (hidden > 0)
    return chart(
        f"{study.metric} against {cost.unit}",
        [line, *_by_strategy(shown, dot)],
        Axis(cost.unit, "{:g}".format if cost.metric == "latency_ms" else count, log=True),
        _validation(study),
        " ".join(notes),
    )


def _near(study: Finished, records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Completed trials without those that are far worse than the best of each strategy, which would squeeze the
    others; if there are few, all of them."""
    if len(study.board) <= FEW:
        return list(records)
    best: dict[str, float] = {}
    for record in study.board:
        best.setdefault(record.params["strategy"], study.scale.order(value_of(record)))
    worst, first = max(best.values(), default=0.0), min(best.values(), default=0.0)
    limit = worst + max(0.02, 0.3 * (worst - first))
    return [record for record in records if study.scale.order(value_of(record)) <= limit]


def _validation(study: Finished) -> Axis:
    return Axis(f"validation {study.metric}", label_of(study.scale), within=limits_of(study.scale))


def _by_strategy(records: Iterable[TrialRecord], dot: Callable[[TrialRecord], Dot]) -> list[Series]:
    """A series for each strategy, by the order of its first record; the last ones together if they are many."""
    found: dict[str, list[TrialRecord]] = {}
    for record in records:
        found.setdefault(record.params["strategy"], []).append(record)
    names = sorted(found)
    series = [Series(name, [dot(each) for each in found[name]], at) for at, name in enumerate(names[:COLOURS])]
    rest = [dot(each) for name in names[COLOURS:] for each in found[name]]
    return [*series, Series(OTHERS, rest, None)]


def _what(study: Finished, record: TrialRecord, more: str = "") -> str:
    plan = plan_of(record)
    name = f"trial {record.number}: {record.params['strategy']}, {plan.backbone} up to {plan.cut}"
    return f"{name}, {study.scale.text(value_of(record))}{f', {more}' if more else ''}"


def _history(study: Finished) -> Chart | None:
    done = [record for record in study.records if record.state == "complete" and record.plan]
    shown = _near(study, done)
    steps: list[Dot] = []
    for record in sorted(done, key=lambda record: record.number):
        value = value_of(record)
        if not steps or study.scale.order(value) < study.scale.order(steps[-1].y):
            steps += [Dot(record.number, steps[-1].y)] if steps else []
            steps.append(Dot(record.number, value))
    if steps:
        steps.append(Dot(max(record.number for record in study.records), steps[-1].y))
    states = {state: study.result.trials.get(state, 0) for state in ("pruned", "failed", "interrupted")}
    ended = ", ".join(f"{number:,} {state}" for state, number in states.items() if number)
    notes = [f"Without value: {ended}."] * bool(ended)
    notes += [f"{len(done) - len(shown):,} trials that are much worse are not shown."] * (len(shown) < len(done))

    def dot(record: TrialRecord) -> Dot:
        won = record is study.winner
        return Dot(record.number, value_of(record), _what(study, record), 3.5, won, WINNER * won)

    return chart(
        "History of the search",
        [
            Series("best so far", steps, None, line=True, bare=True),
            *_by_strategy(shown, dot),
        ],
        Axis("trial", "{:.0f}".format, within=(-0.5, math.inf)),
        _validation(study),
        " ".join(notes),
    )


def _frozen(study: Finished) -> Chart | None:
    """Accuracy by how much of the network stays frozen; None if it is the same share in all plans."""
    shares: dict[int, float] = {}
    for record in _near(study, study.board):
        plan = plan_of(record)
        stages, last = study.stages(plan.backbone), frozen(plan)
        kept = stages[: stages.index(plan.cut) + 1] if plan.cut in stages else []
        if last in ("all", "none") or last in kept:
            ends = {"all": 1.0, "none": 0.0}
            shares[record.number] = ends[last] if last in ends else (kept.index(last) + 1) / len(kept)
    if len(set(shares.values())) < 2:
        return None

    def dot(record: TrialRecord) -> Dot:
        won, share = record is study.winner, shares[record.number]
        return Dot(share, value_of(record), _what(study, record, f"{share:.0%} frozen"), 3.5, won, WINNER * won)

    return chart(
        "How much to freeze",
        _by_strategy([record for record in study.board if record.number in shares], dot),
        Axis("frozen share of the network's stages", percent, within=(-0.03, 1.03)),
        _validation(study),
        "At 100% only the classifier is trained, at 0% the whole network.",
    )


def _curves(study: Finished) -> Iterator[Chart | None]:
    """The learning curves of the winner; if it was not trained by gradient descent, of the best plan that was."""
    winner = study.winner
    record = winner if winner and winner.epochs else next((each for each in study.board if each.epochs), None)
    if record is None:
        return
    plan = plan_of(record)
    whose = "the winner" if record is winner else "the best plan trained by gradient descent"
    marks = [
        (plan.epochs(number) + 0.5, f"phase {number + 1}")
        for number in range(1, len(plan.phases))
        if 0 < plan.epochs(number) < plan.epochs()
    ]
    for what in dict.fromkeys(("loss", study.metric)):
        series = []
        for at, split in enumerate(("train", "early_stop", "val")):
            name = f"{split}.{what}"
            dots = [
                Dot(step, epoch[name], f"epoch {step}, {split}: {epoch[name]:.4g}", 2.5)
                for epoch in record.epochs
                if name in epoch
                for step in [plan.epochs(int(epoch["phase"]) - 1) + int(epoch["epoch"])]
            ]
            series.append(Series(split, dots, at, line=True))
        axis = Axis(what, label_of(study.scale), within=limits_of(study.scale)) if what == study.metric else Axis(what)
        note = f"Trial {record.number}, {record.params['strategy']} of {plan.backbone}, epoch by epoch."
        title = f"Learning curve of {whose}: {what}"
        yield chart(title, series, Axis("epoch"), axis, note, marks)


def _depth(study: Finished) -> Chart | None:
    """The learning rate of each stage in the best plans that train some."""
    trained = [record for record in study.board if any(each.stage_lr for each in plan_of(record).trainings)][:BEST]
    series = []
    for number, record in enumerate(trained):
        plan = plan_of(record)
        lrs = next(each.stage_lr for each in reversed(plan.trainings) if each.stage_lr)
        places = _places(plan, study.stages(plan.backbone), list(lrs))
        dots = [
            Dot(place, lr, f"trial {record.number}, {stage}: {lr:.2g}", 3)
            for place, (stage, lr) in zip(places, lrs.items(), strict=True)
            if lr > 0
        ]
        head = plan.trainings[-1].head_lr
        dots += [Dot(1.15, head, f"trial {record.number}, head: {head:.2g}", 4, strong=True)] if head > 0 else []
        last = frozen(plan)
        name = f"trial {record.number}, {record.params['strategy']} of {plan.backbone}"
        kept = "nothing frozen" if last == "none" else f"frozen up to {last}"
        series.append(Series(f"{name} ({study.scale.text(value_of(record))}, {kept})", dots, number, line=True))
    shares = [(share, f"{share:.0%}") for share in (0.25, 0.5, 0.75, 1.0)]
    return chart(
        "Learning rate by depth in the best trained plans",
        [Series(each.name, thinned(each.dots), each.colour, line=True) for each in series],
        Axis("stage, as a share of the backbone's stages; then the head", ticks=[*shares, (1.15, "head")]),
        Axis("learning rate", "{:g}".format, log=True),
        "Frozen stages have no learning rate.",
    )


def _places(plan: TransferPlan, stages: Sequence[str], trained: Sequence[str]) -> list[float]:
    """For each trained stage, its share of the backbone's depth."""
    known = list(stages) if set(trained) <= set(stages) else list(trained)
    return [(known.index(stage) + 1) / len(known) for stage in trained]
