"""The teacher of a phase: a linear classifier on a frozen backbone, whose probabilities become part of the targets."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from autotl.engine.heads import logistic_path
from autotl.engine.model import Model
from autotl.engine.seeds import seed_of
from autotl.plan import PENALTIES, Network, Teacher, digest

FOLDS = 5
"""Each image is taught by a classifier that was fitted on the other folds: on its own images a classifier is too sure
to be a useful teacher."""


def probabilities(model: Model, teacher: Teacher) -> Tensor:
    """What the teacher thinks of each training image, at its temperature: [N, C] float32 on the device.

    The penalty is the one with the lowest loss on the images that were not fitted on. Copies of an image, and images of
    one group, are in one fold.
    """
    bench, plan = model.bench, model.plan
    splits = plan.train_on
    classes = len(bench.dataset.classes)
    bench.decode(teacher.input, lambda done, total: model.observer.step())
    classifier = teacher.model_dump(mode="json", exclude={"share", "temperature"})
    key = digest([classifier, plan.seed, bench.shas(*splits)])
    kept = bench.memory.keep(
        f"teacher/{key}", 4 * classes * len(bench.shas(*splits)), lambda: _logits(model, teacher, classes)
    )
    logits = _logits(model, teacher, classes) if kept is None else kept
    return (logits / teacher.temperature).softmax(1)


def _logits(model: Model, teacher: Teacher, classes: int) -> Tensor:
    bench, splits = model.bench, model.plan.train_on
    network = Network(teacher.backbone, teacher.weights, teacher.input)
    shas, labels = bench.shas(*splits), bench.labels(*splits)
    bench.features.fill(network, shas, lambda done, total: model.observer.step())
    features = bench.features.read(network, teacher.cut, teacher.pooling, shas)
    folds = _folds(bench.units(*splits), model.plan.seed).to(features.device)
    found = torch.zeros(len(PENALTIES), len(labels), classes, device=features.device)
    for fold in range(FOLDS):
        there = folds == fold
        if not there.any() or there.all():
            continue
        heads = logistic_path(features[~there], labels[~there], classes, PENALTIES, model.observer.step)
        for number, head in enumerate(heads):
            found[number, there] = head(features[there])
    losses = torch.stack([F.cross_entropy(logits, labels) for logits in found])
    return found[int(losses.argmin())]


def _folds(units: Tensor, seed: int) -> Tensor:
    """The fold of each image, [N] int64; images of one unit are in one fold."""
    different, at = units.unique(return_inverse=True)
    shuffled = np.random.default_rng(seed_of(seed, FOLDS)).permutation(len(different)) % FOLDS
    return torch.from_numpy(shuffled)[at]
