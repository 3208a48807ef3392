"""`--set`: parameters with the value that the user gave, which the search records and does not draw."""

import json
import time

import optuna
import pytest
from click.testing import CliRunner

from autotl import Head, hookimpl
from autotl.builtin import logistic
from autotl.cli.main import main
from autotl.errors import StudyError
from autotl.host import Host
from autotl.report import words
from autotl.study.fixed import Fixed, NotAllowed
from autotl.study.joining import Joining
from autotl.study.search import Search
from autotl.study.settings import Settings, parsed, said
from autotl.study.storage import SharedStudy
from autotl.study.watch import Silent
from autotl.testing.lab import TinyPlugin

QUICK = {"reruns": 0, "compare": False, "refit": False, "device": "cpu", "backbones": "tiny:net"}


class Recorder(Silent):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def trial(**values):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    return Fixed(study.ask(), {name.replace("_", "."): value for name, value in values.items()})


def test_a_fixed_parameter_has_its_value_and_no_range():
    fixed = trial(a_float=1, a_step=0.5, a_int=8.0, a_choice="16", a_flag=True, a_text="max")
    assert fixed.suggest_float("a.float", 0.1, 10, log=True) == 1.0
    assert fixed.suggest_float("a.step", 0, 1, step=0.25) == 0.5
    assert fixed.suggest_int("a.int", 2, 10, step=2) == 8
    assert fixed.suggest_categorical("a.choice", [8, 16]) == 16
    assert fixed.suggest_categorical("a.flag", [1, True, False]) is True
    assert fixed.suggest_categorical("a.text", ["avg", "max"]) == "max"
    assert isinstance(fixed.params["a.float"], float) and isinstance(fixed.params["a.int"], int)
    assert all(each.single() for each in fixed._trial.distributions.values())
    assert 2 < fixed.suggest_float("free", 2, 3) < 3


@pytest.mark.parametrize(
    ("value", "ask", "says"),
    [
        (5, ("float", 1e-4, 1), "--set x.y=5: it must be a number from 0.0001 to 1."),
        (True, ("float", 0, 1), "--set x.y=true: it must be a number from 0 to 1."),
        ("lots", ("float", 0, 1), "--set x.y=lots: it must be a number from 0 to 1."),
        (2.5, ("int", 2, 6), "--set x.y=2.5: it must be a whole number from 2 to 6."),
        ("flop", ("categorical", ["flip", 16, "16", None]), '--set x.y=flop: it must be one of flip, 16, "16", null.'),
    ],
)
def test_a_value_that_is_not_allowed_names_those_that_are(value, ask, says):
    kind, *allowed = ask
    with pytest.raises(NotAllowed) as error:
        getattr(trial(x_y=value), f"suggest_{kind}")("x.y", *allowed)
    assert str(error.value) == says


@pytest.mark.parametrize("value", [1, 0.01, -3.5e-7, True, None, "none", "16", "true", "a b", '"', "NaN", "é"])
def test_what_is_said_is_parsed(value):
    again = parsed(said(value))
    assert (again, type(again)) == (value, type(value))


@pytest.mark.parametrize("text", ["nan", "NaN", "inf", "1e999", "[1]", "{}", "none"])
def test_what_is_no_value_is_a_text(text):
    assert parsed(text) == text


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"strategy": "full"}, "'strategy' is chosen by --strategies"),
        ({"backbone": "tiny:net"}, "'backbone' is chosen by --backbones"),
        ({"a": {"b": [1]}}, "the value of 'a.b' must be a number, a text, true, false or null"),
        ({"a": float("nan")}, "the value of 'a' must be a number"),
        ("a=1", "it must be a table of parameters and their values"),
    ],
)
def test_what_cannot_be_set_is_refused(values, says):
    with pytest.raises(StudyError, match=says):
        Settings.of({"data": "x", "set": values})


def host():
    made = Host()
    made.add(TinyPlugin(), "tiny-plugin")
    return made


def search(stripes, watcher=None, **options):
    known = Settings.of({"data": stripes, **QUICK, **options})
    return Search(known, host(), watcher or Silent(), time.monotonic())


def test_every_trial_has_the_value(stripes):
    """First guesses, too, and those that a worker runs; another value is another study."""
    fixed = {"recipe": {"schedule": "constant", "length": 0}, "augmentation": "flip", "optimizer": "sgd", "cut": 0.5}
    flat = {"recipe.schedule": "constant", "recipe.length": 0, "augmentation": "flip", "optimizer": "sgd", "cut": 0.5}
    options = {"strategies": "linear-probe,full,fine-tune", "trials": 4, "prune": False, "set": fixed}
    watcher = Recorder()
    made = search(stripes, watcher, **options)
    made.run()
    records = list(made.folder.log.records())
    for record in records:
        assert (
            record.state == "complete"
            and record.params.items() >= {name: value for name, value in flat.items() if name in record.params}.items()
        )
    full = next(record for record in records if record.params["strategy"] == "full")
    assert full.plan.trainings[0].optimizer.name == "sgd" and full.plan.augmentation.name == "flip"
    assert full.plan.trainings[0].schedule == "constant"
    assert "sgd.lr" in full.params and "adamw.lr" not in full.params
    assert not [note for note in watcher.notes if "--set" in note]
    assert made.folder.definition.set == flat

    study = SharedStudy.join(made.folder.storage, made.folder.definition.optuna)
    worker = Joining(study, host(), Silent(), data=None, device="cpu", cache_dir=made.cache_dir, weights={})
    assert worker.definition.set == flat
    command = words.go_on(made.folder, made.folder.definition)
    assert "--set recipe.schedule=constant --set recipe.length=0 --set augmentation=flip --set optimizer=sgd" in command
    with pytest.raises(StudyError, match=r"started with other settings: set cut 0.5 → 0.9. Use the same settings"):
        search(stripes, **{**options, "set": {**flat, "cut": 0.9}}).run()
    assert search(stripes, **{**options, "trials": 5}).run().trials["complete"] == 5


def test_a_wrong_value_ends_the_search_before_its_study_begins(stripes):
    made = search(stripes, strategies="full", set={"recipe.batch_norm": "evil"})
    with pytest.raises(StudyError, match="--set recipe.batch_norm=evil: it must be one of eval, train"):
        made.run()
    assert not made.folder.definition
    options = {"strategies": "full", "trials": 1}
    assert search(stripes, set={"recipe.batch_norm": "train", "cut": 1.0}, **options).run().trials["complete"] == 1


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("cutt", "--set: Unknown parameter 'cutt'. Did you mean 'cut'?"),
        ("q", "--set: Unknown parameter 'q'. Known: adamw.head_lr, adamw.lr, "),
        ("recipe.schedul", "--set: Unknown parameter 'recipe.schedul'. Did you mean 'recipe.schedule'?"),
        ("recip.schedule", "--set: Unknown parameter 'recip.schedule'. Did you mean 'recipe.schedule'?"),
        ("reference.x", "--set: Unknown parameter 'reference.x'. Known: "),
    ],
)
def test_a_name_that_nothing_can_draw_ends_the_search_before_its_study_begins(stripes, name, says):
    made = search(stripes, strategies="fine-tune", set={name: 1.0})
    with pytest.raises(StudyError) as error:
        made.run()
    assert str(error.value).startswith(says)
    assert not made.folder.definition


def test_a_name_that_may_be_drawn_in_rare_cases_is_reported_before_and_after(stripes):
    """With the technique mixup a strategy would draw it."""
    watcher, options = Recorder(), {"strategies": "linear-probe", "set": {"recipe.mixup": 0.5, "pooling": "max"}}
    search(stripes, watcher, trials=1, **options).run()
    first, last = (note for note in watcher.notes if "--set" in note)
    problem = "Unknown parameter 'recipe.mixup'. Known: cut, pooling."
    assert first == f"Warning: --set: {problem} No strategy drew it for 24 test plans."
    assert last == f"Warning: --set had no effect on any trial: {problem}"
    search(stripes, **options, trials=2).run()


def test_a_value_that_only_a_trial_can_refuse_ends_the_search_with_that_error(stripes):
    class Rare:
        calls = 0

        def suggest(self, trial, context):
            Rare.calls += 1
            if Rare.calls > 24:
                trial.suggest_float("rare.x", 0, 1)
            cut = context.cut()
            return context.plan(cut=cut, head=Head(pooling="avg"), phases=[logistic.probe(cut)])

    class Plugin:
        @hookimpl
        def register_strategies(self, register):
            register("rare", Rare, summary="For a test")

    made = host()
    made.add(Plugin(), "rare-plugin")
    known = Settings.of({"data": stripes, **QUICK, "strategies": "rare", "trials": 2, "set": {"rare.x": 3}})
    with pytest.raises(NotAllowed, match="--set rare.x=3: it must be a number from 0 to 1."):
        Search(known, made, Silent(), time.monotonic()).run()


def test_the_command_and_a_study_file_take_it(stripes, tmp_path):
    quick = ["--reruns", "0", "--no-compare", "--no-refit", "--device", "cpu", "--no-mlflow", "--trials", "1", "--json"]
    own = ["--backbones", "reference:pixels", "--strategies", "linear-probe"]
    run = lambda *more: CliRunner().invoke(main, ["search", *more, *quick, *own])  # noqa: E731
    done = run(str(stripes), "--set", "pooling=max")
    assert json.loads(done.stdout)["best"]["plan"]["head"]["pooling"] == "max"
    file = tmp_path / "study.toml"
    file.write_text(f'data = "{stripes.name}"\nstudy = "two"\n[set]\npooling = "max"\nrecipe.mixup = 1\n')
    done = run("--config", str(file))
    assert json.loads(done.stdout)["best"]["plan"]["head"]["pooling"] == "max"
    assert json.loads((tmp_path / "studies/two/study.json").read_text())["set"] == {"pooling": "max", "recipe.mixup": 1}
    assert "'pooling' is not of the form NAME=VALUE" in run(str(stripes), "--set", "pooling").output
