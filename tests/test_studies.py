"""The scripts of `studies/` run on small data, and resume where they stopped."""

import importlib.util
import json
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file
from torchvision import models

from autotl.builtin import shipped

STUDIES = Path(__file__).parent.parent / "studies"
RECIPE = """
seed = 1
teacher = "resnet10"
epochs = {epochs}
batch_size = 64
optimizer = "adamw"
lr = 0.001
warm_up = 0.1
weight_decay = 0.05
label_smoothing = 0.1
min_area = 0.5
cutmix = 0.5
clip = 1.0
ema = 0.9
bf16 = false

[model]
class = "timm.models.resnet.ResNet"
block = "BasicBlock"
layers = [1, 1, 1, 1]
channels = [8, 8, 8, 8]
"""


def script(name, monkeypatch):
    """The script as a module; it imports the modules beside it as it does from the command line."""
    monkeypatch.syspath_prepend(STUDIES)
    spec = importlib.util.spec_from_file_location("script", STUDIES / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(command, *words):
    done = CliRunner().invoke(command, list(map(str, words)), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output.splitlines()


@pytest.fixture
def tiny_imagenet(tmp_path):
    """A folder like Tiny ImageNet's: 200 classes with one image each."""
    draw = np.random.default_rng(0)
    wnids = [f"n{number:03}" for number in range(200)]
    root = tmp_path / "tiny-imagenet-200"
    (root / "val" / "images").mkdir(parents=True)
    (root / "wnids.txt").write_text("\n".join(wnids))
    (root / "val" / "val_annotations.txt").write_text("".join(f"{name}.JPEG\t{name}\t0\t0\n" for name in wnids))
    for name in wnids:
        (root / "train" / name / "images").mkdir(parents=True)
        image = Image.fromarray(draw.integers(256, size=(64, 64, 3), dtype=np.uint8))
        for file in (root / "train" / name / "images" / f"{name}.JPEG", root / "val" / "images" / f"{name}.JPEG"):
            image.save(file)
    return root


def test_a_backbone_is_trained_by_its_recipe_and_loads_as_one_that_ships(tiny_imagenet, tmp_path, monkeypatch):
    train = script("backbones/train.py", monkeypatch).main
    recipe = tmp_path / "small.toml"
    words = (recipe, "--data", tiny_imagenet, "--work", tmp_path / "work", "--device", "cpu")
    recipe.write_text(RECIPE.format(epochs=1))
    assert [line.split()[1] for line in run(train, *words)] == ["1/1"]
    shutil.rmtree(tiny_imagenet / "train")  # decoded once
    recipe.write_text(RECIPE.format(epochs=2))
    (tiny_imagenet / "train").mkdir()
    assert [line.split()[1] for line in run(train, *words)] == ["2/2"]

    facts = json.loads((tmp_path / "work" / "small.json").read_text())
    low, high = facts["top1_interval"]
    assert low <= facts["top1"] <= high and facts["top1_images"] == 100 and facts["epoch"] in (1, 2)
    monkeypatch.setattr(shipped, "WEIGHTS", tmp_path / "work")
    shipped._facts.cache_clear()
    try:
        card = shipped.Shipped().card("small")
        model = shipped.Shipped().build("small", card.weights.file).eval()
    finally:
        shipped._facts.cache_clear()
    assert "distilled from autotl:resnet10" in card.note
    with torch.no_grad():
        assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 200)


def test_arms_are_compared_over_seeds(stripes, tmp_path, monkeypatch):
    compare = script("compare.py", monkeypatch)
    monkeypatch.setattr(compare.sets, "TEST", 6)
    out, picture = tmp_path / "results.json", tmp_path / "cuts.png"
    arms = ("--arm", "one=linear-probe", "--arm", "same=linear-probe")
    sizes = ("--images", 20, "--trials", 1, "--backbone", "reference:edges")
    words = (tmp_path / "work", "--digits", stripes, *arms, *sizes, "--out", out, "--picture", picture)
    assert len(run(compare.main, *words, "--seeds", 1)) == 2 + 1  # one seed is no comparison yet
    assert len(run(compare.main, *words, "--seeds", 2)) == 2 + 1 + 1
    assert len(run(compare.main, *words, "--seeds", 2)) == 1 + 1
    printed = json.loads(out.read_text())
    (row,) = printed["summary"]
    assert row["n"] == 2 and row["one"] == row["same"] > 0.5
    assert row["one - same"] == [0.0, 0.0, 0.0]
    assert [sum(cell["won"].values()) for cell in printed["cuts"]] == [4]
    assert len(printed["runs"]) == 4
    assert picture.stat().st_size > 0


@pytest.mark.parametrize("study", ["pretraining", "freeze-cut-rates"])
def test_the_tables_agree_with_the_results(study):
    printed = (STUDIES / "README.md").read_text()
    for row in json.loads((STUDIES / study / "results.json").read_text())["summary"]:
        for name, value in row.items():
            if isinstance(value, float):
                assert f"| {100 * value:.1f} |" in printed, (name, row)
            elif isinstance(value, list):
                mean, low, high = (f"{100 * each:+.1f}".replace("-", "−") for each in value)
                assert f"{mean} ({low} to {high})" in printed, (name, row)


ARM = """
import json, os, subprocess, sys, time
from pathlib import Path
data, accuracy, *files = sys.argv[1:]
assert len([*Path(data, "train").glob("*/*")]) == 60 and len([*Path(data, "test").glob("*/*")]) == 18
busy = "while __import__('time').process_time() < 0.3: pass"
subprocess.run([sys.executable, "-c", busy], check=True)
for file in files:
    if not Path(file).exists():
        Path(file).touch()
        sys.exit("first time")
print("some text")
print(json.dumps({"test": float(accuracy)}))
"""


def test_peers_are_compared_and_a_run_that_failed_is_repeated(stripes, tmp_path, monkeypatch):
    peers = script("peers/run.py", monkeypatch)
    arm, weights, log, picture = (tmp_path / name for name in ("arm.py", "w.safetensors", "runs.jsonl", "peers.png"))
    arm.write_text(ARM)
    weights.touch()
    monkeypatch.setattr(peers.sets, "TEST", 6)
    monkeypatch.setattr(peers, "version", lambda: "abc")
    monkeypatch.setattr(peers, "caches", lambda *_: {})
    monkeypatch.setattr(peers, "environment", lambda *_: Path(sys.executable))
    arms = {
        "autotl": peers.Arm("", f"{arm} {{data}}", ["0.5", "0.9"]),
        "other": peers.Arm("torch", f"{arm} {{data}}", ["0.7", f"1.0 {tmp_path / 'flag'}"]),
    }
    monkeypatch.setattr(peers, "ARMS", arms)
    words = (tmp_path / "work", "--digits", stripes, "--weights", f"timm:x={weights}", "--log", log, "--seeds", 2)
    first = run(peers.main, *words)
    assert any("failed: first time" in line for line in first)
    again = run(peers.main, *words, "--picture", picture)
    assert len([line for line in again if line.startswith("{")]) == 1  # only the run that failed
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(lines) == 2 * 4 + 1
    assert all(line["cpu_s"] >= 0.3 and line["tested"] == 18 for line in lines if "test" in line)
    table = [line for line in run(peers.main, *words, "--no-run") if line.startswith("| other")]
    assert "| 70.0 (" in table[0] and "as good after" not in table[0]
    assert "| 100.0 (" in table[1] and "not reached" in table[1]
    assert picture.stat().st_size > 0
    monkeypatch.setattr(peers, "version", lambda: "changed")
    again = [json.loads(line) for line in run(peers.main, *words) if line.startswith("{")]
    assert [line["arm"] for line in again] == ["autotl"] * 4


def test_the_tables_of_the_peers_agree_with_their_runs(monkeypatch):
    peers = script("peers/run.py", monkeypatch)
    runs = peers.of_last_code(peers.read(STUDIES / "peers/runs.jsonl"))
    printed = (STUDIES / "README.md").read_text()
    for cell in {key[:2] for key in runs}:
        for line in peers.table(peers.rows(runs, *cell)):
            assert line in printed


def test_an_arm_is_compared_with_autotl_at_no_more_time(monkeypatch):
    peers = script("peers/run.py", monkeypatch)
    rows = [
        peers.Row("autotl", "short", {0: 0.8, 1: 0.8, 2: 0.9}, 50.0, 300),
        peers.Row("autotl", "long", {0: 0.9, 1: 0.9, 2: 0.9}, 200.0, 300),
        peers.Row("other", "quick", {0: 0.5}, 40.0, 100),
        peers.Row("other", "slow", {0: 0.85, 1: 0.85, 2: 0.85}, 100.0, 300),
    ]
    *_, quick, slow = peers.table(rows)
    assert quick == "| other | quick | 1 | 40 | 50.0 (40.4 to 59.6) | no run so short | 50 s, 125% |"
    assert slow == "| other | slow | 3 | 100 | 85.0 (85.0 to 85.0) | -1.7 (-16.0 to +12.7) | 200 s, 200% |"


CLOCKS = """
import signal, sys, time

began = time.monotonic(), time.perf_counter(), time.time()
time.sleep(1)
slept = [now - then for now, then in zip((time.monotonic(), time.perf_counter(), time.time()), began)]
assert max(slept) < 0.5, slept
signal.signal(signal.SIGALRM, lambda *_: sys.exit(f"{sys.argv[1]} after {time.monotonic() - began[0]:.1f} s"))
signal.setitimer(signal.ITIMER_REAL, 0.3)
time.sleep(1)
while True:
    pass
"""


def test_time_limits_of_an_arm_count_processor_time(tmp_path):
    (tmp_path / "clocks.py").write_text(CLOCKS)
    words = (sys.executable, STUDIES / "peers/arms/cpu_clock.py", "clocks", "interrupted")
    done = subprocess.run(words, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, timeout=60)
    assert done.stderr == "interrupted after 0.3 s\n"


def test_the_cost_of_a_search_is_measured_in_turns_and_resumes(stripes, tmp_path, monkeypatch):
    speed = script("peers/speed.py", monkeypatch)
    cost = {"floor": 10.0, "script": 300.0, "autotl": 15.0, "autotl, default": 30.0, "before": 60.0}
    ran = []

    def measured(words, place, arm, also):
        ran.append((arm, words))
        found = {"parts": {"torch": 4.0, "pass": 6.0}} if arm == "floor" else {"val": 0.8, "test": 0.9}
        return {"cpu_s": cost[arm] * (1 + (len(ran) > 10)), "wall_s": 2 * cost[arm], "load": 0.5, **found}

    monkeypatch.setattr(speed, "measured", measured)
    (tmp_path / "checkout" / "autotl").mkdir(parents=True)
    weights, out = tmp_path / "weights.safetensors", tmp_path / "out.json"
    weights.touch()
    words = (tmp_path / "work", "--data", stripes, "--weights", weights, "--work", "10 heads", "--out", out)
    words = (*words, "--also", f"before={tmp_path / 'checkout'}")
    warm_up = ["floor", "script", "autotl, default", "before"]
    run(speed.main, *words, "--pairs", 1)
    assert [arm for arm, _ in ran] == [*warm_up, *cost]
    assert "--no-compare" in ran[6][1] and "--no-compare" not in ran[7][1]
    lines = run(speed.main, *words, "--pairs", 2)
    assert [arm for arm, _ in ran[9:]] == [*warm_up, *cost]
    row = next(line for line in lines if line.startswith("| 10 heads | autotl |"))
    cells = ["10 heads", "autotl", "2", "22.5 (15 to 30)", "30 (30 to 30)", "20 (20 to 20)", "1.5 (1.5 to 1.5)"]
    assert row == f"| {' | '.join([*cells, '90 (90 to 90)'])} |"
    assert run(speed.main, *words, "--pairs", 2) == [line for line in lines if line.startswith(("|", "Processor"))]
    assert len(ran) == 18
    rows = json.loads(out.read_text())["rows"]
    assert {each["arm"]: each["script_over_it"] for each in rows}["before"] == [5.0, 5.0]


def test_the_floor_and_the_script_tell_what_they_cost(tmp_path, monkeypatch):
    speed = script("peers/speed.py", monkeypatch)
    draw = np.random.default_rng(0)
    for split, name, number in product(("train", "test"), ("a", "b"), range(5)):
        (tmp_path / "data" / split / name).mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(draw.integers(256, size=(40, 30, 3), dtype=np.uint8))
        image.save(tmp_path / "data" / split / name / f"{number}.png")
    weights = tmp_path / "squeezenet.safetensors"
    save_file(models.squeezenet1_0().state_dict(), weights)
    (place := tmp_path / "work").mkdir()
    for arm, work in ((speed.FLOOR, ""), (speed.SCRIPT, "10 mixed")):
        words = speed.command(speed.Key(work, arm, 0), place, tmp_path / "data", weights, trials=1)
        found = speed.measured(words, place, arm, {})
        assert 1 < found["cpu_s"] < 3 * found["wall_s"]
        if arm == speed.FLOOR:
            assert [*found["parts"]] == ["torch", "torchvision", "images", "pass"]
            assert 0.5 * found["cpu_s"] < sum(found["parts"].values()) < found["cpu_s"]
        else:
            assert {found["val"], found["test"]} <= {number / 10 for number in range(11)}


def test_classes_are_as_unequal_as_requested(tmp_path, monkeypatch):
    """From 5 to 20 images by the same factor, 2: 5, 10 and 20."""
    unequal = script("unequal.py", monkeypatch)
    classes = {name: [f"{name}/{number}.png" for number in range(200)] for name in "abc"}
    for seed in range(3):
        unequal.unequal(classes, tmp_path / "table.csv", 5, 20, seed)
        lines = unequal.sets.manifest(tmp_path / "table.csv")
        counts = [sum(line["label"] == name and not line["split"] for line in lines) for name in "abc"]
        assert sorted(counts) == [5, 10, 20]
        assert sum(line["split"] == "test" for line in lines) == 3 * unequal.sets.TEST
        assert len({line["path"] for line in lines}) == len(lines)


def test_arms_are_compared_with_the_one_that_does_nothing(monkeypatch):
    unequal = script("unequal.py", monkeypatch)
    tests = {"none": (0.5, 0.6, 0.7), "focal": (0.6, 0.7, 0.8)}
    runs = [
        {"images": [5, 20], "target": "t", "strategy": "full", "arm": arm, "seed": seed, "test": value}
        for arm, values in tests.items()
        for seed, value in enumerate(values)
    ]
    none, focal = unequal.compared([*runs, {**runs[0], "images": [1, 2], "test": 0.0}], [5, 20])
    assert (none["arm"], none["gain"]) == ("none", [0, 0, 0])
    assert (focal["n"], focal["test"], focal["gain"]) == (3, 0.7, [0.1, 0.1, 0.1])


def test_an_ensemble_is_compared_with_its_winner_alone(stripes, tmp_path, monkeypatch):
    ensembles = script("ensembles.py", monkeypatch)
    monkeypatch.setattr(ensembles.sets, "TEST", 6)
    words = (tmp_path / "work", "--digits", stripes, "--images", 20, "--trials", 2, "--models", 2, "--seeds", 2)
    words = (*words, "--backbone", "autotl:resnet10")
    run(ensembles.main, *words)
    out = tmp_path / "out.json"
    lines = run(ensembles.main, *words, "--out", out)
    assert len(lines) == 1, lines  # nothing is searched twice
    row = json.loads(lines[0])
    runs = json.loads(out.read_text())["runs"]
    assert [found["members"] for found in runs] == 2 * [["autotl:resnet10"] * 2]
    assert row["n"] == 2 and row["flops"] > 1
    gains = [found["test"] - found["alone"] for found in runs]
    assert row["gain"][0] == pytest.approx(np.mean(gains), abs=1e-6)


def test_what_a_search_measures_is_compared_with_training(stripes, tmp_path, monkeypatch):
    operations = script("operations.py", monkeypatch)
    monkeypatch.setattr(operations.sets, "TEST", 6)
    monkeypatch.setattr(operations, "MEASURED_ON", "reference:edges")
    monkeypatch.setattr(operations, "trained", lambda table, seed, arm, *_: {"nothing": 0.7}.get(arm, 0.8 + seed / 10))
    words = (tmp_path / "work", "--digits", stripes, "--images", 20, "--seeds", 2, "--train", "quarter turns")
    run(operations.main, *words)
    out = tmp_path / "out.json"
    again = run(operations.main, *words, "--out", out)  # nothing is measured twice
    assert len(again) == 6
    rows = {row["operation"]: row for row in json.loads(out.read_text())["summary"]}
    assert rows["quarter turns"]["harmful"] == 2 and rows["quarter turns"]["gain"][0] == 0.15
    assert rows["mirroring"]["harmful"] == 0 and "gain" not in rows["mirroring"]


def test_the_regret_of_rules_is_measured_and_resumes(stripes, tmp_path, monkeypatch):
    regret = script("selection/regret.py", monkeypatch)
    monkeypatch.setattr(regret.sets, "TEST", 6)
    out = tmp_path / "results.json"
    sizes = ("--images", 15, "--trials", 2, "--backbone", "reference:edges", "--strategies", "linear-probe")
    words = (tmp_path / "work", "--digits", stripes, *sizes, "--out", out)
    assert not run(regret.main, *words, "--seeds", 1, "--minutes", 0)
    assert len(run(regret.main, *words, "--seeds", 1)) == 1 + 4
    assert len(run(regret.main, *words, "--seeds", 2)) == 1 + 4
    found = json.loads(out.read_text())
    assert [(row["images"], row["target"], row["n"]) for row in found["summary"]] == [
        *(("all", target, 2) for target in ("all", "digits")),
        *((15, target, 2) for target in ("all", "digits")),
    ]
    for cell in found["runs"]:
        assert {len(plan["divided"]) for plan in cell["plans"]} == {10}
        assert all(0.3 < plan["test"] <= 1 for plan in cell["plans"])


def test_rules_choose_by_the_reruns_that_they_may_look_at(monkeypatch):
    regret = script("selection/regret.py", monkeypatch)

    def plan(test, trained, same_val, divided):
        return {"test": test, "complexity": [trained, 0, 1.0], "same_val": same_val, "divided": divided}

    plans = [
        plan(0.5, True, [0.9, 0.9, 0.9], [0.9, 0.6, 0.5, 0.7, 0.7]),
        plan(0.8, True, [0.9, 0.8, 0.8], [0.9, 0.8, 0.8, 0.6, 0.6]),
        plan(0.7, False, [0.85], [0.85, 0.75, 0.75, *[0.8] * 7]),
        plan(0.6, False, [0.8], [0.8, 0.9, 0.9, *[0.2] * 7]),
        plan(0.9, True, [0.7], [0.7]),
    ]
    chosen = {name: rule(plans) for name, rule in regret.RULES.items()}
    assert chosen == {"before": 0, "best": 1, "simplest": 2, "best, 4 reruns": 2, "simplest, 4 reruns": 2}
    assert regret.regret(plans, 1) == pytest.approx(10)


def test_the_table_of_regrets_agrees_with_the_results():
    printed = (STUDIES / "README.md").read_text()
    found = json.loads((STUDIES / "selection" / "results.json").read_text())
    assert sum(row["n"] for row in found["summary"] if row["images"] == row["target"] == "all") == len(found["runs"])
    for row in (row for row in found["summary"] if row["target"] == "all"):
        assert f"n = {row['n']}" in printed
        for name, value in row.items():
            if isinstance(value, dict):
                mean, low, high = (f"{each:+.1f}".replace("-", "−") for each in value["gain"])
                gain = "" if name == "before" else f" ({mean}, {low} to {high})"
                assert f"| {value['regret']:.1f}{gain} |" in printed, (row["images"], name)


def test_the_setups_of_the_textbook_are_trained_once_and_summed_up(stripes, tmp_path, monkeypatch):
    measure = script("textbook/measure.py", monkeypatch)
    monkeypatch.setattr(measure.sets, "TEST", 6)
    setups = {name: measure.SETUPS[name] for name in ("linear probe", "fine-tune 1e-3", "fine-tune 3e-4")}
    for name in set(measure.SETUPS) - set(setups):
        monkeypatch.delitem(measure.SETUPS, name)
    log = tmp_path / "runs.jsonl"
    words = (tmp_path / "work", "--digits", stripes, "--images", 10, "--log", log, "--seeds", 2)
    assert len(run(measure.main, *words)) == 2 * (1 + len(setups))
    assert not run(measure.main, *words)
    runs = [json.loads(line) for line in log.read_text().splitlines()]
    assert {run["setup"]: run["frozen"] for run in runs if "frozen" in run}["fine-tune 1e-3"] is None
    assert runs[0]["setup"] == "advice" and "linear-probe" in (*runs[0]["suggested"], *runs[0]["situations"])
    tables = script("textbook/tables.py", monkeypatch)
    printed = "\n".join(run(tables.main, log))
    assert "autotl:resnet10, 10 images a class" in printed and "| setup | digits, n = 2 |" in printed
    mean = 100 * sum(run["test"] for run in runs if run["setup"] == "linear probe") / 2
    assert f"| linear probe | {mean:.1f} |" in printed.replace("*", "")


def test_what_is_worth_choosing_is_what_val_finds(monkeypatch):
    tables = script("textbook/tables.py", monkeypatch)

    def runs(first, other):
        return {"fine-tune 1e-3": first, "fine-tune 3e-4": other}

    def measured(val, test):
        return {"val": val, "test": test}

    seeds = {
        0: runs(measured(0.8, 0.7), measured(0.9, 0.8)),  # val is right
        1: runs(measured(0.8, 0.7), measured(0.8, 0.6)),  # val cannot tell
    }
    rows = [line for line in tables.worth({"digits": seeds}) if line.startswith("| the learning rate")]
    assert rows == ["| the learning rate | 2 | +2.5 (-92.8 to +97.8) | +5.0 | 2 |"]
