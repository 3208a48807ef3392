"""Measures autotl on a GPU: runs its tests, compares its speed with bare loops, and times whole searches.

`run.sh` calls this. Every measurement is written as soon as it is finished; a failed one is written with its error.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np
import timm
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from autotl.backbones.catalogue import Catalogue
from autotl.engine.bench import Bench
from autotl.engine.exact import exact
from autotl.engine.features import extractor
from autotl.engine.fit import fit
from autotl.engine.observe import Nobody
from autotl.host import Host
from autotl.plan import NO_AUGMENTATION, DataRef, Head, Phase, Training, TransferPlan

TESTS = Path(__file__).parents[2] / "tests"
NETWORKS = ("resnet50.a1_in1k", "vit_small_patch16_224.augreg_in21k_ft_in1k")
BATCH, FEATURE_BATCH = 128, 256
IMAGES = 5_000
"""Crops of two photos; four fifths of them are for training."""
EPOCHS = 4
STEPS, WARM_UP = 20, 10
ENDS = 3
"""How many batches at each end of a feature pass do not count."""
SIZE = 224


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.argument("photos", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
@click.option("--only", multiple=True, help="One of: tests, speed, search.")
def main(out: Path, photos: Path, options: tuple[str, ...], only: tuple[str, ...]) -> None:
    report = Report(out)
    with tempfile.TemporaryDirectory() as work:
        if not only or "tests" in only:
            report.measure("tests", run_tests)
        if not only or "speed" in only:
            measure_speed(report, Path(work))
        if not only or "search" in only:
            words = [str(photos), "--trials", "10", "--device", "cuda", "--no-mlflow", *options]
            report.measure("a search of 10 trials", lambda: search(words, Path(work) / "alone"))
            shared = [*words, "--workers", "2"]
            report.measure("the same with two workers", lambda: search(shared, Path(work) / "two"))


class Report:
    """The measurements so far, by name, in `gpu.json` and as a table in `gpu.md`."""

    def __init__(self, out: Path) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self._out = out
        self.rows: dict[str, dict[str, Any]] = {
            "machine": {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "timm": timm.__version__}
        }

    def measure(self, name: str, run: Callable[[], Mapping[str, Any]]) -> None:
        began = time.perf_counter()
        try:
            found = dict(run())
        except Exception as error:  # continue with the other measurements
            found = {"error": "".join(traceback.format_exception(error))[-2000:]}
        self.rows[name] = {**found, "took": round(time.perf_counter() - began, 1)}
        click.echo(f"{name}: {json.dumps(self.rows[name])}")
        (self._out / "gpu.json").write_text(json.dumps(self.rows, indent=2) + "\n")
        lines = [f"| {row} | {'; '.join(f'{k} {v}' for k, v in found.items())} |" for row, found in self.rows.items()]
        (self._out / "gpu.md").write_text("\n".join(["| what | measured |", "|---|---|", *lines]) + "\n")


def run_tests() -> dict[str, Any]:
    """Run the tests marked `gpu`; the other test files may not be importable here."""
    files = [str(file) for file in sorted(TESTS.rglob("test_*.py")) if "mark.gpu" in file.read_text()]
    words = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", *files]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, timeout=200, cwd=TESTS.parent)
    click.echo(done.stdout[-6000:])
    last = done.stdout.strip().splitlines()[-1]
    return {"summary": last}


# Speed, in images a second


def measure_speed(report: Report, work: Path) -> None:
    """Bare loops with torch's defaults run first: the settings of a search would slow them."""
    for name in NETWORKS:
        report.measure(f"{name}: bare training step", lambda name=name: bare_training(name))
        report.measure(f"{name}: bare forward, TF32", lambda name=name: bare_forward(name))
    write_crops(work / "crops")
    with exact("cuda"):
        measure_exactly(report, work)


def measure_exactly(report: Report, work: Path) -> None:
    """Measurements with the torch settings of autotl."""
    for name in NETWORKS:
        report.measure(f"{name}: bare training step, deterministic", lambda name=name: bare_training(name))
        report.measure(f"{name}: bare forward, float32", lambda name=name: bare_forward(name))
    for kernel in (SDPBackend.MATH, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.FLASH_ATTENTION):
        report.measure(f"training step with {kernel.name}", lambda kernel=kernel: attention(NETWORKS[-1], kernel))
    autotls = {"training": training, "features, kept on the GPU": features, "feature pass": feature_pass}
    for name in NETWORKS:
        with measured_bench(name, work) as bench:
            for what, run in autotls.items():
                report.measure(f"{name}: autotl's {what}", lambda run=run, name=name, bench=bench: run(name, bench))


def bare_training(name: str) -> dict[str, Any]:
    """A loop that only trains, on images that are on the device."""
    torch.backends.cudnn.benchmark = True
    model = timm.create_model(name, num_classes=2).cuda().train().to(memory_format=torch.channels_last)
    images, labels = on_the_device(BATCH), torch.randint(2, (BATCH,), device="cuda")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()

    return rate(step, BATCH)


def attention(name: str, kernel: SDPBackend) -> dict[str, Any]:
    """Whether a kernel of attention is deterministic if required to be, and how fast a training step is with it."""
    torch.use_deterministic_algorithms(True)
    try:
        with sdpa_kernel(kernel):
            model = timm.create_model(name, num_classes=2).cuda().train()
            images = torch.rand(BATCH, 3, SIZE, SIZE, device="cuda")
            gradients = []
            for _ in range(2):
                model.zero_grad()
                with torch.autocast("cuda", torch.bfloat16):
                    loss = model(images).float().square().mean()
                loss.backward()
                gradients.append([parameter.grad.clone() for parameter in model.parameters()])
            same = all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
            return {"same gradients twice": same, **bare_training(name)}
    finally:
        torch.use_deterministic_algorithms(True, warn_only=True)


@torch.inference_mode()
def bare_forward(name: str) -> dict[str, Any]:
    model = timm.create_model(name, num_classes=0).cuda().eval().to(memory_format=torch.channels_last)
    images = on_the_device(FEATURE_BATCH)
    return rate(lambda: model(images), FEATURE_BATCH)


def on_the_device(count: int) -> torch.Tensor:
    images = torch.rand(count, 3, SIZE, SIZE, device="cuda")
    return images.contiguous(memory_format=torch.channels_last)


def rate(step: Callable[[], object], images: int) -> dict[str, Any]:
    for _ in range(WARM_UP):
        step()
    rates = []
    for _ in range(3):
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(STEPS):
            step()
        torch.cuda.synchronize()
        rates.append(STEPS * images / (time.perf_counter() - began))
    return spread(rates)


def spread(rates: list[float]) -> dict[str, Any]:
    return {"images/s": round(statistics.median(rates)), "from": round(min(rates)), "to": round(max(rates))}


def write_crops(folder: Path) -> None:
    """An image folder of crops from scikit-learn's two photos."""
    draw = np.random.default_rng(0)
    for photo, label in zip(load_sample_images().images, ("temple", "flower"), strict=True):
        (folder / label).mkdir(parents=True)
        for number in range(IMAGES // 2):
            top, left = draw.integers(photo.shape[0] - 256), draw.integers(photo.shape[1] - 256)
            Image.fromarray(photo[top : top + 256, left : left + 256]).save(folder / label / f"{number}.jpg")


@contextmanager
def measured_bench(name: str, work: Path) -> Iterator[Bench]:
    catalogue = Catalogue(Host(), work / "cache")
    bench = Bench.open(work / "crops", [catalogue.card(f"timm:{name}").input], catalogue, "cuda", seed=0)
    yield bench
    bench.memory.clear()


def training(name: str, bench: Bench) -> dict[str, Any]:
    """The whole network, from images in the pixel store; the first epoch does not count."""
    backbone = f"timm:{name}@random"
    network = bench.catalogue.network(backbone, 0)
    info = bench.catalogue.info(backbone, network.input)
    rates = {stage.name: 1e-4 for stage in info.stages if stage.parameters}
    training = Training(epochs=EPOCHS, batch_size=BATCH, head_lr=1e-3, stage_lr=rates)
    phase = Phase(method="gradient-descent", frozen=None, training=training)
    plan = TransferPlan(
        backbone=backbone,
        weights=network.weights,
        input=network.input,
        compute_dtype="bfloat16",
        cut=info.names[-1],
        head=Head(pooling="avg"),
        augmentation=NO_AUGMENTATION,
        data=DataRef(fingerprint=bench.dataset.fingerprint, split_seed=0),
        train_on=("train", "early_stop", "val"),  # without a split to evaluate epochs on, only training is timed
        seed=0,
        requires={},
        phases=(phase,),
    )
    seconds: list[float] = []

    class Epochs(Nobody):
        def epoch(self, phase: int, epoch: int, facts: Mapping[str, float]) -> None:
            seconds.append(facts["seconds"])

    fit(plan, bench, Epochs())
    images = len(bench.shas(*plan.train_on))
    return spread([images / each for each in seconds[1:] or seconds])


def features(name: str, bench: Bench) -> dict[str, Any]:
    """Features of every cut, of the same images repeatedly: a feature pass without reading, copying and storing."""
    catalogue = bench.catalogue
    network = catalogue.network(f"timm:{name}@random", 0)
    extract = extractor(catalogue.build(network), network, catalogue, bench.memory)
    images = torch.randint(256, (FEATURE_BATCH, 3, SIZE, SIZE), dtype=torch.uint8, device="cuda")
    return rate(lambda: extract(images), FEATURE_BATCH)


def feature_pass(name: str, bench: Bench) -> dict[str, Any]:
    """Every image through the network, with features of every cut stored: the rate of the batches in the middle.

    What happens before the second batch is reported as seconds: the network is built and tried on one image, and
    kernels are loaded. The first pass does not count.
    """
    backbone = f"timm:{name}@random"
    shas = bench.shas("train", "early_stop", "val")
    rates, starts, builds = [], [], []
    for seed in range(4):
        network = bench.catalogue.network(backbone, seed)
        began = time.perf_counter()
        bench.catalogue.build(network)
        builds.append(time.perf_counter() - began)
        ends: list[tuple[float, int]] = []

        def progress(done: int, total: int, ends: list[tuple[float, int]] = ends) -> None:
            ends.append((time.perf_counter(), done))

        began = time.perf_counter()
        bench.features.fill(network, shas, progress)
        starts.append(ends[0][0] - began)
        (first, before), (last, after) = ends[ENDS - 1], ends[-1 - ENDS]
        rates.append((after - before) / (last - first))
    whole = {
        "building s": round(statistics.median(builds[1:]), 2),
        "first batch s": round(statistics.median(starts[1:]), 2),
    }
    return {**spread(rates[1:]), **whole}


# Searches


def search(words: list[str], home: Path) -> dict[str, Any]:
    """Run a whole search as a command: its wall time, and the time of its parts."""
    folders = ["--home", str(home), "--cache-dir", str(home / "cache")]
    began = time.time()
    command = [sys.executable, "-m", "autotl", "search", *words, "--study", "gpu", "--json", *folders]
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=250, check=True).stdout
    wall = time.time() - began
    result = json.loads(said)
    events = [json.loads(line) for file in (home / "gpu" / "trials").glob("*.jsonl") for line in file.open()]
    first, last = min(event["time"] for event in events), max(event["time"] for event in events)
    epochs = [event["facts"]["seconds"] for event in events if "seconds" in event.get("facts", {})]
    return {
        "wall s": round(wall, 1),
        "before the first trial s": round(first - began, 1),
        "from first to last trial s": round(last - first, 1),
        "trials s": round(sum(event.get("seconds", 0) for event in events), 1),
        "epochs": len(epochs),
        "epochs s": round(sum(epochs), 1),
        "states": result["trials"],
        "winner": f"{result['best']['strategy']} {result['best']['plan']['backbone']}",
        "test": result["test"]["value"],
        "left out": result["skipped"],
    }


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    main()
