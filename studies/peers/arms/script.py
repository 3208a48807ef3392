"""The search that people write by hand: Optuna, ImageFolder, DataLoader, and a network of torchvision or timm.

    python studies/peers/arms/script.py DATA --backbone squeezenet1_0 --weights squeezenet1_0.safetensors --trials 10

DATA is a folder with `train/` and `test/`, each with a folder for each class; a fifth of `train/` is held out as
validation images if there is no `val/`. `--backbone` is `squeezenet1_0`, built by torchvision, or any network of timm;
`--weights` is a file of weights for it, safetensors or a checkpoint. `--kind head` searches the cut and the learning
rate of a head on a frozen network; `mixed` searches how much of the network is frozen, too, and flips training images.

Each trial builds the pretrained network, cuts it, freezes a part, trains with AdamW for `--epochs` and is judged by its
accuracy on the validation images. Optuna's TPE draws `--trials` of them, or as many as start within `--seconds` of
processor time since the process started; the trial in progress then is stopped, and judged as it is. The best network
classifies the test images, after that limit.

Prints a line of JSON: `val`, `test` (accuracies), `cpu_s`, `wall_s` (seconds since the process started), `trials` (the
number of those that were judged), `best` (parameters).
"""

# ruff: noqa: E402, because wall_s includes the imports

import json
import os
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

STARTED = time.time()
os.environ.setdefault("OMP_NUM_THREADS", "1")

import click
import optuna
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset, random_split
from torchvision import models, transforms
from torchvision.datasets import ImageFolder

BATCH = 16
Labelled = Dataset[tuple[Tensor, int]]


class Images(NamedTuple):
    """What the trials learn from, what compares them, and what the best is tested on."""

    train: Labelled
    val: Labelled
    test: Labelled
    classes: int


@click.command()
@click.argument("data", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--backbone", required=True, help="squeezenet1_0 of torchvision, or a network of timm.")
@click.option("--weights", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--kind", type=click.Choice(["head", "mixed"]), default="head", show_default=True)
@click.option("--trials", type=click.IntRange(1))
@click.option("--seconds", type=click.FloatRange(0, min_open=True), help="Of processor time.")
@click.option("--epochs", type=click.IntRange(1), default=5, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(
    data: Path,
    backbone: str,
    weights: Path,
    kind: str,
    trials: int | None,
    seconds: float | None,
    epochs: int,
    seed: int,
) -> None:
    if trials is None and seconds is None:
        raise click.UsageError("Limit the search: --trials, --seconds, or both.")
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    build = partial(squeezenet if backbone == "squeezenet1_0" else timm_network, backbone, weights)
    images = read(data, preparation(backbone), flip=kind == "mixed", seed=seed)
    best: tuple[float, nn.Module] | None = None

    def spent() -> bool:
        return seconds is not None and time.process_time() >= seconds

    def objective(trial: optuna.Trial) -> float:
        nonlocal best
        body, width = build(trial)
        weights_of_body = list(body.parameters())
        frozen = 1.0 if kind == "head" else trial.suggest_float("frozen", 0, 1)
        for parameter in weights_of_body[: round(frozen * len(weights_of_body))]:
            parameter.requires_grad = False
        model = nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, images.classes))
        learning_rate = trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True)
        train(model, images.train, learning_rate, epochs, spent)
        accuracy = accuracy_on(model, images.val)
        if best is None or accuracy > best[0]:
            best = accuracy, model
        return accuracy

    def stop(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        if spent():
            study.stop()

    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    study.optimize(objective, n_trials=trials, callbacks=[stop])
    assert best
    done = {"val": best[0], "test": accuracy_on(best[1], images.test), "cpu_s": round(time.process_time(), 2),
            "wall_s": round(time.time() - STARTED, 2), "trials": len(study.trials),
            "best": study.best_params}  # fmt: skip
    print(json.dumps(done))


def squeezenet(name: str, weights: Path, trial: optuna.Trial) -> tuple[nn.Module, int]:
    """torchvision's SqueezeNet up to a layer that is drawn, and the number of its channels."""
    network = models.squeezenet1_0()
    network.load_state_dict(state(weights))
    body = network.features[: trial.suggest_int("cut", 4, len(network.features))]
    return body, body(torch.zeros(1, 3, 224, 224)).shape[1]


def timm_network(name: str, weights: Path, trial: optuna.Trial) -> tuple[nn.Module, int]:
    """A network of timm up to a resolution that is drawn, and the number of its channels."""
    import timm

    given = {"file": str(weights)}
    levels = len(timm.create_model(name, features_only=True).feature_info)
    body = timm.create_model(
        name,
        pretrained=True,
        pretrained_cfg_overlay=given,
        features_only=True,
        out_indices=[trial.suggest_int("cut", levels // 2, levels - 1)],
    )
    return nn.Sequential(body, Only()), body.feature_info.channels()[0]


class Only(nn.Module):
    """The only value of a list."""

    def forward(self, values: list[Tensor]) -> Tensor:
        (value,) = values
        return value


def state(weights: Path) -> dict[str, Tensor]:
    if weights.suffix == ".safetensors":
        return load_file(weights)
    return torch.load(weights, map_location="cpu", weights_only=True)


def preparation(backbone: str) -> transforms.Compose:
    """How an image becomes a tensor for evaluation."""
    if backbone != "squeezenet1_0":
        import timm
        from timm.data import create_transform, resolve_data_config

        return create_transform(**resolve_data_config(model=timm.create_model(backbone)))
    normalize = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    return transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(), normalize])


def read(data: Path, prepare: transforms.Compose, flip: bool, seed: int) -> Images:
    augment = transforms.Compose([*([transforms.RandomHorizontalFlip()] if flip else []), prepare])
    train: Labelled = ImageFolder(data / "train", augment)
    test = ImageFolder(data / "test", prepare)
    plain = ImageFolder(data / "val" if (data / "val").is_dir() else data / "train", prepare)
    val: Labelled = plain
    if not (data / "val").is_dir():
        learnt, held_out = random_split(range(len(plain)), (0.8, 0.2), torch.Generator().manual_seed(seed))
        train, val = Subset(train, list(learnt)), Subset(plain, list(held_out))
    return Images(train, val, test, len(test.classes))


def train(model: nn.Module, images: Labelled, learning_rate: float, epochs: int, spent) -> None:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, learning_rate, weight_decay=0.05)
    model.train()
    for _ in range(epochs):
        for x, y in DataLoader(images, BATCH, shuffle=True):
            if spent():
                return
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()


@torch.no_grad()
def accuracy_on(model: nn.Module, images: Labelled) -> float:
    model.eval()
    found = [model(x).argmax(1) == y for x, y in DataLoader(images, 64)]
    return torch.cat(found).float().mean().item()


if __name__ == "__main__":
    main()
