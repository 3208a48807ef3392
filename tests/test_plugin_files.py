"""A plugin in a single file: it needs no installation, and a study finds it again."""

import json
import time
from hashlib import sha256

import pytest
from click.testing import CliRunner
from PIL import Image

import autotl
from autotl import hookimpl
from autotl.cli.main import main
from autotl.errors import PluginError, StudyError
from autotl.host import Host
from autotl.report.outcome import Outcome
from autotl.study.joining import Joining
from autotl.study.search import Search
from autotl.study.settings import Settings
from autotl.study.storage import SharedStudy
from autotl.study.watch import Silent
from autotl.tracking.folder import StudyFolder

IDEA = """
from dataclasses import dataclass
from autotl import Head, Phase, hookimpl

@dataclass(frozen=True)
class Idea:
    pooling: str = "avg"

    def suggest(self, trial, context):
        penalty = trial.suggest_float("idea.penalty", 0.01, 1, log=True)
        cut = context.backbone().names[-1]
        phase = Phase(method="logistic", frozen=cut, options={"penalty": penalty})
        return context.plan(cut=cut, head=Head(pooling=self.pooling), phases=[phase])

@hookimpl
def register_strategies(register):
    register("idea", Idea, summary="For a test")

@hookimpl
def register_backbones(register):
    register("mine", family, summary="For a test")

def family():
    from autotl.testing.lab import TinyFamily
    return TinyFamily()
"""
QUICK = {"trials": 2, "reruns": 0, "compare": False, "refit": False, "device": "cpu", "mlflow": False}


@pytest.fixture
def idea(tmp_path):
    file = tmp_path / "plugins" / "my-idea.py"
    file.parent.mkdir()
    file.write_text(IDEA)
    return file


def settings(stripes, **more):
    return Settings.of({"data": stripes, "backbones": "mine:net", "strategies": "idea", **QUICK, **more})


def search(stripes, **more):
    known = settings(stripes, **more)
    return Search(known, Host.from_environment(known.plugins), Silent(), time.monotonic())


def worker(folder, host):
    study = SharedStudy.join(folder.storage, folder.definition.optuna)
    return Joining(study, host, Silent(), data=None, device="cpu", cache_dir=folder.path / "cache", weights={})


def version(file):
    return f"sha256:{sha256(file.read_bytes()).hexdigest()[:12]}"


def test_a_file_is_its_own_distribution(idea):
    host = Host()
    host.add(idea)
    host.add(str(idea))
    assert not host.problems
    owner = host.strategies["idea"].owner
    assert (owner.distribution, owner.version) == ("my-idea.py", version(idea))
    assert str(owner) == f"plugin 'my-idea.py' ({idea})"
    assert host.given == {str(idea): sha256(idea.read_bytes()).hexdigest()}
    assert type(host.strategies["idea"].item).__name__ == "Idea"


def test_what_runs_is_what_the_file_holds_now(idea):
    """Also if it was edited within the same second, to the same length."""
    for word in ("max", "avg"):
        idea.write_text(IDEA.replace('"avg"', f'"{word}"'))
        host = Host()
        host.add(idea)
        assert host.strategies["idea"].item.pooling == word


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("broken.py", "1 / 0", "ZeroDivisionError: division by zero"),
        ("typo.py", "def", "SyntaxError: "),
        ("unmarked.py", IDEA.replace("@hookimpl", ""), "register_backbones is not marked with @autotl.hookimpl"),
        ("notes.txt", IDEA, "it is not a Python file"),
        ("gone.py", None, "the file does not exist"),
    ],
)
def test_a_broken_file_is_reported_as_a_broken_plugin_is(tmp_path, name, text, says):
    file = tmp_path / name
    if text:
        file.write_text(text)
    host = Host.from_environment([file])
    (problem,) = host.problems
    assert str(problem).startswith(f"plugin '{name}' ({file}) was skipped: ") and says in str(problem)
    assert "idea" not in host.strategies and not host.given


def test_two_files_of_one_name_are_one_too_many(idea, tmp_path):
    other = tmp_path / "my-idea.py"
    other.write_text(IDEA)
    host = Host.from_environment([idea, other])
    assert f"plugin 'my-idea.py' ({idea}) is already loaded" in host.problems[0].reason


def test_an_error_in_it_names_the_line(idea):
    idea.write_text(IDEA.replace("penalty = ", "penalty = 1 / 0 + "))
    host = Host.from_environment([idea])
    entry = host.strategies["idea"]
    line = next(at for at, text in enumerate(idea.read_text().splitlines(), 1) if "1 / 0" in text)
    trial = type("Trial", (), {"suggest_float": lambda *words, **more: 0.1})()
    says = pytest.raises(PluginError, match=rf"'idea' of plugin 'my-idea.py' .* \(my-idea.py:{line}\)")
    with says, entry.owner.answers_for("'idea'"):
        entry.item.suggest(trial, None)


def test_a_study_finds_it_again(stripes, idea, tmp_path):
    made = search(stripes, plugins=[str(idea)])
    made.run()
    definition = made.folder.definition
    assert definition.plugins == {str(idea): sha256(idea.read_bytes()).hexdigest()}
    plans = [record.plan for record in made.folder.log.records()]
    assert all(plan.requires["my-idea.py"] == version(idea) for plan in plans)

    assert search(stripes, trials=3).run().trials["complete"] == 3
    image = next(stripes.rglob("*.png"))
    assert autotl.load("stripes").predict(image)[0] in definition.classes
    assert autotl.load(made.folder.bundle, device="cpu").predict(Image.open(image))
    assert Outcome(made.folder, made.cache_dir).model().plan.backbone == "mine:net"
    assert set(worker(made.folder, Host()).strategies) == {"idea"}

    copy = tmp_path / "elsewhere" / idea.name
    copy.parent.mkdir()
    idea.rename(copy)
    with pytest.raises(
        StudyError,
        match=rf"uses backbone family 'mine' of my-idea.py sha256:\w+, but {idea} does not exist or is broken. "
        "Restore the file, or name a copy of it with --plugin my-idea.py, or start another study: --study NAME",
    ):
        search(stripes)
    with pytest.raises(StudyError, match="does not exist or is broken"):
        worker(made.folder, Host())
    with pytest.raises(PluginError, match="'mine', which one of these files registered: my-idea.py. It does not exist"):
        autotl.load("stripes")
    assert autotl.load("stripes", plugins=[copy]).predict(image)
    assert search(stripes, plugins=copy, trials=4).run().trials["complete"] == 4
    assert list(made.folder.definition.plugins) == [str(copy)]


def test_changed_code_is_another_version(stripes, idea):
    made = search(stripes, plugins=idea)
    made.run()
    before = version(idea)
    idea.write_text(IDEA + "# edited\n")
    says = rf"of my-idea.py {before}, but {idea} is {version(idea)} now. Restore the file"
    with pytest.raises(StudyError, match=says):
        search(stripes)
    with pytest.raises(StudyError, match=says):
        worker(made.folder, Host())
    with pytest.raises(PluginError, match=rf"trained with my-idea.py {before}, but {idea} is {version(idea)} now"):
        autotl.load("stripes")
    again = search(stripes, plugins=idea, study="again")
    again.run()
    (one, *_), (two, *_) = ([record.plan for record in each.folder.log.records()] for each in (made, again))
    assert one.requires["my-idea.py"] != two.requires["my-idea.py"] and one.hash != two.hash


def test_what_no_trial_has_used_may_change(stripes, idea):
    """So the author of a strategy that fails at once can correct it and resume."""
    idea.write_text(IDEA.replace("penalty = ", "penalty = 1 / 0 + "))
    more = {"plugins": idea, "backbones": "reference:pixels", "strategies": "idea,linear-probe"}
    search(stripes, **more).run()
    idea.write_text(IDEA)
    result = search(stripes, **{**more, "trials": 4}).run()
    assert (result.trials["failed"], result.trials["complete"]) == (1, 3)


def test_an_object_cannot_be_found_again_by_a_worker(stripes):
    class Cell:
        @hookimpl
        def register_backbones(self, register):
            from autotl.testing.lab import TinyFamily

            register("mine", TinyFamily, summary="For a test")

    made = search(stripes, plugins=[Cell()], strategies="linear-probe")
    made.run()
    assert made.folder.definition.plugins == {"Cell": ""}
    with pytest.raises(StudyError, match="plugin 'Cell', an object .* a worker cannot load. Save it as a file"):
        worker(made.folder, Host())
    with pytest.raises(StudyError, match="'mine'"):
        search(stripes, strategies="linear-probe")
    assert search(stripes, plugins=Cell(), strategies="linear-probe", trials=3).run().trials["complete"] == 3


def test_a_file_that_is_not_there_is_no_setting():
    with pytest.raises(StudyError, match=r"plugins='gone.py': there is no file gone.py."):
        Settings.of({"data": "x", "plugins": "gone.py"})


def test_the_commands_take_it(stripes, idea, tmp_path, monkeypatch):
    def run(*words, code=0):
        done = CliRunner().invoke(main, [*map(str, words)])
        assert done.exit_code == code, done.output
        return done.output

    assert f"(my-idea.py {version(idea)})" in run("plugins", "--plugin", idea)
    assert "idea" in run("plugins", "strategies", "idea", "--plugin", idea)
    assert "mine:net" in run("plugins", "--plugin", idea, "backbones", "mine:*")
    assert "plugin my-idea.py" in run("doctor", "--plugin", idea).replace("  ", " ")
    assert "mine:net  needs none" in run("weights", "fetch", "mine:net", "--plugin", idea)
    assert "does not exist" in run("plugins", "--plugin", tmp_path / "gone.py", code=2)
    file = tmp_path / "study.toml"
    file.write_text(
        f'data = "{stripes.name}"\nplugins = ["plugins/my-idea.py"]\nbackbones = "mine:net"\nstrategies = "idea"\n'
        'trials = 1\nreruns = 0\ncompare = false\nrefit = false\ndevice = "cpu"\nmlflow = false\n'
    )
    result = json.loads(run("search", "--config", file, "--json"))
    assert result["best"]["strategy"] == "idea"
    folder = StudyFolder(tmp_path / "studies" / "stripes")
    assert list(folder.definition.plugins) == [str(idea)]
    (line,) = folder.searches.read_text().splitlines()
    assert f"--plugin {idea}" in json.loads(line)["command"]
    plan = tmp_path / "plan.json"
    plan.write_text(run("show", "stripes", "--plan", 0))
    assert "val.accuracy" in run("train", plan, stripes, "--device", "cpu", "--plugin", idea)
    run("predict", folder.bundle, next(stripes.rglob("*.png")))
    run("export", "stripes", "--format", "bundle", "--out", tmp_path / "copy")
    told = run("predict", tmp_path / "copy", next(stripes.rglob("*.png")), code=2)
    assert told.count("\n") == 1 and "name it with --plugin FILE.py" in told
    run("predict", tmp_path / "copy", next(stripes.rglob("*.png")), "--plugin", idea)
    file.write_text(file.read_text().replace('["plugins/my-idea.py"]', "5"))
    assert "plugins must be a list of texts, not 5." in run("search", "--config", file, code=2)
