"""The linear probe is whichever strategy says that it is one."""

import time
from types import SimpleNamespace

from autotl import Head, Phase, Training, TransferPlan, hookimpl
from autotl.backbones.catalogue import Catalogue
from autotl.host import Host
from autotl.study.controls import controls_of
from autotl.study.search import Search
from autotl.study.settings import Settings
from autotl.study.watch import Silent
from autotl.testing.lab import TinyPlugin

WITHOUT = frozenset({"linear_probe"})


class Own:
    is_probe = True
    baselines = ("tiny:deep", "gone:net")

    def suggest(self, trial, context):
        cut = context.cut()
        head = Head(pooling=context.pooling(cut))
        phase = Phase(method="logistic", frozen=cut, options={"penalty": 0.1, "class_weights": context.class_weights()})
        return context.plan(cut=cut, head=head, phases=[phase], input=context.input())


class Greedy(Own):
    def suggest(self, trial, context):
        trial.suggest_float("own.penalty", 0.1, 1)
        return super().suggest(trial, context)


class Recorder(Silent):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def search(stripes, strategy, *strategies, watcher=None):
    class Plugin:
        @hookimpl
        def register_strategies(self, register):
            register("own", strategy, summary="For a test")

    host = Host(blocked=WITHOUT)
    host.add(TinyPlugin(), "tiny-plugin")
    host.add(Plugin(), "own-plugin")
    assert not host.problems
    settings = Settings(
        data=stripes, backbones=("tiny:net",), strategies=strategies, trials=2, reruns=0, refit=False, device="cpu"
    )
    found = Search(settings, host, watcher or Silent(), time.monotonic())
    return found.run(), found.folder


def test_it_is_tried_first_and_is_the_control(stripes):
    result, folder = search(stripes, Own, "own", "full")
    first, second = folder.log.records()
    assert (first.params["strategy"], second.params["strategy"]) == ("own", "full")
    assert set(result.comparisons) - {"the best linear probe (trial 0)"} == {"tiny:deep"}


def test_it_is_asked_for_a_control_that_the_study_has_not_tried(stripes):
    result, folder = search(stripes, Own, "full")
    assert {record.params["strategy"] for record in folder.log.records()} == {"full"}
    (probe,) = (name for name in result.comparisons if name.startswith("a linear probe of tiny:net at "))
    plan = result.comparisons[probe].plan
    assert plan.phases[0].options == {"penalty": 0.1, "class_weights": "none"} and plan.cut == probe.split()[-1]
    assert result.comparisons["tiny:deep"].plan.backbone == "tiny:deep"


def test_one_that_draws_parameters_of_its_own_is_no_control(stripes):
    watcher = Recorder()
    result, _ = search(stripes, Greedy, "full", watcher=watcher)
    assert not result.comparisons
    (told,) = (note for note in watcher.notes if "not compared with tiny:deep" in note)
    assert "Strategy 'own' of plugin 'own-plugin'" in told and "own.penalty" in told


def test_a_winner_with_random_weights_is_compared_with_the_best_plan_with_pretrained_ones(host, tmp_path):
    catalogue = Catalogue(host, tmp_path)
    training = Training(epochs=1, batch_size=8, head_lr=0.1, stage_lr={})

    def record(number, strategy, weights):
        plan = TransferPlan.model_construct(
            backbone="reference:pixels",
            weights=weights,
            phases=(Phase(method="gradient-descent", frozen=None, training=training),),
        )
        return SimpleNamespace(number=number, params={"strategy": strategy}, plan=plan, metrics={"seconds": 1.0})

    def names(*board):
        found = controls_of(board[0].plan, 1.0, board, [], catalogue, None, lambda note: None)
        return [control.name for control in found]

    won, tuned, probe = (
        record(0, "scratch", "random:0"),
        record(1, "full", "sha256:1"),
        record(2, "linear-probe", "sha256:1"),
    )
    of_probe = "the best linear probe (trial 2)"
    assert names(won, tuned, probe) == [of_probe, "the best plan with pretrained weights (trial 1)"]
    assert names(won, probe, tuned) == [of_probe]  # which is the best plan with pretrained weights
    assert names(tuned, won, probe) == [of_probe, "the best training from scratch (trial 0)"]
    assert names(won) == []


def test_a_strategy_that_does_not_say_so_is_no_control(stripes):
    class Plain(Own):
        is_probe = False

    result, _ = search(stripes, Plain, "full")
    assert all("linear probe" not in name and name != "tiny:deep" for name in result.comparisons)
