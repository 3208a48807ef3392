"""A budget covers everything, and skipped steps are listed."""

import time

import optuna
import pytest

from autotl.builtin import logistic
from autotl.engine.fit import fit
from autotl.engine.stage_times import by_flops
from autotl.errors import StudyError
from autotl.export import bundle
from autotl.plan import Phase, Stop, Training, TransferPlan
from autotl.study import affordable, closing, estimate
from autotl.study import search as searching
from autotl.study.budget import END_SHARE, MARGIN, Budget, OutOfTime
from autotl.study.reruns import Contender, Reruns, SeedRun
from autotl.study.search import Search
from autotl.study.settings import Settings
from autotl.study.storage import GUESS
from autotl.study.suggestions import Suggestions
from autotl.study.trials import Trials, _TrialObserver
from autotl.study.watch import Silent
from autotl.study.work import Work
from autotl.study.worker import Failed, Worker
from autotl.tracking.log import TrialRecord
from autotl.tracking.probe import ProbeRow


class Notes(Silent):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)

    def budget(self, left):
        self.left = left


def search(host, data, used=0.0, watcher=None, **settings):
    """A search with a budget of one minute, of which some seconds are used."""
    values = {
        "data": data,
        "budget": 60.0,
        "trials": 1_000,
        "backbones": ("tiny:net",),
        "strategies": ("linear-probe", "fine-tune"),
        "augmentations": ("none",),
        "device": "cpu",
        **settings,
    }
    return Search(Settings(**values), host, watcher or Silent(), began=time.monotonic() - used)


def take(monkeypatch, seconds):
    """Let one image through the whole of a backbone, forward and backward, take as long as `seconds(name)` says."""
    monkeypatch.setattr(
        Suggestions, "stage_times", lambda self, name: by_flops(self.bench.catalogue.info(name), seconds(name))
    )


def try_all(monkeypatch):
    """Let all first guesses be tried as they are, with or without time for them."""
    monkeypatch.setattr(affordable, "first_affordable", lambda places, *_: next(iter(places)))


@pytest.mark.parametrize(
    ("seconds", "budget", "first"),
    [
        ({"tiny:net": 1.0, "tiny:deep": 0.0001}, None, "tiny:net"),
        ({"tiny:net": 1.0, "tiny:deep": 0.0001}, 60.0, "tiny:deep"),
        ({"tiny:net": 0.0001, "tiny:deep": 0.0001}, 60.0, "tiny:net"),
        ({"tiny:net": 2.0, "tiny:deep": 1.0}, 60.0, "tiny:deep"),
    ],
)
def test_trainings_start_with_the_best_backbone_that_the_budget_allows(
    host, stripes, monkeypatch, seconds, budget, first
):
    """Of two that are too expensive, with the cheaper one."""
    take(monkeypatch, seconds.__getitem__)
    names = ("tiny:net", "tiny:deep")
    watcher = Notes()
    made = search(host, stripes, backbones=names, budget=budget, trials=3, watcher=watcher, reruns=0, compare=False)
    looks_best = [ProbeRow("tiny:deep", "3.1", "avg", 0.5), ProbeRow("tiny:net", "2.1", "avg", 0.9)]
    monkeypatch.setattr(Work, "_probe", lambda work, name: [row for row in looks_best if row.backbone == name])
    made.run()
    trained = [record for record in made.folder.log.records() if record.params["strategy"] == "fine-tune"]
    assert trained[0].params["backbone"] == first
    said = [note for note in watcher.notes if "Training starts with" in note]
    assert said == ([] if first == "tiny:net" else [said[0]])
    assert all("starts with tiny:deep: --budget is too short for tiny:net." in note for note in said)


def work_of(made):
    """The work of a search that is opened and not run."""
    with made.folder.lock():
        opened = made.opening.open()
    return Work(opened, made._crew(opened, None))


def first_guesses(work, *rows):
    return list(work._first_guesses(work._guesses(), rows, (), 0).values())


def test_no_training_is_measured_on_a_backbone_whose_passes_take_too_long(host, stripes, monkeypatch):
    measured = []
    take(monkeypatch, lambda name: measured.append(name) or 0.0001)
    monkeypatch.setattr(estimate, "pass_seconds", lambda network, bench: bench.pass_seconds.get(network, 0.0))
    names = ("tiny:net", "tiny:deep")
    work = work_of(search(host, stripes, backbones=names, strategies=("linear-probe", "fine-tune"), trials=2, **FEW))
    work.bench.pass_seconds[work.opened.networks["tiny:net"]] = 0.5  # 10 epochs of more than 50 images
    rows = [ProbeRow("tiny:net", "2.1", "avg", 0.9), ProbeRow("tiny:deep", "3.1", "avg", 0.5)]
    (guess,) = first_guesses(work, *rows)
    assert guess["backbone"] == "tiny:deep"
    assert set(measured) == {"tiny:deep"}


def guessed(made, strategy):
    """The trials of a strategy's first guess."""
    stored = optuna.load_study(study_name=made.folder.definition.optuna, storage=made.folder.storage)
    numbers = [trial.number for trial in stored.trials if GUESS in trial.user_attrs]
    records = map(made.folder.log.read, numbers)
    return [record for record in records if record.params["strategy"] == strategy]


def test_with_little_time_first_guesses_freeze_more_and_those_that_do_not_fit_wait_for_more_time(
    host, stripes, monkeypatch
):
    options = {"strategies": ("linear-probe", "fine-tune", "full"), "prune": False, **FEW}
    watcher = Notes()
    with monkeypatch.context() as patch:
        take(patch, lambda name: 1.0)  # 1 minute for an epoch of the whole network
        made = search(host, stripes, trials=4, budget=600.0, watcher=watcher, **options)
        made.run()
    (tuned,) = guessed(made, "fine-tune")
    assert (tuned.params["frozen"], tuned.params["recipe.length"]) == (1 / 2, 0.5)
    assert (tuned.plan.phases[0].frozen, tuned.plan.epochs()) == ("1.2", 20)
    assert not guessed(made, "full")
    said = "first guesses freeze more stages or train for fewer epochs: fine-tune for 20 epochs after 1.2."
    assert f"To fit --budget, {said}" in watcher.notes
    assert "No time in --budget for the first guess of full." in watcher.notes
    more = search(host, stripes, trials=6, budget=None, **options)
    more.run()
    assert guessed(more, "fine-tune") == [tuned]
    (full,) = guessed(more, "full")
    assert full.plan.epochs() == 20


def test_a_search_ends_with_its_budget_and_leaves_a_tested_bundle(host, stripes):
    search(host, stripes, trials=2, study="warm-up", budget=None, reruns=0).run()
    began = time.monotonic()
    made = search(host, stripes, used=45)
    result = made.run()
    assert time.monotonic() - began < 15 + 5
    assert 0 < result.trials["complete"] + result.trials["pruned"] < 1_000
    assert 0 < result.test.value <= 1
    assert bundle.plan_of(made.folder.bundle) == result.final


def test_skipped_steps_are_named_and_the_best_trial_is_kept(host, stripes, monkeypatch):
    made = search(host, stripes, trials=3, strategies=("fine-tune",))
    with monkeypatch.context() as patch:

        def late(*args):
            patch.setattr(Budget, "left", lambda budget: -1.0)
            return closing.finish(*args)

        patch.setattr(searching, "finish", late)  # the trials used all of the budget
        result = made.run()
    assert result.final == result.best.plan == bundle.plan_of(made.folder.bundle)
    assert result.final.train_on == ("train",)
    not_done = " ".join(result.skipped)
    assert "no time for 4 of 4 rounds of reruns of the best plans with new seeds" in not_done
    assert "the refit of the winner, trial 1; the bundle is that of trial 1" in not_done
    assert "the comparison with reference:pixels" in not_done
    assert result.comparisons == {}
    # With more time the same command does the rest.
    more = search(host, stripes, trials=3, strategies=("fine-tune",), budget=None).run()
    assert more.skipped == ()
    assert more.final.train_on == ("train", "early_stop", "val")
    assert len(more.best.runs) == 5
    assert more.comparisons


def test_the_time_reserved_for_the_test_is_used_for_it(host, stripes, monkeypatch):
    really = closing._End.judge

    def late(*args):
        monkeypatch.setattr(Budget, "left", lambda budget: -1.0)  # only the reserve is left
        return really(*args)

    monkeypatch.setattr(closing._End, "judge", late)
    assert "reference:pixels" in search(host, stripes, trials=2, reruns=0).run().comparisons


def test_a_plan_whose_rerun_fails_does_not_win_when_time_runs_out(host, stripes, monkeypatch):
    seen = []

    def fit(worker, plan, task):
        if " with seed " not in task:
            return really(worker, plan, task)
        seen.append(int(task.split()[1]))
        raise Failed("it cannot be") if len(seen) == 1 else OutOfTime

    really = Worker._fit
    monkeypatch.setattr(Worker, "_fit", fit)
    result = search(host, stripes, trials=3, strategies=("fine-tune",)).run()
    assert len(seen) == 2
    assert result.best.trial == seen[1]
    assert f"trial {seen[0]}, which failed with seed 1: it cannot be" in result.skipped
    assert "no time for 4 of 4 rounds of reruns of the best plans with new seeds" in result.skipped


def test_without_time_for_a_new_winner_the_earlier_bundle_is_kept(host, stripes, monkeypatch):
    first = search(host, stripes, trials=3, budget=None, reruns=0).run()

    def others(reruns, best):
        """As if reruns with new seeds had preferred other trials, and used all of the time."""
        monkeypatch.setattr(Budget, "left", lambda budget: -1.0)
        records = [record for record in best if record.number != first.best.trial]
        return [Contender.alone(record) for record in records]

    monkeypatch.setattr(Reruns, "contenders", others)
    later = search(host, stripes, trials=4, budget=None, reruns=0).run()
    assert later.final == first.final
    assert later.best.trial == first.best.trial
    assert f"the bundle is that of trial {first.best.trial}" in " ".join(later.skipped)


def test_a_winner_without_a_refit_is_compared_with_controls_without_one(host, stripes, monkeypatch):
    def fit(worker, plan, task):
        if task.startswith("refit of the winner"):
            raise OutOfTime
        seen.append(plan.train_on)
        return really(worker, plan, task)

    really, seen = Worker._fit, []
    monkeypatch.setattr(Worker, "_fit", fit)
    result = search(host, stripes, trials=2, budget=None, reruns=0).run()
    assert result.final.train_on == ("train",)
    assert len(seen) == len(result.comparisons) > 0
    assert set(seen) == {("train",)}


def test_images_that_take_longer_than_the_budget_are_an_error(host, stripes):
    watcher = Notes()
    with pytest.raises(StudyError, match="Reading the images takes longer than --budget"):
        search(host, stripes, used=59, watcher=watcher).run()
    assert watcher.left() <= 1


def test_backbones_too_expensive_for_the_budget_are_skipped_and_stay_so_in_the_study(host, stripes, monkeypatch):
    both = ("tiny:net", "reference:edges")
    cost = {"tiny:net": 1_000.0, "reference:edges": 1.0}
    with monkeypatch.context() as patch:
        patch.setattr(estimate, "pass_seconds", lambda network, bench: cost[network.backbone])
        watcher = Notes()
        search(host, stripes, watcher=watcher, backbones=both, strategies=("linear-probe",), trials=2).run()
    assert any("no time in --budget" in note and "tiny:net" in note for note in watcher.notes)
    made = search(host, stripes, backbones=both, strategies=("linear-probe",), trials=3, budget=None)
    made.run()
    assert {record.plan.backbone for record in made.folder.log.records()} == {"reference:edges"}


def test_a_budget_counts_from_the_start_and_reserves_a_share_for_the_end():
    budget = Budget(100.0, began=time.monotonic() - 55)
    budget.check_search()
    assert 45 - MARGIN - 1 < budget.left() <= 45 - MARGIN
    budget.keep(1e6)
    budget.check_search()  # the reserve is never more than its share
    assert budget.kept_for_the_end == END_SHARE * 100
    late = Budget(100.0, began=time.monotonic() - 71)
    late.check_search()
    late.keep(1e6)
    with pytest.raises(OutOfTime):
        late.check_search()
    late.check()
    with pytest.raises(OutOfTime):
        Budget(100.0, began=time.monotonic() - 99).check()
    assert not Budget(None, began=0.0).limited


FEW = {"reruns": 0, "compare": False, "refit": False}


def test_a_training_gets_the_epochs_that_there_is_time_for_and_its_time_corrects_the_estimate(
    host, stripes, monkeypatch
):
    take(monkeypatch, lambda name: 0.1)  # a slow moment, for a tiny network
    try_all(monkeypatch)
    watcher = Notes()
    made = search(host, stripes, trials=3, strategies=("linear-probe", "fine-tune", "full"), watcher=watcher, **FEW)
    made.run()
    _, tuned, full = made.folder.log.records()
    (training,) = tuned.plan.trainings
    assert tuned.state == "complete"
    assert 4 <= training.epochs < 20 == full.plan.epochs()
    assert max(epoch["epoch"] for epoch in tuned.epochs) <= training.epochs
    assert f"Trial 1 is trained for {training.epochs} of its 20 epochs: there is no time for more." in watcher.notes


def test_trainings_that_there_is_no_time_for_wait_for_the_next_run(host, stripes, monkeypatch):
    with monkeypatch.context() as patch:
        take(patch, lambda name: 10.0)
        try_all(patch)
        made = search(host, stripes, trials=5, strategies=("linear-probe", "fine-tune", "full"), **FEW)
        result = made.run()
    assert result.trials["complete"] == 1
    waiting = [record for record in made.folder.log.records() if record.state == "interrupted"]
    assert len(waiting) == 3
    assert all(not record.epochs and record.params["strategy"] != "linear-probe" for record in waiting)
    assert f"trial {waiting[0].number}: there was no time to start it" in result.skipped
    again = search(host, stripes, trials=5, budget=None, strategies=made.settings.strategies, **FEW)
    assert sum(again.run().trials.values()) == 5
    assert [again.folder.log.read(record.number).params for record in waiting] == [each.params for each in waiting]


def test_without_a_model_a_training_starts_however_long_it_may_take(host, stripes, monkeypatch):
    take(monkeypatch, lambda name: 1_000.0)
    made = search(host, stripes, trials=1, strategies=("fine-tune",), **FEW)
    assert made.run().best.plan.epochs() == 1


def test_a_training_that_the_budget_cuts_off_may_win_and_its_plan_gives_it_again(host, stripes, monkeypatch):
    really = _TrialObserver.epoch

    def late(observer, phase, epoch, facts):
        if epoch == 4:
            monkeypatch.setattr(Trials, "seconds_left", lambda trials: -1.0)
        really(observer, phase, epoch, facts)

    monkeypatch.setattr(_TrialObserver, "epoch", late)
    watcher = Notes()
    made = search(host, stripes, trials=1, strategies=("full",), watcher=watcher, **FEW)
    result = made.run()
    (record,) = made.folder.log.records()
    after = record.plan.phases[0].training.stop.at_epoch
    assert (record.state, after) == ("complete", record.metrics["phase1.best_epoch"])
    assert 1 <= after <= 4 < record.plan.epochs()
    assert bundle.plan_of(made.folder.bundle) == result.best.plan == record.plan
    assert record.reason in " ".join(watcher.notes)
    assert "20 % of its epochs; the best epoch so far counts" in record.reason
    bench = made.opening._open_bench()
    again = fit(record.plan, bench).metrics
    assert {key: value for key, value in again.items() if "seconds" not in key} == {
        key: value for key, value in record.metrics.items() if "seconds" not in key
    }


def test_the_first_model_may_use_the_reserve_for_the_end(host, stripes):
    class Best:
        pass

    trials = Trials.__new__(Trials)
    trials.budget = Budget(100.0, began=time.monotonic() - 80)
    trials.budget.keep(1e6)
    trials._best = None
    assert trials.seconds_left() > 0
    trials._best = Best()
    assert trials.seconds_left() < 0


def test_there_is_a_bundle_even_while_a_trial_of_a_worker_is_the_best(host, stripes, monkeypatch):
    really = Trials._save_best

    def save_best(trials, fitted, value):
        trials._best = TrialRecord(9, "complete", {}, None, 1.0, fitted.metrics, 0.0, "", False, (), 0, "")
        really(trials, fitted, value)

    monkeypatch.setattr(Trials, "_save_best", save_best)
    monkeypatch.setattr(Budget, "left", lambda budget: -1.0 if budget.used > 1e6 else 1e6)
    made = search(host, stripes, trials=1, strategies=("linear-probe",), **FEW)
    made.run()
    assert bundle.plan_of(made.folder.bundle) == next(made.folder.log.records()).plan


def test_the_estimate_for_the_refit_is_for_its_best_epochs_on_more_images(host, stripes, monkeypatch):
    end = closing._End.__new__(closing._End)
    end.settings, end.bench = Settings(data=stripes), type("Bench", (), {"refit_factor": 1.5})
    training = Training(epochs=20, batch_size=1, head_lr=0.1, stop=Stop(patience=5))
    phase = Phase(method="gradient-descent", frozen=None, training=training)
    plan = TransferPlan.model_construct(phases=(logistic.probe("x"), phase))
    final = TransferPlan.model_construct(phases=(logistic.probe("x"), phase.trained_by(stop=Stop(at_epoch=5))))
    run = SeedRun(plan, 0.9, {"seconds": 40.0, "phase2.best_epoch": 5})
    assert end._seconds_again(final, run) == 40.0 * 1.5 * 5 / 10
    assert end._seconds_again(plan, SeedRun(plan, 0.9, {"seconds": 40.0, "phase2.best_epoch": 5})) == 60.0
