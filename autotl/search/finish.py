"""The end of a search: the winner beside its controls, the sealed test, the bundle."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from autotl.backbones.catalogue import Catalogue
from autotl.data.dataset import Dataset
from autotl.engine import metrics
from autotl.engine.fit import Bench, Fitted, fit, on_all_images
from autotl.errors import StudyError
from autotl.export import bundle
from autotl.files import write
from autotl.plan import TransferPlan, digest
from autotl.search import result as results
from autotl.search import select
from autotl.search.result import Best, Comparison, Result, Test
from autotl.search.settings import Settings
from autotl.search.watch import Watcher
from autotl.tracking.folder import StudyFolder
from autotl.tracking.log import STATES, TrialRecord


def finish(folder: StudyFolder, settings: Settings, bench: Bench, watcher: Watcher, began: float) -> Result:
    """The result of the trials so far; the one on disk where it was made from the same.

    Raises: StudyError when no trial succeeded on these images.
    """
    records = list(folder.log.records())
    known = results.load(folder)
    made_from = _made_from(records, settings, bench.dataset)
    if known and known.made_from == made_from and folder.bundle.exists():
        return known
    best = _best(records, folder.name, bench.dataset)
    assert best.plan is not None and best.value is not None
    winner = _final(best.plan, settings, bench)
    save = {"validation": best.metrics}
    bundle.save(folder.bundle, winner, bench.dataset.classes, save)
    if known and known.final == winner.plan:
        test, comparisons = known.test, known.comparisons
    else:
        for plan in _controls(best.plan, bench).values():
            progress = partial(watcher.progress, f"features of {plan.backbone}, to compare with")
            every = bench.shas("train", "stop", "rank", "test")
            bench.features.fill(plan.backbone, plan.weights, every, progress)
        controls = {name: _final(plan, settings, bench) for name, plan in _controls(best.plan, bench).items()}
        test, comparisons = _judge(winner, controls, len(records), folder.test_openings, settings.metric)
    result = Result(
        study=folder.name,
        trials={state: sum(record.state == state for record in records) for state in STATES},
        best=Best(
            trial=best.number,
            strategy=best.params["strategy"],
            plan=best.plan,
            validation=best.value,
            metrics=best.metrics,
        ),
        final=winner.plan,
        test=test,
        comparisons=comparisons,
        test_opened=len(folder.test_openings.read_text().splitlines()),
        made_from=made_from,
        seconds=time.perf_counter() - began,
        bundle=str(folder.bundle),
    )
    bundle.describe(folder.bundle, {**save, **result.model_dump(mode="json", include={"test", "comparisons"})})
    write(folder.result, result.to_json())
    return result


def _made_from(records: Sequence[TrialRecord], settings: Settings, dataset: Dataset) -> str:
    """A hash of all that a result depends on."""
    trials = [[record.number, record.state, record.plan.hash if record.plan else None] for record in records]
    return digest({"trials": trials, "refit": settings.refit, "fingerprint": dataset.fingerprint})


def _best(records: Sequence[TrialRecord], study: str, dataset: Dataset) -> TrialRecord:
    board = select.leaderboard(records, dataset.fingerprint)
    if board:
        return board[0]
    reasons = sorted({record.reason for record in records if record.reason})
    raise StudyError(
        f"No trial of study '{study}' succeeded on these images"
        + (f": {'; '.join(reasons[:3])}" if reasons else "; raise --trials.")
    )


def _judge(
    winner: Fitted, controls: Mapping[str, Fitted], trials: int, openings: Path, metric: str
) -> tuple[Test, dict[str, Comparison]]:
    """Open the sealed test, once, for the winner and its controls together."""
    guessed = winner.logits("test").argmax(1)
    guesses = {name: control.logits("test").argmax(1) for name, control in controls.items()}
    labels = winner.bench.dataset.open_test(openings, plan=winner.plan.hash, trials=trials)
    comparisons = {}
    for name, guess in guesses.items():
        difference, low, high = metrics.paired_difference(guessed == labels, guess == labels)
        value = metrics.METRICS[metric](labels, guess)
        comparisons[name] = Comparison(plan=controls[name].plan, value=value, difference=difference, low=low, high=high)
    return Test(**asdict(metrics.score(metric, labels, guessed))), comparisons


def _final(plan: TransferPlan, settings: Settings, bench: Bench) -> Fitted:
    """The plan carried out as in its trial, then on all images but the sealed ones if so wished."""
    fitted = fit(plan, bench)
    return fit(on_all_images(fitted), bench) if settings.refit else fitted


def _controls(winner: TransferPlan, bench: Bench) -> dict[str, TransferPlan]:
    """What the winner is measured against: the same network at random, and a linear classifier on pixels."""
    catalogue: Catalogue = bench.features.catalogue
    controls = {
        "the same backbone at random": select.at_random(winner),
        select.PIXELS: select.on_pixels(winner, catalogue),
    }
    return {name: plan for name, plan in controls.items() if plan is not None}
