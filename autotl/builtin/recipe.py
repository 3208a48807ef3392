"""The training recipe of the strategies that train stages: length, schedule and regularisation, with their ranges.

All of them draw these parameters under the same names, so what the sampler learns about the optimizer from one
strategy helps the others. Each range has its source beside it.
"""

from dataclasses import dataclass
from typing import Any

from autotl import Phase, Stop, Training

EPOCHS = ((1_000, 10, 40), (10_000, 5, 20), (100_000, 3, 10))
"""(largest number of train images, fewest epochs, most epochs). BiT's rule (arXiv 1912.11370) is hundreds of epochs for
small sets and tens for medium ones; with early stopping and searched learning rates a tenth of that is enough."""
LARGE = (2, 10)
STEPS = (16, 1_000)
"""The fewest and the most steps per epoch, as far as batches of 8 to 128 images allow. With fewer steps, training on a
small set ends before it has changed anything; more steps on a large set only take time. With very few images an epoch
has four steps."""

FIRST_GUESS = {
    "optimizer": "adamw",
    "adamw.lr": 3e-4,
    "adamw.head_lr": 3e-3,
    "adamw.weight_decay": 0.05,
    "recipe.schedule": "cosine",
    "recipe.warmup_ratio": 0.1,
    "recipe.label_smoothing": 0.1,
    "recipe.dropout": 0.0,
    "recipe.batch_norm": "eval",
    "recipe.length": 0.5,
    "augmentation": "none",
    "objective": "cross-entropy",
    "adapter": "all",
    "method": "gradient-descent",
}
"""What timm's fine-tuning recipes have in common, without augmentation."""
BOLD = {**FIRST_GUESS, "adamw.lr": 1e-3}
"""The same with a learning rate for small networks on images unlike those of their pretraining."""

CLIP = 1.0
"""Largest norm of the gradient, as in the fine-tuning of ViT and BiT."""
MOST_VIEWS = 8
"""The most augmented views per image if stages are frozen: each costs one pass through them."""


@dataclass(frozen=True)
class Recipe:
    """A drawn recipe. `lr` is the learning rate of the topmost trained stage."""

    lr: float
    epochs: int
    method: Any
    backbone: Any
    values: dict[str, Any]
    """The other fields of a phase's training."""

    def phase(self, frozen, stage_lr, *, epochs, stop, augmented, ends_plan=False):
        """A phase with this recipe; `stop`: whether there is a split to choose the epoch on."""
        values = self.values
        if frozen and "cutmix" in values and self.backbone.stage(frozen).layout == "tokens":
            values = {**values, "cutmix": 0.0}  # the values to train on have no height and width
        training = Training(
            epochs=epochs,
            stage_lr=stage_lr,
            views=min(epochs, MOST_VIEWS) if frozen and augmented else 0,
            # At high learning rates the loss first rises, and falls only when they do: a short patience would miss it.
            stop=Stop(patience=max(3, round(epochs / 2)), ends_plan=ends_plan) if stop else None,
            **values,
        )
        return Phase(method=self.method.name, frozen=frozen, training=training, options=self.method.params)


def suggest(trial, context, *, pretrained=True):
    """A recipe for this number of images."""
    data, chosen = context.data, context.optimizer(pretrained=pretrained)
    fewest, most = epochs(data.train_images)
    smallest, largest = batch_sizes_log2(data.train_images)
    return Recipe(
        lr=chosen.lr,
        # A share between the fewest and the most, so that it stays comparable when images are added.
        epochs=round(fewest * (most / fewest) ** trial.suggest_float("recipe.length", 0.0, 1.0)),
        method=context.method(),
        backbone=context.backbone(),
        values={
            "optimizer": chosen.optimizer,
            "head_lr": chosen.head_lr,
            "weight_decay": chosen.weight_decay,
            "objective": context.objective(),
            "adapter": context.adapter(),
            "class_weights": context.class_weights(),
            "sampling": context.sampling(),
            # A random network has no useful statistics.
            "batch_norm": trial.suggest_categorical("recipe.batch_norm", ["eval", "train"]) if pretrained else "train",
            "batch_size": 2 ** trial.suggest_int("recipe.batch_size_log2", smallest, largest),
            "schedule": trial.suggest_categorical("recipe.schedule", ["cosine", "constant"]),
            "warmup_ratio": trial.suggest_float("recipe.warmup_ratio", 0.0, 0.2),
            # Szegedy et al. 2016, arXiv 1512.00567, use 0.1; Srivastava et al. 2014 drop half.
            "label_smoothing": trial.suggest_float("recipe.label_smoothing", 0.0, 0.2),
            "dropout": trial.suggest_float("recipe.dropout", 0.0, 0.5),
            "clip_grad": CLIP,
            **techniques(trial, context, pretrained),
        },
    )


def techniques(trial, context, pretrained):
    """The strengths of the techniques that the user wants searched."""
    wanted, found = context.techniques, {}
    if "distillation" in wanted:
        found["teacher"] = context.teacher(
            share=trial.suggest_float("recipe.teacher_share", 0.1, 1.0),
            temperature=trial.suggest_float("recipe.teacher_temperature", 1.0, 4.0),
        )
    if "mixup" in wanted:  # Zhang et al. 2018 use 0.1 to 0.4, timm 0.8
        found["mixup"] = trial.suggest_float("recipe.mixup", 0.0, 0.8)
    if "cutmix" in wanted:  # Yun et al. 2019 use 1
        found["cutmix"] = trial.suggest_float("recipe.cutmix", 0.0, 1.0)
    if "l2-sp" in wanted and pretrained:  # the grid of Li et al. 2018
        found["l2_sp"] = trial.suggest_float("recipe.l2_sp", 1e-4, 1.0, log=True)
    if "ema" in wanted:
        found["ema"] = 1 - 1 / trial.suggest_float("recipe.averaged_steps", 5, 500, log=True)
    return found


def epochs(train_images):
    """The fewest and the most epochs for a data set of this size."""
    return next(((low, high) for limit, low, high in EPOCHS if train_images <= limit), LARGE)


def batch_sizes_log2(train_images):
    """The base-2 logarithms of the smallest and the largest batch size for a data set of this size."""
    fewest, most = STEPS
    most_images = max(4, min(8, train_images // 4), train_images // fewest)
    largest = min(7, most_images.bit_length() - 1)
    smallest = min(largest, max(4, (train_images // most).bit_length()))
    return smallest, largest
