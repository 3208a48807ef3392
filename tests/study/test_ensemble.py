"""Ensembles: which plans are chosen, what is handed over and tested, and what later searches of the study do."""

import json
import time
from types import SimpleNamespace

import numpy as np
import pytest

from autotl.engine.temperature import tempered
from autotl.errors import StudyError
from autotl.export import bundle, contents
from autotl.host import Host
from autotl.plan import Ensemble
from autotl.report import words
from autotl.study.ensemble import Ensembling, greedy
from autotl.study.search import Search
from autotl.study.settings import Settings
from autotl.study.watch import Silent
from autotl.tracking import predictions

RIGHT = {0: "111100", 1: "111000", 2: "001111", 3: "110011"}
"""Which of six images four models classify correctly."""


def missed(members):
    """A key by how many images most of the members classify wrongly; of three models 1 may not be one."""
    if len(members) == 3 and 1 in members:
        return None
    votes = np.mean([[int(each) for each in RIGHT[member]] for member in members], axis=0)
    return float((votes <= 0.5).sum()), 0.0, 0.0


def test_the_one_is_added_with_which_the_ensemble_is_best():
    assert greedy(0, [1, 2, 3], 1, missed) == [0]
    assert set(greedy(0, [2, 3], 3, missed)) == {0, 2, 3}
    assert missed([0, 2, 3])[0] == 0 < missed([0])[0]


def test_none_is_added_twice_or_against_the_limits():
    assert greedy(0, [1, 2, 3], 9, lambda members: (0.0, 0.0, -sum(members))) == [0, 3, 2, 1]
    assert greedy(1, [2, 3], 9, missed) == [1, 3]
    assert greedy(0, [], 3, missed) == [0]
    assert greedy(0, [1, 2], 3, lambda members: None) == [0]


class Notes(Silent):
    def __init__(self):
        self.notes, self.trials = [], 0

    def note(self, text):
        self.notes.append(text)


def search(host, stripes, watcher=None, **settings):
    usual = {
        "data": stripes,
        "backbones": ("tiny:net", "tiny:deep"),
        "strategies": ("linear-probe",),
        "trials": 6,
        "device": "cpu",
        "compare": False,
    }
    return Search(Settings.of({**usual, **settings}), host, watcher or Silent(), time.monotonic())


def openings(made):
    return [json.loads(line)["plan"] for line in made.folder.test_openings.read_text().splitlines()]


def test_the_ensemble_is_handed_over_tested_once_and_compared_with_the_winner(host, stripes):
    made = search(host, stripes, ensemble=3)
    result = made.run()
    ensemble, folder = result.ensemble, made.folder
    assert len(set(ensemble.trials)) == 3 and ensemble.trials[0] == result.best.trial
    assert ensemble.plan.members[0] == result.final and len({plan.hash for plan in ensemble.plan.members}) == 3
    assert bundle.plan_of(folder.bundle) == ensemble.plan == result.made
    records = [folder.log.read(number) for number in ensemble.trials]
    for cost in ("parameters", "flops"):
        assert ensemble.metrics[cost] == sum(record.metrics[cost] for record in records)

    loaded = bundle.load(folder.bundle, made.catalogue)
    alone = [bundle.load(folder.member(plan), made.catalogue) for plan in ensemble.plan.members]
    for model in alone:
        model.graph.temperature = 1.0  # the mean has its own
    files = sorted(stripes.glob("*/*.png"))
    each = [np.stack(list(model.predict(files))) for model in alone]
    mean = tempered(np.mean(each, axis=0), result.calibration.temperature)
    np.testing.assert_allclose(np.stack(list(loaded.predict(files))), mean, atol=1e-6)
    assert loaded.metrics["validation"]["flops"] == ensemble.metrics["flops"]

    name = f"the winner alone (trial {result.best.trial})"
    assert list(result.comparisons) == [name] and result.comparisons[name].plan == result.final
    assert openings(made) == [ensemble.plan.hash] and result.test_opened == 1
    lines = list(words.summary(result))
    (line,) = [line for line in lines if line.startswith("Ensemble: the mean of the probabilities of 3 models")]
    assert ", ".join(map(str, ensemble.trials)) in line and "parameters" in line and "FLOPs" in line
    assert any(line.startswith(f"Compared with {name}, accuracy") and "95 % confidence" in line for line in lines)

    assert search(host, stripes, ensemble=3).run() == result
    assert len(openings(made)) == 1


def test_the_choice_and_its_metrics_are_by_the_stored_predictions(host, stripes):
    made = search(host, stripes, ensemble=2)
    result = made.run()
    board = [record for record in made.folder.log.records() if record.state == "complete"]
    shape = np.load(made.folder.predictions_of(board[0].plan)).shape
    files = {record.number: made.folder.predictions_of(record.plan) for record in board}
    known = {number: predictions.read_whole(file, *shape) for number, file in files.items()}
    split = [line.split(",") for line in (made.folder.path / "data" / "split.csv").read_text().splitlines()]
    assert shape == (sum(row[3] == "val" for row in split), 3)
    winner, other = result.ensemble.trials
    mean = (known[winner] + known[other]) / 2
    names = ("across", "checks", "down")
    labels = [names.index(row[0].partition("/")[0]) for row in split if row[3] == "val"]

    def loss(mean):
        return -np.log(mean[np.arange(len(labels)), labels]).mean()

    assert result.ensemble.validation == pytest.approx(np.mean(mean.argmax(1) == labels))
    assert result.ensemble.metrics["val.loss"] == pytest.approx(loss(mean))
    for number in set(known) - {winner}:
        with_it = (known[winner] + known[number]) / 2
        right = np.mean(with_it.argmax(1) == labels)
        assert (-right, round(loss(with_it), 3)) >= (-result.ensemble.validation, round(loss(mean), 3))


def test_a_finished_study_hands_over_an_ensemble_and_its_winner_again(host, stripes):
    made = search(host, stripes)
    first = made.run()
    weights = (made.folder.bundle / contents.WEIGHTS).read_bytes()
    assert not made.folder.members.exists()
    together = search(host, stripes, ensemble=2).run()  # plans of which not all probabilities are stored are run again
    assert len(together.ensemble.trials) == 2 and together.best == first.best
    assert together.test_opened == 2
    (member,) = [plan for plan in together.ensemble.plan.members if plan == first.final]
    assert (made.folder.member(member) / contents.WEIGHTS).read_bytes() == weights

    result = search(host, stripes).run()
    assert result.ensemble is None and result.final == first.final and result.test.value == first.test.value
    assert (made.folder.bundle / contents.WEIGHTS).read_bytes() == weights
    assert not made.folder.members.exists()


def test_damaged_predictions_are_made_again(host, stripes):
    made = search(host, stripes, ensemble=2)
    result = made.run()
    plans = [made.folder.log.read(number).plan for number in result.ensemble.trials]
    good = [made.folder.predictions_of(plan).read_bytes() for plan in plans]
    made.folder.predictions_of(plans[0]).write_bytes(good[0][:-9])
    made.folder.predictions_of(plans[1]).unlink()
    made.folder.result.unlink()
    again = search(host, stripes, ensemble=2).run()
    assert again.ensemble == result.ensemble
    assert [made.folder.predictions_of(plan).read_bytes() for plan in plans] == good


def test_models_of_two_views_stay_so_in_an_ensemble(host, stripes):
    made = search(host, stripes, ensemble=2, views=2)
    result = made.run()
    assert [plan.test_views for plan in result.made.members] == [2, 2]
    records = [made.folder.log.read(number) for number in result.ensemble.trials]
    assert result.ensemble.metrics["flops"] == 2 * sum(record.metrics["flops"] for record in records)


def test_an_ensemble_stays_within_the_limits(host, stripes):
    alone = search(host, stripes, study="free").run()
    most = int(1.01 * alone.best.metrics["parameters"])
    watcher = Notes()
    result = search(host, stripes, watcher, study="tight", ensemble=2, max_params=most).run()
    assert result.best.metrics["parameters"] <= most
    assert result.ensemble is None and not result.skipped
    assert "The ensemble has 1 of 2 models: with another the limits would be exceeded." in watcher.notes


def test_fewer_plans_than_models_give_a_note(host, stripes):
    watcher = Notes()
    result = search(host, stripes, watcher, trials=2, ensemble=5).run()
    assert len(result.ensemble.trials) == 2 and not result.skipped
    assert "The ensemble has 2 of 5 models: no other plan is about as good." in watcher.notes


def test_without_time_the_winner_alone_is_handed_over(host, stripes, monkeypatch):
    really = Ensembling.made

    def late(self, *given):
        self.budget = SimpleNamespace(left=lambda: 0.0)
        return really(self, *given)

    monkeypatch.setattr(Ensembling, "made", late)
    made = search(host, stripes, ensemble=2)
    result = made.run()
    assert result.ensemble is None and bundle.plan_of(made.folder.bundle) == result.final
    (skipped,) = result.skipped
    assert skipped.endswith("as a member of the ensemble: no time to train it")
    monkeypatch.undo()
    later = search(host, stripes, ensemble=2).run()
    assert len(later.ensemble.trials) == 2 and not later.skipped


def test_an_ensemble_is_no_start_for_another_study(host, stripes):
    result = search(host, stripes, study="first", ensemble=2).run()
    assert isinstance(result.made, Ensemble)
    with pytest.raises(StudyError, match="ended with an ensemble of 2 models.* --weights tiny:.*members") as raised:
        search(host, stripes, study="second", from_study="first")
    assert "\n" not in str(raised.value)


def test_several_workers_store_predictions_and_train_the_members(stripes):
    made = search(Host(), stripes, backbones=("autotl:resnet10",), ensemble=2, trials=3, workers=2)
    result = made.run()
    assert len(result.ensemble.trials) == 2 and not result.skipped
    for record in made.folder.log.records():
        assert made.folder.predictions_of(record.plan).exists()
    assert bundle.load(made.folder.bundle, made.catalogue).plan == result.made
