"""The commands as a user types them."""

import csv
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from collections import Counter
from datetime import timedelta
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from autotl.cli import search as searching
from autotl.cli.main import main
from autotl.study.settings import seconds


@pytest.fixture
def autotl(tmp_path, monkeypatch):
    """Runs `autotl …` in the test's folder: its standard output, or its standard error if it should fail."""
    monkeypatch.chdir(tmp_path)

    def run(*words, code=0, raw=False):
        done = CliRunner().invoke(main, list(map(str, words)))
        assert done.exception is None or isinstance(done.exception, SystemExit), repr(done.exception)
        assert done.exit_code == code, done.output
        if raw:
            return done.stdout_bytes
        return done.output if code == 2 else done.stdout

    return run


BACKBONES = "reference:edges,reference:pixels"
PROBE = ("--strategies", "linear-probe")


def test_from_a_sample_to_predictions(autotl, tmp_path):
    assert "1797 images in 10 classes" in autotl("sample", "digits", "digits")
    for folder in (tmp_path / "digits").iterdir():  # a tenth of them is enough here
        for file in sorted(folder.iterdir())[20:]:
            file.unlink()

    found = json.loads(autotl("search", "digits", "--trials", 4, "--backbones", BACKBONES, *PROBE, "--json"))
    assert found["study"] == "digits"
    assert +Counter(found["trials"]) == {"complete": 4}
    assert found["test"]["metric"] == "accuracy"
    assert 0.3 < found["test"]["low"] < found["test"]["value"] < found["test"]["high"] <= 1
    assert found["seconds"] > 0

    assert json.loads(autotl("show", "digits", "--json")) == found
    shown = autotl("show", "digits")
    assert "Winner: reference:" in shown
    assert "digits" in autotl("studies")

    # The plan alone gives the numbers again: of the trial, and of the winner's median run, which judged other images.
    plan = tmp_path / "plan.json"
    plan.write_text(autotl("show", "digits", "--plan", found["best"]["trial"]))
    of_trial = json.loads(autotl("train", plan, "digits", "--json"))["metrics"]
    assert of_trial["val.accuracy"] == found["best"]["runs"][0]["value"]
    plan.write_text(json.dumps(found["best"]["plan"]))
    trained = json.loads(autotl("train", plan, "digits", "--json"))["metrics"]
    best = found["best"]["metrics"]
    assert {k: v for k, v in trained.items() if "seconds" not in k} == {
        k: v for k, v in best.items() if "seconds" not in k
    }

    # The bundle's own plan gives the bundle again; study and both bundles predict the same.
    autotl("train", tmp_path / found["bundle"] / "plan.json", "digits", "--out", "model")
    pair = [
        (folder / "weights.safetensors").read_bytes() for folder in (tmp_path / "model", tmp_path / found["bundle"])
    ]
    assert pair[0] == pair[1]
    rows = list(csv.DictReader(io.StringIO(autotl("predict", "digits", "digits/3"))))
    assert [row["path"] for row in rows] == [f"digits/3/{n}" for n in sorted(os.listdir(tmp_path / "digits/3"))]
    assert sum(row["class"] == "3" for row in rows) >= 10
    assert all(0.1 < float(row["probability"]) <= 1 for row in rows)
    assert list(csv.DictReader(io.StringIO(autotl("predict", found["bundle"], "digits/3")))) == rows
    alone = list(csv.DictReader(io.StringIO(autotl("predict", "model", "digits/3"))))
    assert alone == [{**row, "certainty": ""} for row in rows]  # no trials, so nothing tells what is sure

    file = rows[0]["path"]
    (answer,) = json.loads(autotl("predict", "digits", file, "--format", "json"))
    assert answer["class"] == rows[0]["class"]
    assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-4)


def test_the_output_is_plain_lines_outside_a_terminal(autotl, stripes):
    out = autotl("search", stripes, "--trials", 3, "--backbones", "reference:edges", *PROBE)
    assert "\x1b" not in out
    assert re.search("images +90 in 3 classes", out)
    assert "Features will take about" in out
    assert out.count("linear-probe reference:edges → ") == 3
    compared = "Compared with reference:pixels"
    for words in ("Winner: reference:edges", "Test accuracy", "95 % confidence", compared, "Next:"):
        assert words in out


@pytest.mark.parametrize(
    "option", [option.name for option in searching.command.params if option.metavar in ("NAME,…", "KIND,…")]
)
def test_a_single_name_in_a_file_needs_no_list(tmp_path, option):
    file = tmp_path / "studies.toml"
    file.write_text(f'{option} = "one"\n')
    asked = searching.command.make_context("search", [str(tmp_path), "--config", str(file)])
    assert asked.params[option] == ("one",)


def test_the_models_of_an_ensemble_are_counted_from_one(tmp_path):
    file = tmp_path / "studies.toml"
    file.write_text("ensemble = 3\n")
    asked = searching.command.make_context("search", [str(tmp_path), "--config", str(file)])
    assert asked.params["ensemble"] == 3
    with pytest.raises(click.BadParameter, match="0 is not in the range x>=1"):
        searching.command.make_context("search", [str(tmp_path), "--ensemble", "0"])


def test_a_study_file_gives_options_and_the_command_line_overrides_it(autotl, stripes, tmp_path):
    file = tmp_path / "studies.toml"
    file.write_text(
        f'data = "{stripes.name}"\ntrials = 2\nbackbones = ["reference:edges"]\nmetric = "macro-f1"\nseed = 3\n'
        'strategies = ["linear-probe"]\ncache-dir = "here"\n'
    )
    found = json.loads(autotl("search", "--config", file, "--metric", "balanced-accuracy", "--json"))
    assert +Counter(found["trials"]) == {"complete": 2}
    assert found["test"]["metric"] == "balanced-accuracy"
    assert found["best"]["plan"]["data"]["split_seed"] == 3
    assert (tmp_path / "here" / "pixels").is_dir()

    file.write_text('dota = "x"\n')
    assert "Unknown key 'dota'. Did you mean 'data'" in autotl("search", "--config", file, code=2)
    for line, says in (
        ("json = true", "Unknown key 'json'"),
        ('weights = "x"', "weights must be a table"),
        ("data = 5", "data must be a text"),
        (f'data = "{stripes.name}"\ntrials = "many"', "'many' is not a valid integer"),
    ):
        file.write_text(line)
        assert says in autotl("search", "--config", file, code=2)
    file.write_text("= 3")
    assert "cannot be read" in autotl("search", "--config", file, code=2)


def test_class_names_are_shown_as_they_are(autotl, stripes):
    (stripes / "down").rename(stripes / "[b]ünlikely [red] name")
    (stripes / "checks" / "0.png").unlink()
    out = autotl("search", stripes, "--trials", 1, "--backbones", "reference:edges", *PROBE)
    assert "'[b]ünlikely [red] name', 30 images" in out


def test_suggested_commands_work_for_all_names_of_data_and_workspace(autotl, stripes, tmp_path):
    stripes.rename(stripes.with_name("my stripes"))
    words = ("search", "my stripes", "--backbones", "reference:edges", *PROBE, "--metric", "macro-f1")
    printed = autotl(*words, "--trials", 1, "--home", "my home")
    steps = [shlex.split(line)[1:] for line in printed.partition("Next:")[2].splitlines() if line]
    assert [step[:4] for step in steps] == [
        [word, "my stripes", "--home", "my home"] for word in ("predict", "ui", "export", "show")
    ]
    assert "Winner" in autotl("show", *steps[-1][1:4])
    plan = autotl("show", "my stripes", "--home", "my home", "--plan", 9, code=2)
    assert plan.strip().endswith("List them: autotl show 'my stripes' --home 'my home'")
    (tmp_path / "my home" / "my stripes" / "result.json").unlink()
    printed = autotl("show", "my stripes", "--home", "my home", "--json", code=2)
    again = shlex.split(json.loads(printed)["error"].partition("resume it: autotl ")[2])
    assert +Counter(json.loads(autotl(*again, "--trials", 1, "--json"))["trials"]) == {"complete": 1}
    assert "autotl search DATA --home elsewhere" in autotl("studies", "--home", "elsewhere")


def test_suggested_commands_do_not_name_the_default_workspace(autotl, stripes, monkeypatch):
    monkeypatch.setenv("AUTOTL_HOME", "elsewhere")
    printed = autotl("search", stripes, "--trials", 1, "--backbones", "reference:edges", *PROBE, "--home", "elsewhere")
    assert "  autotl predict stripes IMAGE" in printed


@pytest.mark.parametrize(
    "words",
    [
        ("search", "nowhere", "--json"),
        ("search", "stripes", "--json", "--nonsense"),
        ("search", "stripes", "--json", "--device", "gpu"),
        ("show", "nothing", "--json"),
        ("predict", "nothing", "stripes", "--format", "json"),
        ("train", "stripes/down/0.png", "stripes", "--json"),
    ],
)
def test_with_json_an_error_is_json_too(autotl, stripes, words):
    printed = json.loads(autotl(*words, code=2))
    assert list(printed) == ["error"] and printed["error"] and not printed["error"].startswith("Error")


@pytest.mark.filterwarnings("ignore:Query string argument")
def test_the_secret_of_a_storage_is_neither_printed_nor_kept(autotl, stripes, tmp_path):
    words = ("search", stripes, "--backbones", "reference:edges", *PROBE)
    for url in (
        "postgresql+psycopg://me:a/SECRET@127.0.0.1:1/x",
        "postgresql+psycopg://me:a@SECRET@127.0.0.1:1/x",
        "postgresql+psycopg://127.0.0.1:1/x?password=SECRET",
        "postgresql:/me:SECRET@127.0.0.1/x",
    ):
        assert "SECRET" not in autotl(*words, "--storage", url, code=2)
        assert "SECRET" not in autotl("worker", "stripes", "--storage", url, code=2)
    shared = f"sqlite:///{tmp_path}/shared.db?token=SECRET"  # which SQLite ignores
    assert "SECRET" not in autotl(*words, "--trials", 1, "--storage", shared)
    assert "Set AUTOTL_STORAGE to the URL" in autotl("worker", "stripes", code=2)
    kept = [file for file in tmp_path.rglob("*") if file.is_file() and b"SECRET" in file.read_bytes()]
    assert not kept


def test_only_the_owner_can_read_files_of_a_study_that_may_contain_a_url(autotl, stripes, tmp_path):
    autotl("search", stripes, "--trials", 1, "--backbones", "reference:edges", *PROBE)
    study = tmp_path / "studies" / "stripes"
    for name in ("study.json", "optuna.db", "trials/00000.jsonl"):
        assert (study / name).stat().st_mode & 0o777 == 0o600, name


def test_a_study_whose_images_have_changed_has_no_picture_yet(autotl, stripes):
    words = ("search", stripes, "--backbones", "reference:edges", *PROBE)
    autotl(*words, "--trials", 1)
    (stripes / "across" / "0.png").unlink()
    autotl(*words, "--trials", 1, code=2)
    assert "No trial of study 'stripes' has succeeded" in autotl("show", "stripes", "--picture", "here.png", code=2)
    printed = " ".join(autotl("show", "stripes").split())
    assert "0 different plans trained in 1 trials" in printed
    assert printed.partition("seconds per trial ")[2].startswith("Winner: ")  # of the images as they were before


def test_files_that_are_no_images_are_named_and_the_others_are_classified(autotl, stripes, tmp_path):
    autotl("search", stripes, "--trials", 1, "--backbones", "reference:edges", *PROBE, "--json")
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    good = (stripes / "down" / "3.png").read_bytes()
    strange = {
        name: mixed / os.fsdecode(name) for name in (b"caf\xe9.png", b"x\x1b]0;OWNED\x07.png", b"two\nlines.png")
    }
    for file in (mixed / "a.png", *strange.values()):
        file.write_bytes(good)
    (mixed / "b.png").write_bytes(good[:200])
    (mixed / "c.txt").write_text("no image")
    for litter in ("Thumbs.db", "desktop.ini", "._a.png"):
        (mixed / litter).write_text("what Windows and macOS leave")
    (mixed / "gone.png").symlink_to("nowhere.png")
    os.mkfifo(mixed / "pipe")
    (mixed / ".hidden").mkdir()
    (mixed / ".hidden" / "d.png").write_bytes(good)
    table = autotl("predict", "stripes", "mixed", "nothing.png", code=1, raw=True)
    rows = {row["path"]: row for row in csv.DictReader(io.StringIO(os.fsdecode(table), newline=""))}
    assert {name for name, row in rows.items() if row["class"] == "down" and not row["problem"]} == {
        f"mixed/{file.name}" for file in (mixed / "a.png", *strange.values())
    }
    assert {name for name, row in rows.items() if row["problem"] and not row["class"]} == {
        "mixed/b.png", "mixed/c.txt", "mixed/gone.png", "mixed/pipe", "nothing.png"
    }  # fmt: skip
    printed = json.loads(
        autotl("predict", "stripes", "mixed", "mixed/Thumbs.db", "nothing.png", "--format", "json", code=1)
    )
    assert [row["path"] for row in printed] == list(rows)
    assert "mixed/Thumbs.db is not an image" in autotl("predict", "stripes", "mixed/Thumbs.db", code=2)


def test_predictions_with_several_classes_and_their_certainty(autotl, stripes, tmp_path):
    found = json.loads(autotl("search", stripes, "--trials", 3, "--backbones", "reference:edges", *PROBE, "--json"))
    known = found["calibration"]
    assert known["images"] > 30 and known["sure_from"] is not None
    printed = autotl("predict", "stripes", stripes, "--top-k", 2, "--out", "found.csv")
    assert printed == "Written: found.csv, 90 images.\n"
    rows = list(csv.DictReader((tmp_path / "found.csv").open(newline="")))
    assert list(rows[0]) == ["path", "class", "probability", "class2", "probability2", "certainty", "problem"]
    assert len(rows) == 90 and all(row["class"] != row["class2"] for row in rows)
    for row in rows:
        first, second = float(row["probability"]), float(row["probability2"])
        assert first + second <= 1.000001 and first >= second
        if abs(first - known["sure_from"]) > 1e-5:
            assert row["certainty"] == ("sure" if first > known["sure_from"] else "unsure")
    (answer,) = json.loads(autotl("predict", "stripes", rows[0]["path"], "--format", "json", "--top-k", 9))
    assert [answer[name] for name in ("class", "class2", "class3")] == sorted(
        answer["probabilities"], key=lambda name: -answer["probabilities"][name]
    )
    assert answer["certainty"] == rows[0]["certainty"]


def test_without_enough_validation_images_there_is_no_certainty_and_a_note(autotl, stripes):
    words = ("search", stripes, "--trials", 1, "--backbones", "reference:edges", *PROBE, "--reruns", 0, "--json")
    assert json.loads(autotl(*words))["calibration"]["images"] < 30
    done = CliRunner().invoke(main, ["predict", "stripes", str(stripes / "down" / "0.png")])
    (row,) = csv.DictReader(io.StringIO(done.stdout))
    assert row["certainty"] == "" and row["class"] == "down"
    assert "validation predictions are too few to tell, at least 30 are needed." in " ".join(done.stderr.split())


def test_a_manifest_with_columns_of_other_names(autotl, stripes, tmp_path):
    rows = [f"{file.relative_to(tmp_path)};{file.parent.name};?" for file in sorted(stripes.glob("*/*.png"))]
    (tmp_path / "m.csv").write_text("\n".join(["where;what;file", *rows]).replace("/", "\\"))
    columns = ("--path-column", "where", "--label-column", "what")
    words = ("--backbones", "reference:edges", *PROBE, "--json")
    assert "no column label" in autotl("search", "m.csv", *words, code=2)
    found = json.loads(autotl("search", "m.csv", "--trials", 1, *columns, *words))
    autotl("search", "m.csv", "--trials", 2, *words)  # it resumes with the columns that it was started with
    (tmp_path / "plan.json").write_text(autotl("show", "m", "--plan", "0"))
    printed = json.loads(autotl("train", "plan.json", "m.csv", *columns, "--json"))
    assert printed["metrics"]["val.accuracy"] == found["best"]["validation"]


def test_a_path_is_escaped_against_formulas_and_a_class_is_never_changed(autotl, stripes, tmp_path):
    for name in ("down", "across"):
        (stripes / name).rename(stripes / {"down": "-1", "across": "=1+1"}[name])
    autotl("search", stripes, "--trials", 1, "--backbones", "reference:edges", *PROBE, "--json")
    for name in ("=cmd.png", "@x.png", "plain.png"):
        shutil.copy(stripes / "-1" / "3.png", tmp_path / name)
    rows = list(csv.DictReader(io.StringIO(autotl("predict", "stripes", "=cmd.png", "@x.png", "plain.png"))))
    assert [row["path"] for row in rows] == ["./=cmd.png", "./@x.png", "plain.png"]
    assert [row["class"] for row in rows] == ["-1"] * 3
    printed = json.loads(autotl("predict", "stripes", "=cmd.png", "--format", "json"))
    assert printed[0]["path"] == "=cmd.png" and "=1+1" in printed[0]["probabilities"]


def test_a_search_escapes_names_with_control_characters(autotl, stripes):
    for name in (b"caf\xe9.png", b"x\x1b]0;OWNED\x07.png"):
        (stripes / "down" / os.fsdecode(name)).touch()
    out = autotl("search", stripes, "--trials", 1, "--backbones", "reference:edges", *PROBE)
    assert "down/caf\\xe9.png: the file is empty" in " ".join(out.split())
    assert "down/x\\x1b]0;OWNED\\x07.png: the file is empty" in " ".join(out.split())
    assert "\x1b" not in out


def test_a_folder_that_json_cannot_name_is_refused_before_anything_starts(autotl, stripes):
    name = os.fsdecode(b"caf\xe9")
    stripes.rename(stripes.with_name(name))
    printed = autotl("search", name, "--study", "s", "--backbones", "reference:edges", code=2)
    assert "its name, or that of a parent folder, is not UTF-8; rename it" in printed
    assert "'caf\\xe9' is not UTF-8" in autotl("studies", "--home", name, code=2)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["search", "nowhere"], "Invalid value for 'DATA': 'nowhere' does not exist."),
        (["search", "strips"], "'strips' does not exist. Did you mean 'stripes'?"),
        (["search", "strips/dwn"], "'strips/dwn' does not exist. Did you mean 'stripes/down'?"),
        (["doctor", "strips/down"], "'strips/down' does not exist. Did you mean 'stripes/down'?"),
        (["search", "--config", "bed.json"], "'bed.json' does not exist. Did you mean 'bad.json'?"),
        (
            ["search", "stripes", "--weights", "torchvision:alexnet=bed.json", "--backbones", "torchvision:alexnet"],
            "No weights for 'torchvision:alexnet': 'bed.json' does not exist. Did you mean 'bad.json'?",
        ),
        (["search", "dangling"], "'dangling' does not exist."),
        (["search", "n" * 300], "does not exist."),
        (["unpack", "strips", "new"], "/stripes'?"),
        (["search", "empty"], "empty"),
        (["search", "stripes", "--backbones", "timm:resnet5"], "Did you mean 'timm:resnet50"),
        (["search", "stripes", "--backbones", "timm:resnet19"], "Did you mean 'timm:resnet18."),
        (["search", "stripes", "--device", "gpu"], "Did you mean 'cuda'?"),
        (["search", "stripes", "--device", "GPU:1"], "Did you mean 'cuda:1'?"),
        (["search", "stripes", "--cache-dir", "bad.json/cache"], "Not a directory"),
        (["serch", "stripes"], "Unknown command 'serch'. Did you mean 'search'?"),
        (["search", "stripes", "--backbones", "torchvision:alexnet"], "autotl weights fetch torchvision:alexnet"),
        (["search", "stripes", "--weights", "torchvision:alexnet"], "NAME=FILE"),
        (["search", "stripes", "--device", "cuda:9"], "--device auto or cpu"),
        (["predict", "nothing", "stripes"], "Unknown study 'nothing'"),
        (["show", "nothing"], "Unknown study 'nothing'"),
        (["train", "bad.json", "stripes"], "bad.json is not a valid TransferPlan"),
        (["sample", "digits", "stripes"], "not empty"),
        (["sample"], "Missing argument 'NAME'. Choose from: digits"),
        (["plugins", "backbones", "timm:zzz*"], "No backbone matches"),
    ],
)
def test_bad_input_gets_one_clear_line_and_exit_code_2(autotl, stripes, tmp_path, words, says):
    (tmp_path / "empty").mkdir()
    (tmp_path / "dangling").symlink_to("nothing")
    (tmp_path / "bad.json").write_text('{"schema": 1}')
    error = autotl(*words, code=2)
    assert says in error
    line = error.strip().splitlines()[-1]
    assert line.startswith("Error: ")


def test_listings_name_the_owner(autotl):
    listing = autotl("plugins")
    for word in ("timm:", "torchvision:", "reference:", "autotl:", "none", "linear-probe", "(autotl 0."):
        assert word in listing
    assert "torchvision:squeezenet1_0" in autotl("plugins", "backbones", "torchvision:squeeze*")
    assert "Random" not in autotl("plugins", "strategies", "linear*")


def test_one_backbone_is_shown_with_its_stages_and_their_costs(autotl):
    printed = autotl("plugins", "backbones", "autotl:resnet10")
    for what in ("Tiny ImageNet", "top-1 accuracy on it", "ImageNet's terms", "resnet10.safetensors", "64 px"):
        assert what in printed
    assert "1.23 M parameters, 46.5 M FLOPs per image" in printed
    rows = [" ".join(line.split()) for line in printed.partition("cut ")[2].splitlines()[1:]]
    assert rows[0].startswith("conv1.2 NCHW 16 x 32 x 32 ")
    assert rows[-1] == "layer4.0 NCHW 256 x 2 x 2 1.23 M 46.5 M avg, max"
    printed = autotl("plugins", "backbones", "autotl:resnet10@random")
    assert "nothing: random weights" in printed and "needs none" in printed and "top-1" not in printed
    absent = autotl("plugins", "backbones", "timm:vit_tiny_patch16_224")
    assert "this machine: autotl weights fetch timm:vit_tiny_patch16_224" in absent and "avg, max, token" in absent
    assert "Unknown backbone 'autotl:resnet'. Did you mean 'autotl:resnet10'" in autotl(
        "plugins", "backbones", "autotl:resnet", code=2
    )


def test_weights_list_shows_where_the_files_are(autotl):
    listing = autotl("weights", "list")
    assert "shipped" in listing
    assert "not on this machine: autotl weights fetch timm:resnet18.a1_in1k" in listing
    assert "out of reach" in autotl("weights", "fetch", "timm:resnet18.a1_in1k", code=2)


def test_the_command_is_installed_and_prints_errors_in_one_line(tmp_path):
    words = [sys.executable, "-m", "autotl", "show", "nothing"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1


def test_ctrl_c_while_python_still_imports_leaves_no_traceback(tmp_path, monkeypatch):
    pyproject = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    module, _, name = pyproject["project"]["scripts"]["autotl"].partition(":")
    (tmp_path / "click.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(20)")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    for words in (["-m", "autotl"], ["-c", f"from {module} import {name}; {name}()"]):
        done = subprocess.run([sys.executable, *words, "studies"], capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_sigterm_keeps_finished_work_and_the_same_command_resumes(stripes, tmp_path):
    command = [sys.executable, "-m", "autotl", "search", stripes, "--backbones", "reference:edges", "--trials", "2000"]
    command += ["--strategies", "linear-probe", "--cache-dir", tmp_path / "cache", "--no-compare"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if "[5/2000]" in line:
            process.send_signal(signal.SIGTERM)
            break
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 130
    assert printed.strip() == "Stopped. Finished work is saved; run the same command to resume."
    command[command.index("2000")] = "8"
    again = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    assert "/8] trial" in again.stdout
    assert "[1/8] trial" not in again.stdout


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        ("90s", 90),
        ("90", 90),
        (90, 90),
        ("5min", 300),
        ("5 minutes", 300),
        ("1.5h", 5400),
        ("1h30m", 5400),
        ("1 hour 30 min", 5400),
        ("1:30:00", 5400),
        ("2H", 7200),
        ("1d", 86400),
        (timedelta(hours=2), 7200),
    ],
)
def test_durations_are_accepted_in_usual_notations(budget, expected):
    assert seconds(budget) == expected


@pytest.mark.parametrize(
    ("budget", "says"),
    [
        ("soon", "not a duration; allowed are 90s"),
        ("5 parsecs", "not a duration"),
        ("1:30", "not a duration"),
        ("-5m", "not a duration"),
        ("59", "out of range"),
        ("inf", "out of range"),
        ("nan", "out of range"),
    ],
)
def test_an_invalid_budget_is_an_error(stripes, budget, says):
    done = CliRunner().invoke(main, ["search", str(stripes), "--budget", budget])
    assert done.exit_code == 2
    assert says in done.output
