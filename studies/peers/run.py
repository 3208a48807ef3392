"""Compares autotl with other ways to train an image classifier: test accuracy against processor time.

    python studies/peers/run.py /tmp/peers --signs Sign-Language-Digits-Dataset --digits digits --ants-bees ants-bees \
        --cifar10 CIFAR-10-images --exclude same.txt --expressions facial_expressions \
        --weights timm:tf_efficientnet_lite0.in1k=tf_efficientnet_lite0.in1k.safetensors

All arms learn from the same folder with the same pretrained weights, on one thread of a processor. An *arm* is a script
of arms/ and a command line of `ARMS`; it takes its validation images from DATA/train as it likes, and the last line
that it prints is a JSON object with `test`, its accuracy on the images of DATA/test. Its time is the processor time of
its process and of the processes that it started, from the start to the end, so imports and the test count, too.

Each arm has an environment of its own in WORK, which uv installs from environments/*.txt; autotl is the one beside this
script, in the environment that runs it. fastai and AutoGluon load weights by name, so WORK also has caches of the
Hugging Face hub and of torch that contain the given files.

A finished run is a line of `--log`, and the same command continues where it stopped, first with one seed for all sets,
then with the next. After a change of autotl's code its arm is run again. A run that failed is repeated.
"""

# ruff: noqa: E402, because the modules beside this script are found first

import fnmatch
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")
HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE.parent), str(ROOT)]

import click
import numpy as np
import sets
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from runs import LINE
from scipy import stats

from autotl.engine.intervals import wilson
from autotl.files import append_line, read_lines

IMAGES = {"signs": 20, "digits": 20, "cifar10": 100, "expressions": 100}
"""Images of each class to learn from."""
SMALL = "torchvision:squeezenet1_0"
"""The second network. It is used on one set only."""
PATIENCE = 4
"""A run that takes longer than this many times 30 minutes is ended."""
HALF_HOUR = 1800


class Arm(NamedTuple):
    """A way to train a classifier."""

    environment: str
    """The requirements file of `environments/` without its suffix; none: the interpreter that runs this script."""
    words: str
    """The script and its arguments, before the setting."""
    settings: Sequence[str]
    """For how long it trains, the shortest first."""


TIMM_ONLY = {"autogluon", "autogluon default"}
ARMS = {
    "logistic": Arm("torch", "logistic.py {data} --backbone {backbone} --seed {seed}", [""]),
    "autotl": Arm(
        "",
        "search.py {data} --backbone {backbone} --weights {weights} --seed {seed} --folder {folder}",
        ["--seconds 60", "--seconds 180", "--seconds 600", "--seconds 1800"],
    ),
    "script": Arm(
        "torch",
        "script.py {data} --backbone {name} --weights {weights} --seed {seed} --kind mixed",
        ["--seconds 180", "--seconds 600"],
    ),
    "fastai": Arm(
        "fastai",
        "fastai_tune.py {data} --backbone {backbone} --seed {seed}",
        ["--epochs 1", "--epochs 5", "--epochs 20"],
    ),
    "fastai lr_find": Arm(
        "fastai",
        "fastai_tune.py {data} --backbone {backbone} --seed {seed} --lr-find",
        ["--epochs 5", "--epochs 20"],
    ),
    "tutorial": Arm(
        "torch",
        "tutorial.py {data} --backbone {backbone} --seed {seed}",
        ["--epochs 5", "--epochs 25"],
    ),
    "autogluon": Arm(
        "autogluon",
        "autogluon_multimodal.py {data} --backbone {backbone} --seed {seed} --preset medium_quality",
        ["--seconds 180", "--seconds 600"],
    ),
    "autogluon default": Arm(
        "autogluon",
        "autogluon_multimodal.py {data} --backbone {backbone} --seed {seed} --preset default",
        ["--seconds 600"],
    ),
}


class Key(NamedTuple):
    """Identifies a run."""

    target: str
    backbone: str
    arm: str
    setting: str
    seed: int
    code: str
    """The hash of autotl's code, for its own arm; empty for the others."""

    @property
    def name(self) -> str:
        return "/".join(map(str, self[:5]))


class Row(NamedTuple):
    """An arm with one setting on one set, over its seeds."""

    arm: str
    setting: str
    tests: Mapping[int, float]
    """Test accuracy by seed."""
    cpu_s: float
    images: int
    """Test images of all seeds together."""

    @property
    def mean(self) -> float:
        return float(np.mean([*self.tests.values()]))


Runs = Mapping[Key, Mapping[str, Any]]
Folder = click.Path(exists=True, file_okay=False, path_type=Path)
File = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command(context_settings={"show_default": True})
@click.argument("work", type=click.Path(file_okay=False, path_type=Path))
@sets.options
@click.option("--ants-bees", type=Folder, help="With train/ and test/, used as it is. These are photos of ImageNet.")
@click.option("--weights", "given", multiple=True, metavar="BACKBONE=FILE", required=True, help="In safetensors.")
@click.option("--only", multiple=True, metavar="GLOB", help="Of SET/BACKBONE/ARM/SETTING/SEED; can be repeated.")
@click.option("--seeds", default=3)
@click.option("--log", type=click.Path(dir_okay=False, path_type=Path), default=HERE / "runs.jsonl")
@click.option("--picture", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--run/--no-run", "go", default=True, help="--no-run: print the tables and draw the picture only.")
def main(
    work: Path,
    targets: Mapping[str, sets.Classes],
    ants_bees: Path | None,
    given: tuple[str, ...],
    only: tuple[str, ...],
    seeds: int,
    log: Path,
    picture: Path | None,
    go: bool,
) -> None:
    """Run each arm for each target set and seed, and compare them."""
    work = work.resolve()
    weights = {name: Path(file).resolve() for name, _, file in (each.partition("=") for each in given)}
    names = [name for name in ("signs", "ants-bees", "digits", "cifar10", "expressions") if name in targets]
    if ants_bees:
        names.insert(1, "ants-bees")
    code = version()
    if go:
        for key in plan(names, list(weights), seeds, code):
            if (only and not any(fnmatch.fnmatch(key.name, glob) for glob in only)) or "test" in read(log).get(key, {}):
                continue
            if key.target == "ants-bees":
                data = ants_bees.resolve()
            else:
                data = folder(targets[key.target], work / "data" / f"{key.target}-{key.seed}", key)
            found = {**key._asdict(), **run(key, data, weights[key.backbone], work)}
            append_line(log, json.dumps(found))
            click.echo(json.dumps(found))
    runs = of_last_code(read(log))
    for target, backbone in dict.fromkeys((key.target, key.backbone) for key in runs):
        click.echo(f"\n{target}, {backbone}\n")
        for line in table(rows(runs, target, backbone)):
            click.echo(line)
    for key, found in runs.items():
        if "error" in found:
            click.echo(f"\n{key.name} failed: {found['error']}")
    if picture:
        draw(runs).savefig(picture, dpi=110)


def version() -> str:
    """The hash of autotl's code, which must be committed so that it names what was measured."""
    if subprocess.run(["git", "-C", ROOT, "status", "--porcelain", "autotl"], capture_output=True, check=True).stdout:
        raise click.UsageError("autotl/ has changes that are not committed: commit them, or measure another checkout.")
    words = ["git", "-C", ROOT, "rev-parse", "--short=12", "HEAD:autotl"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


def plan(targets: Sequence[str], backbones: Sequence[str], seeds: int, code: str) -> Iterator[Key]:
    for seed, target, backbone in product(range(seeds), targets, backbones):
        if backbone == SMALL and target != "signs":
            continue
        for name, arm in ARMS.items():
            if backbone.startswith("timm:") or name not in TIMM_ONLY:
                for setting in arm.settings:
                    yield Key(target, backbone, name, setting, seed, "" if arm.environment else code)


def folder(classes: sets.Classes, place: Path, key: Key) -> Path:
    """The images of one seed as train/ and test/, each with a folder for each class."""
    if not place.exists():
        table = sets.draw(classes, place.with_suffix(".csv"), IMAGES[key.target], key.seed)
        half_made = place.with_suffix(".part")
        shutil.rmtree(half_made, ignore_errors=True)
        for line in sets.manifest(table):
            file = half_made / (line["split"] or "train") / line["label"] / Path(line["path"]).name
            file.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(line["path"], file)
        half_made.rename(place)
    return place


def run(key: Key, data: Path, weights: Path, work: Path) -> dict[str, Any]:
    """Run an arm; its accuracy and its time, or why it failed."""
    arm = ARMS[key.arm]
    study = work / "studies" / hashlib.sha256(repr(key).encode()).hexdigest()[:12]
    shutil.rmtree(study, ignore_errors=True)
    blanks = {
        "data": data, "backbone": key.backbone, "name": key.backbone.partition(":")[2], "weights": weights,
        "seed": key.seed, "folder": study,
    }  # fmt: skip
    words = [word.format(**blanks) for word in f"{arm.words} {key.setting}".split()]
    surroundings = {
        **{name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "AUTOTL_HOME")},
        **caches(key.backbone, weights, work),
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        **({} if arm.environment else {"PYTHONPATH": str(ROOT)}),
    }
    python = environment(arm.environment, work) if arm.environment else Path(sys.executable)
    output = work / "output.txt"
    before, started, busy = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic(), os.getloadavg()[0]
    with output.open("w") as stream:
        try:
            done = subprocess.run(
                [python, HERE / "arms" / words[0], *words[1:]],
                env=surroundings, cwd=work, stdout=subprocess.PIPE, stderr=stream, text=True,
                timeout=PATIENCE * HALF_HOUR,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return {"error": f"not finished after {PATIENCE * HALF_HOUR} s"}
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        return {"error": (output.read_text().strip().splitlines() or [f"exit status {done.returncode}"])[-1][:300]}
    told = json.loads(done.stdout.strip().splitlines()[-1])
    return {
        **told,
        "tested": sum(file.is_file() for file in (data / "test").glob("*/*")),
        "cpu_s": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
        "wall_s": round(time.monotonic() - started, 1),
        "load": round(busy, 2),
        **({"study": study.name} if study.exists() else {}),
    }


def environment(name: str, work: Path) -> Path:
    """The interpreter of an arm's environment, installed when it is first needed."""
    requirements, place = HERE / "environments" / f"{name}.txt", work / "environments" / name
    finished = place / "installed.txt"
    if not finished.exists() or finished.read_text() != requirements.read_text():
        uv = Path(sys.executable).parent / "uv"
        subprocess.run([uv, "venv", "--quiet", "--clear", "--python", "3.11", place], check=True)
        words = ["pip", "install", "--quiet", "--compile-bytecode", "--python", place / "bin" / "python"]
        subprocess.run([uv, *words, "--requirement", requirements], check=True)
        shutil.copyfile(requirements, finished)
    return place / "bin" / "python"


def caches(backbone: str, weights: Path, work: Path) -> dict[str, str]:
    """Caches of the Hugging Face hub and of torch in which libraries find the weights by the backbone's name."""
    hub, torch_home = work / "caches" / "hub", work / "caches" / "torch"
    library, _, name = backbone.partition(":")
    if library == "timm":
        repository = hub / "hub" / f"models--timm--{name}"
        revision = hashlib.sha1(name.encode()).hexdigest()
        if not (repository / "refs" / "main").exists():
            import timm

            config = timm.create_model(name).pretrained_cfg
            kept = ("input_size", "interpolation", "crop_pct", "mean", "std", "num_classes", "first_conv", "classifier")
            card = {"architecture": config["architecture"], "num_classes": config["num_classes"],
                    "pretrained_cfg": {field: config[field] for field in kept}}  # fmt: skip
            snapshot = repository / "snapshots" / revision
            snapshot.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(weights, snapshot / "model.safetensors")
            (snapshot / "config.json").write_text(json.dumps(card))
            (repository / "refs").mkdir(exist_ok=True)
            (repository / "refs" / "main").write_text(revision)
    else:
        import torch
        from safetensors.torch import load_file
        from torchvision import models

        file = torch_home / "hub" / "checkpoints" / Path(models.get_model_weights(name)["DEFAULT"].url).name
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.save(load_file(weights), file)
    return {"HF_HOME": str(hub), "TORCH_HOME": str(torch_home)}


def read(log: Path) -> Runs:
    """The runs in the log so far; of a run that was repeated the last one."""
    return {Key(*(run[field] for field in Key._fields)): run for run in read_lines(log, LINE.validate_python)}


def of_last_code(runs: Runs) -> Runs:
    """Without the runs of autotl by code that was measured before."""
    last = next((key.code for key in reversed([*runs]) if key.code), "")
    return {key: run for key, run in runs.items() if key.code in ("", last)}


def rows(runs: Runs, target: str, backbone: str) -> list[Row]:
    """One row for each arm and setting, in the order of `ARMS`."""
    found = []
    for name, arm in ARMS.items():
        for setting in arm.settings:
            mine = {
                key.seed: run
                for key, run in runs.items()
                if key[:4] == (target, backbone, name, setting) and "test" in run
            }
            if mine:
                tests = {seed: run["test"] for seed, run in sorted(mine.items())}
                cpu = float(np.mean([run["cpu_s"] for run in mine.values()]))
                found.append(Row(name, setting, tests, cpu, sum(run["tested"] for run in mine.values())))
    return found


def table(found: Sequence[Row]) -> Iterator[str]:
    """A table in Markdown; autotl's rows are compared with the others at no more time than theirs."""
    own = sorted((row for row in found if row.arm == "autotl"), key=lambda row: row.cpu_s)
    yield "| arm | setting | n | CPU s | test accuracy | autotl in no more time | autotl as good after |"
    yield "|---|---|---|---|---|---|---|"
    for row in found:
        gain = after = ""
        if row.arm != "autotl":
            in_time = [each for each in own if each.cpu_s <= row.cpu_s and each.tests.keys() & row.tests.keys()]
            gain = difference(in_time[-1], row) if in_time else "no run so short"
            as_good = next((each for each in own if paired(each, row).size and paired(each, row).mean() >= 0), None)
            after = f"{as_good.cpu_s:.0f} s, {as_good.cpu_s / row.cpu_s:.0%}" if as_good else "not reached"
        setting = row.setting.removeprefix("--").replace("--", "")
        yield f"| {row.arm} | {setting} | {len(row.tests)} | {row.cpu_s:.0f} | {spread(row)} | {gain} | {after} |"


def paired(one: Row, other: Row) -> np.ndarray:
    """The differences of test accuracy on the seeds that both have."""
    return np.array([one.tests[seed] - other.tests[seed] for seed in one.tests if seed in other.tests])


def spread(row: Row) -> str:
    """The mean over seeds with Student's 95 % interval; of fewer than 3 seeds with Wilson's over the test images."""
    values = np.array([*row.tests.values()])
    if len(values) < 3:
        low, high = wilson(row.mean, row.images)
    else:
        half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
        low, high = row.mean - half, row.mean + half
    return f"{100 * row.mean:.1f} ({100 * low:.1f} to {min(100 * high, 100):.1f})"


def difference(one: Row, other: Row) -> str:
    """The mean of paired differences in points, from 3 seeds on with Student's 95 % interval."""
    gains = 100 * paired(one, other)
    text = f"{gains.mean():+.1f}"
    if len(gains) >= 3:
        half = stats.t.ppf(0.975, len(gains) - 1) * gains.std(ddof=1) / np.sqrt(len(gains))
        text += f" ({gains.mean() - half:+.1f} to {gains.mean() + half:+.1f})"
    return text


def draw(runs: Runs) -> Figure:
    """For each set and network a panel: test accuracy by processor time, each arm's settings joined by a line."""
    panels = list(dict.fromkeys((key.target, key.backbone) for key in runs))
    across = min(3, len(panels))
    down = -(-len(panels) // across)
    figure = Figure(figsize=(4.6 * across, 3.8 * down), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False).flat
    for panel, axes in zip(panels, grid, strict=False):
        for number, arm in enumerate(ARMS):
            mine = sorted((row for row in rows(runs, *panel) if row.arm == arm), key=lambda row: row.cpu_s)
            if mine:
                axes.errorbar(
                    [row.cpu_s for row in mine],
                    [row.mean for row in mine],
                    yerr=np.transpose([ends(row) for row in mine]),
                    marker="o",
                    markersize=4,
                    capsize=2,
                    color=f"C{number}",
                    linewidth=2.5 if arm == "autotl" else 1.2,
                    zorder=3 if arm == "autotl" else 2,
                    label=arm,
                )
        axes.set_title("{}, {}".format(panel[0], panel[1].partition(":")[2]))
        axes.set_xscale("log")
        axes.set_xlim(25, 3000)
        axes.set_xticks([30, 60, 180, 600, 1800], ["30 s", "1 min", "3", "10", "30 min"])
        axes.minorticks_off()
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.grid(alpha=0.3)
    for axes in list(grid):
        axes.set_visible(False)
    figure.supxlabel("processor time of one thread, imports and test included")
    figure.supylabel("accuracy on the test images")
    handles = {
        arm: handle for axes in figure.axes for handle, arm in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=4)
    return figure


def ends(row: Row) -> tuple[float, float]:
    """How far the lowest and the highest seed are from the mean."""
    return max(0.0, row.mean - min(row.tests.values())), max(0.0, max(row.tests.values()) - row.mean)


if __name__ == "__main__":
    main()
