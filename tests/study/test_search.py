import csv
import json
import math
import os
import shutil
import time
import weakref
from collections import Counter
from functools import partial
from pathlib import Path
from typing import ClassVar

import optuna
import pytest
import torch
from PIL import Image

from autotl import hookimpl
from autotl.builtin.linear_probe import LinearProbe
from autotl.data.pixels import PixelStore
from autotl.engine.bench import Bench
from autotl.engine.scale import Scale
from autotl.errors import DataError, PluginError, StudyError, WeightsError
from autotl.export import bundle
from autotl.report.terminal import show_study
from autotl.study import choices
from autotl.study import search as searching
from autotl.study.budget import OutOfTime
from autotl.study.search import Search
from autotl.study.select import leaderboard
from autotl.study.settings import Settings
from autotl.study.trials import FellBehind
from autotl.study.watch import Silent
from autotl.study.work import Work
from autotl.study.worker import Worker
from autotl.testing.lab import TinyFamily
from autotl.tracking import result as results
from autotl.tracking.folder import cache_dir
from autotl.tracking.probe import read_probe


class Recorder(Silent):
    def __init__(self):
        self.notes, self.ended, self.done, self.probe, self.tasks = [], [], [], [], []

    def note(self, text):
        self.notes.append(text)

    def trial_ended(self, record, best, done, total):
        self.done.append(done)
        self.ended.append((record.number, record.state, total))

    def probed(self, rows):
        self.probe = rows

    def progress(self, task, done, total):
        self.tasks.append(task)


def search(host, data, watcher=None, **settings):
    values = {
        "data": data,
        "trials": 6,
        "backbones": ("tiny:net", "reference:edges"),
        "strategies": ("linear-probe",),
        "device": "cpu",
        **settings,
    }
    return Search(Settings(**values), host, watcher or Recorder(), began=time.monotonic())


def test_from_a_folder_of_images_to_a_tested_bundle(host, stripes):
    watcher = Recorder()
    made = search(host, stripes, watcher, reruns=0)
    result = made.run()

    assert +Counter(result.trials) == {"complete": 6}
    assert watcher.ended == [(number, "complete", 6) for number in range(6)]
    assert {row.backbone for row in watcher.probe} == {"tiny:net", "reference:edges"}
    board = leaderboard(made.folder.log.records(), Scale())
    assert result.best.plan == board[0].plan
    assert result.best.validation == board[0].value == max(record.value for record in board)
    stored = optuna.load_study(study_name=made.folder.definition.optuna, storage=made.folder.storage)
    for trial, record in zip(stored.trials, made.folder.log.records(), strict=True):
        attributes = {"cut": record.plan.cut, "frozen": record.plan.cut, "log-loss": record.metrics["val.loss"]}
        attributes |= {"parameters": record.metrics["parameters"], "FLOPs": record.metrics["flops"]}
        assert attributes.items() <= trial.user_attrs.items()
    assert 0 <= result.test.low <= result.test.value <= result.test.high <= 1
    assert result.test.images == 18
    assert "reference:pixels" in result.comparisons
    assert {file.name for file in made.folder.bundle.iterdir()} == {
        "weights.safetensors", "plan.json", "preprocessing.json", "classes.json", "metrics.json", "versions.json",
        "LICENSE", "README.md", "hashes.json",
    }  # fmt: skip
    assert json.loads((made.folder.path / "result.json").read_text()) == json.loads(result.to_json())
    assert len(made.folder.test_openings.read_text().splitlines()) == 1


def test_features_are_computed_once_for_all_trials(host, stripes, monkeypatch):
    counts = []
    really = searching.finish

    def finish(opened, crew):
        counts.append(opened.bench.features.computed)
        return really(opened, crew)

    monkeypatch.setattr(searching, "finish", finish)
    search(host, stripes).run()
    assert counts == [2 * 72]  # two backbones, all images except the 18 for the test, six trials
    search(host, stripes, trials=8, study="another").run()
    assert counts == [2 * 72, 0]


def test_a_damaged_cache_changes_no_number_and_gives_one_note_each(host, stripes):
    first = search(host, stripes, trials=1, backbones=("tiny:net",), compare=False).run()
    caches = list((cache_dir(None)).glob("*/*/rows.bin"))
    assert {file.parent.parent.name for file in caches} == {"pixels", "pictures", "features"}
    for file in caches:
        file.write_bytes(bytes(file.stat().st_size))
    watcher = Recorder()
    again = search(host, stripes, watcher, trials=1, backbones=("tiny:net",), compare=False, study="another").run()
    assert (again.test, again.best.validation) == (first.test, first.best.validation)
    said = [note for note in watcher.notes if "damaged" in note]
    assert sorted(said) == sorted(set(said)) and len(said) == len(caches)


def test_pixels_for_a_skipped_comparison_are_not_decoded(host, stripes):
    def stores():
        return len(list((cache_dir(None) / "pixels").glob("*/rows.bin")))

    for compare, expected in ((False, 1), (True, 2)):
        search(host, stripes, backbones=("tiny:net",), compare=compare).opening._open_bench()
        assert stores() == expected


def test_the_test_images_are_read_in_parts(host, stripes, monkeypatch):
    read, batches, most = PixelStore.read, [], 0

    def watched(*args):
        nonlocal most
        most = max(most, sum(batch() is not None for batch in batches))
        images = read(*args)
        batches.append(weakref.ref(images))
        return images

    def predict(worker, job):
        with monkeypatch.context() as patch:
            patch.setattr(PixelStore, "read", watched)
            really(worker, job)

    really = Worker._predict
    monkeypatch.setattr(Worker, "_predict", predict)
    monkeypatch.setattr(bundle, "BATCH", 2)
    search(host, stripes, trials=1, backbones=("tiny:net",), compare=False).run()
    assert len(batches) == 9 and most <= 1


def test_the_same_command_again_adds_nothing_and_a_larger_total_adds_the_rest(host, stripes):
    first = search(host, stripes, trials=4).run()
    watcher = Recorder()
    again = search(host, stripes, watcher, trials=4)
    assert again.run() == first
    assert watcher.ended == []
    assert len(again.folder.test_openings.read_text().splitlines()) == 1

    watcher = Recorder()
    more = search(host, stripes, watcher, trials=7).run()
    assert [number for number, _, _ in watcher.ended] == [4, 5, 6]
    assert +Counter(more.trials) == {"complete": 7}
    # The test is opened again only for another winner, and the result counts it.
    assert more.test_opened == (1 if more.final == first.final else 2)


def test_a_skipped_comparison_is_done_later_without_testing_the_rest_again(host, stripes, monkeypatch):
    def openings():
        return len(made.folder.test_openings.read_text().splitlines())

    def no_time(worker, plan, task):
        if "reference:pixels" in task:
            raise OutOfTime
        return really(worker, plan, task)

    really = Worker._fit
    with monkeypatch.context() as patch:
        patch.setattr(Worker, "_fit", no_time)
        made = search(host, stripes, trials=4)
        first = made.run()
        again = search(host, stripes, trials=4).run()
    assert first.skipped == again.skipped == ("no time for the comparison with reference:pixels",)
    assert (again.test, again.comparisons, openings()) == (first.test, first.comparisons, 1)
    whole = search(host, stripes, trials=4).run()
    assert not whole.skipped
    assert whole.test == first.test
    assert first.comparisons.items() < whole.comparisons.items()
    assert (openings(), whole.test_opened) == (2, 1)


def test_one_test_image_is_enough_for_an_interval(host, stripes):
    (stripes.parent / "one.csv").write_text(
        "path,label,split\n"
        + "".join(f"{file},{file.parent.name},{'test' if n == 0 else ''}\n" for n, file in
                  enumerate(sorted(stripes.rglob("*.png"))))
    )  # fmt: skip
    result = search(host, stripes.parent / "one.csv", trials=2).run()
    assert result.test.images == 1
    for comparison in result.comparisons.values():
        assert -1 <= comparison.low <= comparison.difference <= comparison.high <= 1


def test_an_interrupted_study_draws_what_an_uninterrupted_one_draws(host, stripes):
    whole = search(host, stripes, trials=9, study="whole")
    whole.run()
    for trials in (4, 9):
        parts = search(host, stripes, trials=trials, study="parts")
        parts.run()
    drawn = [[(r.number, r.params, r.plan.hash) for r in made.folder.log.records()] for made in (whole, parts)]
    assert drawn[0] == drawn[1]


def test_a_study_that_was_started_with_other_settings_is_not_resumed(host, stripes):
    search(host, stripes, trials=1).run()
    with pytest.raises(StudyError, match=r"metric accuracy → macro-f1.*--study NAME"):
        search(host, stripes, trials=2, metric="macro-f1").run()


def test_new_images_join_train_and_only_new_trials_count(host, stripes):
    search(host, stripes, trials=1).run()
    for name in ("across", "down"):
        Image.open(stripes / name / "3.png").rotate(180).save(stripes / name / "new.png")
    watcher = Recorder()
    made = search(host, stripes, watcher, trials=2)
    result = made.run()
    assert any("images have changed" in note for note in watcher.notes)
    first, second = (record.plan.data for record in made.folder.log.records())
    assert first.fingerprint != second.fingerprint == result.best.plan.data.fingerprint
    with (made.folder.path / "data" / "split.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 92
    assert {row["split"] for row in rows if row["path"].endswith("new.png")} == {"train"}


def test_missing_images_are_reported_with_what_to_do(host, stripes):
    search(host, stripes, trials=1).run()
    (stripes / "across" / "3.png").unlink()
    watcher = Recorder()
    with pytest.raises(StudyError, match=r"The images have changed: the 1 complete trials .* with --trials 2 or more"):
        search(host, stripes, watcher, trials=1).run()
    assert any("(1 gone ('across/3.png'))" in note for note in watcher.notes)


def test_a_kill_between_the_last_trial_and_the_result_loses_nothing(host, stripes, monkeypatch):
    search(host, stripes, trials=2).run()
    with monkeypatch.context() as patch:
        patch.setattr(searching, "finish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            search(host, stripes, trials=4).run()
    assert +Counter(search(host, stripes, trials=4).run().trials) == {"complete": 4}
    refitted, as_in_trial = (search(host, stripes, trials=4, refit=refit).run().final for refit in (True, False))
    assert refitted.train_on == ("train", "early_stop", "val")
    assert as_in_trial.train_on == ("train",)


def test_a_study_resumes_with_its_own_settings(host, stripes):
    search(host, stripes, trials=2).run()
    more = search(host, stripes, trials=4, backbones=("reference:edges", "tiny:net")).run()  # in another order
    assert +Counter(more.trials) == {"complete": 4}
    assert +Counter(search(host, stripes, trials=5, backbones=()).run().trials) == {"complete": 5}
    with pytest.raises(StudyError, match="started with backbones reference:edges, tiny:net, not tiny:net"):
        search(host, stripes, trials=6, backbones=("tiny:net",))
    with pytest.raises(StudyError, match="storage None → sqlite"):
        search(host, stripes, trials=6, storage="sqlite:///elsewhere.db").run()


def test_a_storage_that_cannot_be_used_is_an_error_before_any_trial(host, stripes):
    for url, says in (("nonsense", "not a database URL"), ("sqlite:////nowhere/at/all.db", "cannot use the storage")):
        with pytest.raises(StudyError, match=says):
            search(host, stripes, storage=url).run()


def test_a_strategy_that_suggests_no_plan_is_named(host, stripes):
    class Empty:
        def suggest(self, trial, context):
            return None

    class Plugin:
        @hookimpl
        def register_strategies(self, register):
            register("empty", Empty, summary="suggests nothing")

    host.add(Plugin(), "empty-plugin")
    with pytest.raises(StudyError, match="Strategy 'empty' of .* suggested NoneType, not a plan"):
        search(host, stripes, strategies=("empty",), trials=1).run()


def test_a_study_without_trials_starts_again(host, stripes, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Work, "run", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            search(host, stripes, metric="macro-f1").run()
    assert search(host, stripes, trials=1).run().test.metric == "accuracy"


def test_images_that_cannot_be_used_are_an_error_before_anything_is_downloaded_or_written(host, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(choices.pools, "choose", lambda *_: 1 / 0)
    with pytest.raises(DataError, match="has no images"):
        search(host, tmp_path / "empty")
    assert not (tmp_path / "studies").exists()


def test_linear_probes_run_before_trainings(host, stripes):
    made = search(host, stripes, strategies=("fine-tune", "linear-probe"), trials=3, reruns=0, compare=False)
    made.run()
    drawn = [record.params for record in made.folder.log.records()]
    assert [params["strategy"] for params in drawn] == ["linear-probe", "linear-probe", "fine-tune"]
    assert {params["backbone"] for params in drawn[:2]} == {"tiny:net", "reference:edges"}


def test_a_first_guess_for_a_backbone_outside_the_study_is_tried_on_another(host, stripes):
    class Picky(LinearProbe):
        first_guess: ClassVar = {"backbone": "timm:resnet18", "cut": 0.0}

    class Plugin:
        @hookimpl
        def register_strategies(self, register):
            register("picky", Picky, summary="wants a backbone outside the study")

    host.add(Plugin(), "picky-plugin")
    made = search(host, stripes, backbones=("tiny:net",), strategies=("picky",), trials=1, reruns=0, compare=False)
    made.run()
    (record,) = made.folder.log.records()
    best = max(read_probe(made.folder), key=lambda row: row.accuracy)
    assert (record.state, record.plan.backbone, record.plan.cut) == ("complete", "tiny:net", best.cut)


def test_images_that_disappear_end_the_search_and_not_its_trial(host, stripes, monkeypatch):
    def gone(*_):
        raise DataError("it has changed since the data was opened")

    made = search(host, stripes, trials=2)
    with monkeypatch.context() as patch:
        patch.setattr(Bench, "decode", gone)
        with pytest.raises(DataError, match="has changed"):
            made.run()
    assert [record.state for record in made.folder.log.records()] == ["interrupted"]
    assert +Counter(search(host, stripes, trials=2).run().trials) == {"complete": 2}


def test_a_study_of_a_running_search_is_not_changed(host, stripes):
    made = search(host, stripes)
    with made.folder.lock(), pytest.raises(StudyError, match="being searched by another process"):
        search(host, stripes).run()


def _end_in_trial(host, end, number, times=1):
    """Make the strategy `linear-probe` call `end` in one trial, the given number of times."""
    probe = host.strategies["linear-probe"].item
    suggest = probe.suggest
    ended = []

    def ending(trial, context):
        plan = suggest(trial, context)
        if trial.number == number and len(ended) < times:
            ended.append(number)
            end()
        return plan

    probe.suggest = ending


def _drawn(made):
    return [(r.number, r.state, r.params, r.plan.hash) for r in made.folder.log.records()]


def test_ctrl_c_keeps_finished_work_and_the_trial_runs_again_with_its_draws(host, stripes):
    whole = search(host, stripes, trials=9, study="whole")
    whole.run()

    def stop():
        raise KeyboardInterrupt

    _end_in_trial(host, stop, number=6)
    with pytest.raises(KeyboardInterrupt):
        search(host, stripes, trials=9).run()
    made = search(host, stripes, trials=9)
    assert [record.state for record in made.folder.log.records()] == ["complete"] * 6 + ["interrupted"]
    assert +Counter(made.run().trials) == {"complete": 9}
    assert _drawn(made) == _drawn(whole)


def _killed(host, data, kill, **settings):
    """Run a search in a process of its own until `kill` ends it."""
    child = os.fork()
    if child == 0:
        kill(host)
        search(host, data, **settings).run()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_killed_search_draws_what_an_uninterrupted_one_draws(host, stripes):
    whole = search(host, stripes, trials=20, study="whole")
    whole.run()
    search(host, stripes, trials=5).run()
    _killed(host, stripes, lambda host: _end_in_trial(host, lambda: os._exit(9), number=5), trials=20)
    watcher = Recorder()
    made = search(host, stripes, watcher, trials=20)
    assert [record.state for record in made.folder.log.records()] == ["complete"] * 5 + ["running"]
    assert +Counter(made.run().trials) == {"complete": 20}
    assert watcher.done == list(range(6, 21))
    assert _drawn(made) == _drawn(whole)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("most", [3, 1])
def test_a_trial_that_kills_its_process_too_often_at_the_same_point_has_failed(host, stripes, most):
    kill = partial(_end_in_trial, end=lambda: os._exit(9), number=2)
    for _ in range(most):
        _killed(host, stripes, kill, trials=4)
    made = search(host, stripes, trials=4, max_kills=most)
    assert +Counter(made.run().trials) == {"complete": 3, "failed": 1}
    assert made.folder.log.read(2).reason == f"its process was killed {most} times before its first epoch"


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("state", ["complete", "pruned"])
def test_a_kill_between_the_log_and_optuna_counts_the_trial_once(host, stripes, state, monkeypatch):
    def kill(host):
        tell = optuna.Study.tell

        def telling(study, number, *args, **kwargs):
            if number == 2:
                os._exit(9)
            return tell(study, number, *args, **kwargs)

        monkeypatch.setattr(optuna.Study, "tell", telling)
        if state == "pruned":
            _end_in_trial(host, _prune, number=2)

    _killed(host, stripes, kill, trials=5)
    made = search(host, stripes, trials=5)
    assert [record.state for record in made.folder.log.records()] == ["complete", "complete", state]
    assert sum(made.run().trials.values()) == 5
    stored = optuna.load_study(study_name=None, storage=f"sqlite:///{made.folder.path / 'optuna.db'}")
    assert [trial.state.name.lower() for trial in stored.trials] == [
        "complete",
        "complete",
        state,
        "complete",
        "complete",
    ]


def _prune():
    raise FellBehind


def test_a_failing_strategy_fails_its_trials_and_not_the_search(host, stripes):
    probe = host.strategies["linear-probe"].item

    class Moody:
        def suggest(self, trial, context):
            if trial.number % 2:
                raise ZeroDivisionError("not on odd days")
            return probe.suggest(trial, context)

    class Plugin:
        @hookimpl
        def register_strategies(self, register):
            register("moody", Moody, summary="fails every second time")

    host.add(Plugin(), "moody-plugin")
    made = search(host, stripes, strategies=("moody",), trials=5)
    result = made.run()
    assert +Counter(result.trials) == {"complete": 3, "failed": 2}
    failed = [record for record in made.folder.log.records() if record.state == "failed"]
    owner = "plugin 'moody-plugin' (not installed)"
    reason = f"Strategy 'moody' of {owner} fails: ZeroDivisionError: not on odd days"
    assert {record.reason for record in failed} == {reason}


def test_a_search_in_which_every_trial_fails_says_why(host, stripes):
    class Never:
        def suggest(self, trial, context):
            raise LookupError("nothing to suggest")

    class Plugin:
        @hookimpl
        def register_strategies(self, register):
            register("never", Never, summary="has nothing to suggest")

    host.add(Plugin(), "never-plugin")
    with pytest.raises(StudyError, match="No trial of study 'stripes' succeeded.*nothing to suggest"):
        search(host, stripes, strategies=("never",), trials=2).run()


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"backbones": ("timm:resnet5",)}, PluginError, "Unknown backbone 'timm:resnet5'. Did you mean 'timm:"),
        ({"backbones": ("resnet18",)}, PluginError, "family:architecture"),
        ({"backbones": ("torchvision:zzz*",)}, PluginError, "No backbone matches"),
        ({"backbones": ("torchvision:resnet18",)}, WeightsError, "autotl weights fetch torchvision:resnet18"),
        ({"strategies": ("fine-tun",)}, PluginError, "Unknown strategy 'fine-tun'"),
        ({"device": "cuda:77"}, StudyError, "Use --device auto or cpu"),
        ({"weights": {"torchvision:alexnet": Path("x.pth")}}, StudyError, "Add it to --backbones"),
        ({"study": "../escape"}, StudyError, "cannot be a study's name"),
        ({"weights": {"reference:pixels": Path("x")}}, WeightsError, "does not use a weights file"),
        ({"weights": {"torchvision:resnet18": Path("/nowhere.pth")}, "backbones": ("torchvision:resnet18",)},
         WeightsError, "No weights for 'torchvision:resnet18': '/nowhere.pth' does not exist."),
    ],
)  # fmt: skip
def test_what_cannot_be_searched_is_an_error_at_the_start(host, stripes, settings, error, says, tmp_path):
    with pytest.raises(error, match=says):
        search(host, stripes, **settings)
    assert not (tmp_path / "studies").exists()


def test_a_search_works_on_a_device_with_memory_for_few_images(host, stripes, little_memory):
    little_memory()
    assert search(host, stripes, budget=600.0, trials=3).run().trials["complete"] == 3


class Odd(TinyFamily):
    """Networks: one works, one cannot be split, one fails on images and one gives values that are not finite."""

    more = {"net": 0, "decides": 0, "fails": 0, "refuses": 0}

    def build(self, name, weights):
        network = super().build(name, weights)
        if name == "refuses":
            network[2][1] = Refuses()
        if name == "fails":
            torch.nn.init.constant_(network[2][0].weight, math.nan)
        return network if name != "decides" else Decides()


class Refuses(torch.nn.ReLU):
    """Fails on real images, not on those that a split is made with."""

    def forward(self, value):
        if type(value) is torch.Tensor:
            raise RuntimeError("no kernel")
        return super().forward(value)


class Decides(torch.nn.Linear):
    def __init__(self):
        super().__init__(3, 3)

    def forward(self, images):
        return images if images.sum() > 0 else -images


class OddPlugin:
    @hookimpl
    def register_backbones(self, register):
        register("odd", Odd, summary="For a test")

    @hookimpl
    def register_strategies(self, register):
        register("linear-guess", lambda: 1 / 0, summary="For a test")


def test_a_broken_backbone_that_a_glob_matches_is_skipped_and_the_same_command_resumes(host, stripes):
    host.add(OddPlugin(), "odd-plugin")
    watcher = Recorder()
    chosen = {"backbones": ("odd:*",), "strategies": ("linear-*",)}
    made = search(host, stripes, watcher, trials=2, **chosen)
    made.run()
    for why in (
        "'odd:decides' of plugin 'odd-plugin'",
        "'odd:fails' of plugin 'odd-plugin'",
        "'odd:refuses' of plugin 'odd-plugin' (not installed) fails on images: RuntimeError: no kernel",
        "'linear-guess' of plugin",
    ):
        assert any("Warning: " in note and why in note for note in watcher.notes)
    assert set(made.folder.definition.backbones) == {"odd:net"}
    assert made.folder.definition.skipped == ("odd:decides", "odd:fails", "odd:refuses")
    assert search(host, stripes, trials=3, **chosen).run().trials["complete"] == 3
    with pytest.raises(StudyError, match=r"started with backbones odd:net, not reference:edges\."):
        search(host, stripes, trials=3, backbones=("reference:edges",))


@pytest.mark.parametrize("name", ["decides", "fails"])
def test_a_broken_backbone_that_is_named_in_full_ends_the_search_before_its_first_trial(host, stripes, name):
    host.add(OddPlugin(), "odd-plugin")
    named = ("odd:net", f"odd:{name}")
    with pytest.raises(PluginError, match=f"'odd:{name}' of plugin 'odd-plugin'"):
        search(host, stripes, backbones=named).run()
    assert search(host, stripes, trials=2, backbones=("odd:net",)).run().trials["complete"] == 2


def test_a_study_that_starts_again_forgets_the_earlier_probe(host, stripes, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Work, "_first_guesses", interrupted)  # after the probe, before any trial
        with pytest.raises(KeyboardInterrupt):
            search(host, stripes, strategies=("fine-tune",)).run()
    made = search(host, stripes, trials=1, backbones=("tiny:deep",))
    made.run()
    assert {row.backbone for row in read_probe(made.folder)} == {"tiny:deep"}


def test_a_study_resumes_with_another_device_of_its_kind(host, stripes):
    earlier = search(host, stripes, trials=2)
    earlier.run()
    assert earlier.folder.definition.device == "cpu"
    assert search(host, stripes, trials=3, device="cpu:0").run().trials["complete"] == 3
    assert earlier.folder.definition.device == "cpu"


@pytest.mark.parametrize("metric", ["balanced-accuracy", "macro-f1"])
def test_other_metrics_select_the_winner_and_are_tested(host, stripes, metric):
    made = search(host, stripes, metric=metric, trials=3, reruns=0)
    result = made.run()
    assert result.test.metric == metric
    assert result.best.validation == result.best.metrics[f"val.{metric}"]


def test_the_test_labels_have_no_influence(host, stripes):
    """With other labels in the test split alone, everything before the test is the same."""
    rows = [(file.relative_to(stripes), file.parent.name) for file in sorted(stripes.rglob("*.png"))]
    wrong = {"across": "down", "down": "checks", "checks": "across"}
    found = {}
    for name in ("right", "wrong"):
        lines = ["path,label,split"]
        for number, (path, label) in enumerate(rows):
            test = number % 4 == 0
            lines.append(f"{path},{wrong[label] if test and name == 'wrong' else label},{'test' if test else ''}")
        (stripes / f"{name}.csv").write_text("\n".join(lines))
        made = search(host, stripes / f"{name}.csv", trials=5)
        result = made.run()
        trials = [(r.params, r.plan.phases, {k: v for k, v in r.metrics.items() if "seconds" not in k})
                  for r in made.folder.log.records()]  # fmt: skip
        found[name] = (made.folder.probe.read_text(), trials, result.best.trial, result.best.validation), result.test
    assert found["right"][0] == found["wrong"][0]
    assert found["right"][1].value > found["wrong"][1].value


def test_a_study_is_shown_without_its_data(host, stripes, capsys):
    made = search(host, stripes, trials=3)
    result = made.run()
    shutil.rmtree(stripes)
    show_study(made.folder)
    shown = capsys.readouterr().out
    assert result.best.plan.backbone in shown
    assert f"{result.test.value:.1%}" in shown
    assert results.load(made.folder) == result


def test_the_test_counts_groups_and_classes(host, stripes):
    """Groups of five images, which get the same predictions."""
    rows = [
        f"{file.relative_to(stripes)},{file.parent.name},{file.parent.name}{int(file.stem) // 5}"
        for file in sorted(stripes.rglob("*.png"))
    ]
    (stripes / "manifest.csv").write_text("\n".join(["path,label,group", *rows]))
    made = search(host, stripes / "manifest.csv", trials=1, backbones=("tiny:net",))
    result = made.run()
    assert (result.test.images, result.test.units, result.test.most_frequent) == (15, 3, pytest.approx(1 / 3))
    assert {name: each.images for name, each in result.test.classes.items()} == dict.fromkeys(
        ("across", "checks", "down"), 5
    )
    right = sum(each.right for each in result.test.classes.values())
    assert result.test.value == right / 15
    assert result.test.high - result.test.low > 0.5
    (comparison, *_) = result.comparisons.values()
    assert comparison.high - comparison.low > 0.5
    card = (made.folder.bundle / "README.md").read_text()
    assert "(15 images of 3 groups that were used" in card and "of 5 correct" in card
    assert "| the most frequent class alone | 33.3% |" in card


@pytest.mark.parametrize(("metric", "first"), [("accuracy", "none"), ("balanced-accuracy", "balanced")])
def test_if_classes_are_unequal_the_metric_sets_the_first_class_weights(host, stripes, metric, first):
    for number in range(7, 30):
        (stripes / "checks" / f"{number}.png").unlink()
    made = search(host, stripes, trials=1, backbones=("tiny:net",), metric=metric)
    result = made.run()
    (record,) = made.folder.log.records()
    assert record.params["class_weights"] == first
    assert result.best.plan.phases[0].options.get("class_weights", "none") == first
    assert result.imbalance > 3
    pixels = result.comparisons["reference:pixels"].plan
    assert pixels.phases[0].options.get("class_weights", "none") == first


@pytest.mark.parametrize("how", [{"sampling": "balanced"}, {"class_weights": "effective"}])
def test_a_fixed_balance_of_classes_reaches_the_training_and_the_baselines(host, stripes, how):
    for number in range(7, 30):
        (stripes / "checks" / f"{number}.png").unlink()
    fixed = {"recipe.length": 0, "class_weights": "none", **how}
    given = {"strategies": ("full",), "techniques": ("balanced-sampling",), "set": fixed}
    made = search(host, stripes, trials=1, backbones=("tiny:net",), **given)
    result = made.run()
    training = result.best.plan.phases[0].training
    assert {name: getattr(training, name) for name in how} == how
    pixels = result.comparisons["reference:pixels"].plan
    assert pixels.phases[0].options["class_weights"] == training.counted
