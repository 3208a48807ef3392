"""Trains one of the backbones that autotl ships, from a recipe, on Tiny ImageNet.

    python studies/backbones/train.py studies/backbones/resnet10.toml \
        --data tiny-imagenet-200 --work /tmp/resnet10

`--data` is the published folder: `train/<wnid>/images/*.JPEG`, `val/images/*.JPEG`,
`val/val_annotations.txt`, `wnids.txt`. Images are decoded once, into `--work`. A checkpoint is
written after every epoch; the same command resumes where it stopped. One half of the validation
images selects the epoch, and the reported accuracy is measured on the other half.

A recipe may name a teacher, a shipped backbone: half of each target is then the teacher's prediction for
the same crop and mixture (distillation: Hinton et al. 2015, arXiv 1503.02531; Beyer et al. 2022,
arXiv 2106.05237).

It writes `<name>.safetensors` (float16, from the best epoch so far) and `<name>.json` (accuracy with
its interval, seed, hardware, time, SHA-256) for `autotl/builtin/weights/`.
"""

import hashlib
import json
import math
import os
import platform
import time
import tomllib
from copy import deepcopy
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TIMM_FUSED_ATTN", "0")  # with so few tokens plain attention is faster on a CPU

import click
import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from autotl.builtin.shipped import WEIGHTS, Shipped, network
from autotl.engine.intervals import wilson

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
SIZE = 64
CLASSES = 200


@click.command(context_settings={"show_default": True})
@click.argument("recipe_file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu")
@click.option("--threads", default=1, help="Torch threads on a CPU.")
@click.option("--compile", "compiled", is_flag=True, help="Compile the training step: needs a C++ compiler.")
def main(recipe_file: Path, data: Path, work: Path, device: str, threads: int, compiled: bool) -> None:
    """Train RECIPE_FILE's network and write its best weights to --work."""
    torch.set_num_threads(threads)
    recipe = tomllib.loads(recipe_file.read_text())
    name = recipe_file.stem
    work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe["seed"])

    train_x, train_y, val_x, val_y = decoded(data, work / "tiny-imagenet.pt")
    train_x, train_y = train_x.to(device), train_y.to(device)
    val_x, val_y = val_x.to(device), val_y.to(device)
    choose, measure = slice(0, None, 2), slice(1, None, 2)  # halves of the shuffled validation images

    model = network(recipe["model"], CLASSES).to(device, memory_format=torch.channels_last)
    average = network(recipe["model"], CLASSES).to(device, memory_format=torch.channels_last)
    average.load_state_dict(model.state_dict())
    forward = torch.compile(model) if compiled else model
    teacher = None
    if "teacher" in recipe:
        teacher = Shipped().build(recipe["teacher"], WEIGHTS / f"{recipe['teacher']}.safetensors").eval()
        teacher = teacher.to(device, memory_format=torch.channels_last)
    optimizer = make_optimizer(model, recipe)
    batch, epochs = recipe["batch_size"], recipe["epochs"]
    steps = epochs * (len(train_x) // batch)
    first_epoch, step, seconds, best = 0, 0, 0.0, {"choose": -1.0}

    checkpoint = work / f"{name}.checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        first_epoch, step, seconds, best = (state[k] for k in ("epoch", "step", "seconds", "best"))

    for epoch in range(first_epoch, epochs):
        began = time.perf_counter()
        draw = torch.Generator(device).manual_seed(recipe["seed"] * 10_000 + epoch)
        order = torch.randperm(len(train_x), generator=draw, device=device)
        model.train()
        loss_sum = 0.0
        for start in range(0, len(order) - batch + 1, batch):
            lr = one_cycle(step / steps, recipe["lr"], recipe["warm_up"])
            for group in optimizer.param_groups:
                group["lr"] = lr
            rows = order[start : start + batch]
            images = augment(train_x[rows], recipe["min_area"], draw)
            images, target = mix(images, F.one_hot(train_y[rows], CLASSES).float(), recipe["cutmix"], draw)
            target = torch.lerp(target, torch.full_like(target, 1 / CLASSES), recipe["label_smoothing"])
            if teacher is not None:
                with torch.no_grad(), torch.autocast(device.split(":")[0], torch.bfloat16):  # its precision
                    target = torch.lerp(target, teacher(images).float().softmax(1), 0.5)
            with torch.autocast(device.split(":")[0], torch.bfloat16, enabled=recipe["bf16"]):
                logits = forward(images)
            loss = F.cross_entropy(logits.float(), target)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), recipe["clip"])
            optimizer.step()
            step += 1
            update_average(average, model, min(recipe["ema"], (1 + step) / (10 + step)))
            loss_sum += loss.item()
        seconds += time.perf_counter() - began

        rounded = deepcopy(average).half().float()  # measure the weights that are published
        scores = {
            "choose": accuracy(rounded, val_x[choose], val_y[choose]),
            "measure": accuracy(rounded, val_x[measure], val_y[measure]),
        }
        if scores["choose"] > best["choose"]:
            best = {"epoch": epoch + 1, **scores}
            publish(rounded, work, name, recipe, best, seconds, len(val_y[measure]), device, threads)
        state = {
            "model": model.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict(),
            "epoch": epoch + 1, "step": step, "seconds": seconds, "best": best,
        }  # fmt: skip
        torch.save(state, checkpoint.with_suffix(".new"))
        checkpoint.with_suffix(".new").replace(checkpoint)
        click.echo(
            f"epoch {epoch + 1}/{epochs}  loss {loss_sum / (len(order) // batch):.3f}  "
            f"choose {scores['choose']:.4f}  measure {scores['measure']:.4f}  {seconds:.0f} s"
        )


def make_optimizer(model: nn.Module, recipe: dict) -> torch.optim.Optimizer:
    """Weight decay on matrices and kernels only, none on norms and biases."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": recipe["weight_decay"]}, {"params": plain, "weight_decay": 0.0}]
    if recipe["optimizer"] == "sgd":
        return torch.optim.SGD(groups, lr=recipe["lr"], momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=recipe["lr"])


def one_cycle(share: float, peak: float, warm_up: float) -> float:
    """Linear up to `peak` over the first `warm_up` share of training, then a cosine to zero."""
    if share < warm_up:
        return peak * (0.01 + 0.99 * share / warm_up)
    return peak * 0.5 * (1 + math.cos(math.pi * (share - warm_up) / (1 - warm_up)))


def normalise(images: Tensor) -> Tensor:
    mean = torch.tensor(MEAN, device=images.device).view(1, 3, 1, 1) * 255
    std = torch.tensor(STD, device=images.device).view(1, 3, 1, 1) * 255
    return ((images.float() - mean) / std).contiguous(memory_format=torch.channels_last)


def augment(images: Tensor, min_area: float, draw: torch.Generator) -> Tensor:
    """A random resized crop (Szegedy et al. 2015, arXiv 1409.4842) and a flip, drawn for each image.

    images: [N, 3, S, S] uint8 → [N, 3, S, S] float32, normalised. The crop covers `min_area` to 1
    of the image's area at an aspect ratio of 3/4 to 4/3.
    """
    n, device = len(images), images.device
    area, ratio, x, y, flip = torch.rand((5, n), generator=draw, device=device)
    area = min_area + (1 - min_area) * area
    ratio = torch.exp((ratio * 2 - 1) * math.log(4 / 3)).sqrt()
    width, height = (area.sqrt() * ratio).clamp(max=1), (area.sqrt() / ratio).clamp(max=1)
    theta = torch.zeros(n, 2, 3, device=device)
    theta[:, 0, 0] = width * (1 - 2 * (flip < 0.5).float())
    theta[:, 1, 1] = height
    theta[:, 0, 2] = (2 * x - 1) * (1 - width)
    theta[:, 1, 2] = (2 * y - 1) * (1 - height)
    images = normalise(images)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    crop = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    return crop.contiguous(memory_format=torch.channels_last)


def mix(images: Tensor, target: Tensor, probability: float, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """CutMix (Yun et al. 2019, arXiv 1905.04899) of a batch with itself reversed, with `probability`.

    target: [N, C] probabilities.
    """
    if probability == 0 or torch.rand((), generator=draw, device=images.device) >= probability:
        return images, target
    share, x, y = torch.rand(3, generator=draw, device=images.device).tolist()
    side = images.shape[-1]
    cut = int(side * math.sqrt(1 - share))
    left, top = int(x * (side - cut + 1)), int(y * (side - cut + 1))
    images = images.clone(memory_format=torch.channels_last)
    patch = images[..., top : top + cut, left : left + cut].flip(0)
    images[..., top : top + cut, left : left + cut] = patch
    return images, torch.lerp(target, target.flip(0), cut * cut / (side * side))


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    for kept, new in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if kept.is_floating_point():
            kept.lerp_(new, 1 - decay)
        else:
            kept.copy_(new)


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    model.eval()
    right = sum(
        (model(normalise(images[i : i + 250])).argmax(1) == labels[i : i + 250]).sum().item()
        for i in range(0, len(images), 250)
    )
    return right / len(images)


def publish(model, work, name, recipe, best, seconds, n, device, threads) -> None:
    """Write the weights as float16 and a JSON file about their training."""
    weights = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    file = work / f"{name}.safetensors"
    save_file({k: v.contiguous().cpu() for k, v in weights.items()}, file)
    card = {
        "model": recipe["model"],
        "classes": CLASSES,
        "input": {"size": SIZE, "resize": SIZE, "interpolation": "bicubic", "mean": MEAN, "std": STD},
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "source": "Tiny ImageNet (200 classes, 100,000 training images of 64 x 64 px)",
        "teacher": recipe.get("teacher"),
        "top1": round(best["measure"], 4),
        "top1_interval": [round(end, 4) for end in wilson(best["measure"], n)],
        "top1_images": n,
        "epoch": best["epoch"],
        "epochs": recipe["epochs"],
        "seed": recipe["seed"],
        "training_seconds": round(seconds),
        "hardware": torch.cuda.get_device_name(device) if "cuda" in device else f"{platform.machine()} CPU",
        "threads": threads,
        "versions": {"torch": torch.__version__, "timm": timm.__version__},
        "license": "Weights derived from ImageNet pictures: for research, under ImageNet's terms of access. "
        "No images are included.",
    }  # fmt: skip
    (work / f"{name}.json").write_text(json.dumps(card, indent=2) + "\n")


def decoded(data: Path, store: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Every image as uint8: train [100000, 3, 64, 64] with labels, validation [10000, 3, 64, 64] likewise."""
    if not store.exists():
        wnids = (data / "wnids.txt").read_text().split()
        number = {wnid: i for i, wnid in enumerate(sorted(wnids))}
        train = [(f, number[d.name]) for d in sorted((data / "train").iterdir()) for f in sorted(d.rglob("*.JPEG"))]
        lines = (data / "val" / "val_annotations.txt").read_text().splitlines()
        val = [(data / "val" / "images" / line.split("\t")[0], number[line.split("\t")[1]]) for line in lines]
        shuffled = torch.randperm(len(val), generator=torch.Generator().manual_seed(0)).tolist()
        val = [val[i] for i in shuffled]
        parts = []
        for files in (train, val):
            pixels = np.empty((len(files), 3, SIZE, SIZE), np.uint8)
            for i, (file, _) in enumerate(files):
                pixels[i] = np.asarray(Image.open(file).convert("RGB")).transpose(2, 0, 1)
            parts += [torch.from_numpy(pixels), torch.tensor([label for _, label in files])]
        torch.save(parts, store.with_suffix(".new"))
        store.with_suffix(".new").replace(store)
    return tuple(torch.load(store, weights_only=True))


if __name__ == "__main__":
    main()
