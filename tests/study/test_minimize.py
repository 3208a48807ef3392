"""A search for a Pareto front: Optuna gets the metric and a cost."""

from optuna.study import StudyDirection
from test_limits import Recorder, searched

from autotl.engine.scale import Scale
from autotl.study import select
from autotl.study.storage import SharedStudy
from autotl.tracking.folder import StudyFolder

OPTIONS = {"strategies": ("linear-probe", "full", "scratch"), "compare": False, "prune": True}
TRIALS = 22
"""The last ones are drawn by TPE."""


def values(folder):
    """What Optuna has of each trial, and what the logs say."""
    study = SharedStudy.join(folder.storage, folder.definition.optuna)
    told = [trial.values for trial in study.optuna.trials]
    study.close()
    return told, [[record.value, record.metrics["flops"]] for record in folder.log.records()]


def test_optuna_gets_both_values_of_every_trial_and_prunes_none(host, stripes):
    watcher = Recorder()
    made, result = searched(host, stripes, watcher, trials=TRIALS, minimize="flops", pick="knee", **OPTIONS)
    told, logged = values(made.folder)
    assert told == logged and len(told) == TRIALS
    assert "With --minimize flops no trial is pruned." in watcher.notes
    study = SharedStudy.join(made.folder.storage, made.folder.definition.optuna).optuna
    assert study.directions == [StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE]
    points = {number: (Scale().order(value), cost) for number, (value, cost) in enumerate(logged)}
    front = select.front(points)
    assert {tuple(trial.values) for trial in study.best_trials} == {(-points[n][0], points[n][1]) for n in front}
    assert result.picked.cost == "flops" and result.best.plan.hash in {
        record.plan.hash for record in made.folder.log.records() if record.number in front
    }


def test_a_lost_database_is_rebuilt_with_both_values_and_draws_the_same(host, stripes):
    whole, _ = searched(host, stripes, study="whole", trials=TRIALS, minimize="params", **OPTIONS)
    parts, _ = searched(host, stripes, study="parts", trials=TRIALS - 3, minimize="params", **OPTIONS)
    parts.folder.database.unlink()
    watcher = Recorder()
    searched(host, stripes, watcher, study="parts", trials=TRIALS, **OPTIONS)  # what is minimised is part of the study
    assert any("Optuna's storage was rebuilt" in note for note in watcher.notes)
    drawn = [[record.params for record in made.folder.log.records()] for made in (whole, parts)]
    assert drawn[0] == drawn[1]
    told = SharedStudy.join(parts.folder.storage, parts.folder.definition.optuna).optuna.trials
    assert [trial.values[1] for trial in told] == [r.metrics["parameters"] for r in parts.folder.log.records()]


def test_workers_share_a_front(start, gate, stripes, tmp_path):
    words = ("--backbones", "tiny:net", "--strategies", "full,linear-probe", "--augmentations", "gate", "--reruns", "0")
    words += ("--no-compare", "--no-mlflow", "--workers", "2", "--trials", "20", "--minimize", "flops")
    search = start("search", stripes, *words, "--max-flops", "900k", "--pick", "knee", "--device", "cpu")
    assert search.wait(300) == 0, search.printed()
    folder = StudyFolder(tmp_path / "studies" / "stripes")
    told, logged = values(folder)
    assert told == logged and len(told) == 20
    assert max(cost for _, cost in logged) <= 900_000
    assert "no plan with fewer FLOPs is as good" in search.printed() and "Picked by --pick knee" in search.printed()
