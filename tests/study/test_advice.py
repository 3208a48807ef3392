"""The advice: which situation a data set is in, what is tried first, and whether that held."""

import time
from types import SimpleNamespace

import pytest

from autotl.data.dataset import Dataset
from autotl.engine.sample import Sample
from autotl.engine.scale import Scale
from autotl.errors import PluginError, StudyError
from autotl.report import advice as words
from autotl.report.words import summary
from autotl.study import advice
from autotl.study.advising import Advising
from autotl.study.search import Search
from autotl.study.settings import Settings
from autotl.study.watch import Silent
from autotl.tracking.advice import AtCut, Similarity, read_advice


def found(pretrained, at_random=(0.3,), references=0.2, images=1000, chance=0.1):
    cuts = [
        AtCut(cut=f"layer{number}", pretrained=value, random=at_random[min(number, len(at_random) - 1)])
        for number, value in enumerate(pretrained)
    ]
    return Similarity(backbone="a:b", images=images, cuts=tuple(cuts), references={"pixels": references}, chance=chance)


def test_the_gain_is_over_the_best_features_without_pretraining():
    one = found((0.4, 0.75), at_random=(0.3, 0.25), references=0.5)
    assert (one.best.cut, one.late.cut, one.untrained, one.fall) == ("layer1", "layer1", 0.5, 0.0)
    assert one.gain == pytest.approx(0.25 / 0.9)
    other = found((0.6, 0.8, 0.7), at_random=(0.3, 0.85), references=0.5, chance=0.5)
    assert (other.best.cut, other.untrained) == ("layer1", 0.85)
    assert other.gain == pytest.approx(-0.1)
    assert other.fall == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("one", "kins"),
    [
        (found((0.4, 0.75)), ["similar"]),  # far better than random weights
        (found((0.4, 0.75), images=60), ["similar"]),
        (found((0.4, 0.35)), ["different"]),  # the last cut is 5 points worse
        (found((0.31, 0.32)), ["different"]),  # no better than random weights
        (found((0.4, 0.48), images=60), ["similar", "different"]),  # 0.2, with an error of 0.07
        (found((0.90, 0.87), images=60), ["similar"]),  # a fall of 3 points is noise
    ],
)
def test_images_are_similar_if_pretrained_features_are_better_to_the_last(one, kins):
    assert advice.kins(one) == kins


STRATEGIES = {"probe": ("few-similar", "few-different"), "tune": ("many-similar",), "own": (), "both": ("few-similar",)}


def entry(name, suits):
    return SimpleNamespace(name=name, item=SimpleNamespace(suits=suits))


@pytest.mark.parametrize(
    ("per_class", "situations", "suggested"),
    [
        (50, ("few-similar",), ("probe", "both")),
        (51, ("few-similar", "many-similar"), ("probe", "tune", "both")),
        (200, ("many-similar",), ("tune",)),
    ],
)
def test_the_strategies_that_suit_the_situation_are_suggested(per_class, situations, suggested):
    entries = [entry(*each) for each in STRATEGIES.items()]
    given = advice.advise(per_class, found((0.4, 0.75)), entries)
    assert (given.situations, given.suggested) == (situations, suggested)
    assert given.others == tuple(name for name in STRATEGIES if name not in suggested)
    shown = dict(words.lines(given, dict.fromkeys(STRATEGIES, "…"), "my data"))
    assert shown["next"] == "autotl search 'my data'"
    better = "Pretrained features are 45.0 points better than others."
    assert shown["similarity"].startswith(f"{better} The last cut is the best one. That is 50% of the way")


def test_a_strategy_that_cannot_be_loaded_is_not_suggested():
    class Broken:
        name = "broken"

        @property
        def item(self):
            raise PluginError("no")

    given = advice.advise(10, found((0.4, 0.75)), [Broken(), entry("probe", STRATEGIES["probe"])])
    assert (given.suggested, given.others) == (("probe",), ("broken",))


def record(number, strategy, value):
    return SimpleNamespace(number=number, params={"strategy": strategy}, value=value)


@pytest.mark.parametrize(
    ("board", "trial", "held"),
    [
        ([("probe", 0.9), ("tune", 0.8)], 0, True),
        ([("tune", 0.9), ("tune", 0.89), ("probe", 0.88)], 2, True),  # within a standard error of 100 images, 3 points
        ([("tune", 0.9), ("probe", 0.86)], 1, False),
        ([("tune", 0.9)], None, False),
    ],
)
def test_the_advice_held_if_a_suggested_plan_is_as_good_as_the_winner(board, trial, held):
    given = advice.advise(10, found((0.4, 0.75)), [entry(*each) for each in STRATEGIES.items()])
    records = [record(number, *each) for number, each in enumerate(board)]
    outcome = advice.tested(given, records, 100, Scale())
    assert (outcome.trial, outcome.held, outcome.best) == (trial, held, board[0][1])
    said = words.tested(outcome, Scale().text)
    assert said.startswith("Advice: few images, similar to those of the pretraining, so probe or both.")
    assert ("None of these" in said) == (trial is None) and ("It held" in said) == held


def test_a_metric_without_a_known_error_needs_the_winner_itself():
    given = advice.advise(10, found((0.4, 0.75)), [entry(*each) for each in STRATEGIES.items()])
    board = [record(0, "tune", 0.2), record(1, "probe", 0.21)]
    loss = Scale(greater_is_better=False, percent=False)
    assert not advice.tested(given, board, 100, loss).held
    assert advice.tested(given, board[::-1], 100, loss).held


class Recorder(Silent):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def test_advice_is_measured_on_images_outside_val_and_test(host, stripes, monkeypatch):
    seen = set()
    really = Sample.of.__func__

    def of(cls, bench, *args):
        sample = really(cls, bench, *args)
        seen.update(sample.shas)
        assert seen.isdisjoint(bench.shas("val", "test"))
        return sample

    monkeypatch.setattr(Dataset, "open_test", None)
    monkeypatch.setattr(Sample, "of", classmethod(of))
    settings = Settings.of({"data": stripes, "device": "cpu", "backbones": ["autotl:resnet10"]})
    given = Advising(settings, host, Silent()).run()
    measured = given.similarity
    assert (measured.backbone, measured.images) == ("autotl:resnet10", len(seen))
    assert given.per_class == 24  # of 30, without a fifth for the test
    assert [at.cut for at in measured.cuts][-1] == "layer4.0"
    assert set(measured.references) == {"reference:pixels", "reference:edges"}
    assert measured.chance == pytest.approx(1 / 3)
    assert any(at.pretrained != at.random for at in measured.cuts)
    assert given.situations and set(given.suggested).isdisjoint(given.others)
    searched = {entry.name for entry in host.strategies if getattr(entry.item, "by_default", True)}
    assert set(given.suggested) | set(given.others) == searched < {entry.name for entry in host.strategies}
    assert measured.chance < measured.neighbours <= 1
    assert "quarter turns" in given.harmful  # they make stripes down of stripes across
    assert "mirroring" in given.allowed
    shown = list(words.lines(given, {entry.name: "" for entry in host.strategies}, "data"))
    assert next(text for heading, text in shown if heading == "augment").startswith(f"not by {given.harmful[0]}")


def test_without_a_pretrained_backbone_there_is_nothing_to_compare(host, stripes):
    settings = Settings.of({"data": stripes, "device": "cpu", "backbones": ["tiny:net"]})
    with pytest.raises(StudyError, match="No pretrained backbone is left to compare with. Name some with --backbones"):
        Advising(settings, host, Silent()).run()


def test_slow_backbones_are_left_out(host, stripes, monkeypatch):
    monkeypatch.setattr("autotl.study.advising.estimate.image_seconds", lambda network, bench: 1.0)
    settings = Settings.of({"data": stripes, "device": "cpu", "backbones": ["autotl:resnet10", "autotl:pvt_v2"]})
    watcher = Recorder()
    assert Advising(settings, host, watcher).run().similarity.backbone == "autotl:resnet10"
    assert "Without autotl:pvt_v2: it would take too long here." in watcher.notes


def test_a_search_tries_the_suggested_strategies_first_and_tells_whether_that_held(host, stripes, monkeypatch):
    """They are the same after it was interrupted before its trials, and although it might measure otherwise now."""
    settings = Settings.of(
        {
            "data": stripes,
            "device": "cpu",
            "backbones": ["autotl:resnet10"],
            "strategies": ["full", "fine-tune", "linear-probe"],
            "trials": 3,
            "reruns": 0,
            "compare": False,
            "refit": False,
            "set": {"recipe.length": 0.0},
        }
    )
    advised = []

    class Interrupted(Silent):
        def advised(self, given):
            advised.append(given)
            monkeypatch.setattr(advice, "kins", None)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Search(settings, host, Interrupted(), time.monotonic()).run()
    search = Search(settings, host, Silent(), time.monotonic())
    result = search.run()
    (given,) = advised
    assert read_advice(search.folder) == given == result.advice.advice
    assert given.per_class == 24 and given.suggested == ("fine-tune", "linear-probe") and given.others == ("full",)
    records = list(search.folder.log.records())
    assert [record.params["strategy"] for record in records] == ["linear-probe", "fine-tune", "full"]
    assert result.advice.value == max(records[0].value, records[1].value)
    assert any(line.startswith("Advice: few images, different") for line in summary(result))
