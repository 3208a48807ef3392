import math

import pytest
import torch
from torch.nn import functional as F

from autotl.engine.heads import EFFECTIVE, weights_of
from autotl.engine.objective import Objective
from autotl.engine.seeds import generator
from autotl.plan import Training

LABELS = torch.tensor([0, 0, 0, 1, 1, 2])


def objective(loss=F.cross_entropy, places=(2, 3), **changes):
    return Objective(Training(epochs=1, batch_size=2, head_lr=0.1, **changes), loss, LABELS, 3, places)


def test_targets_are_one_hot_and_smoothing_gives_every_class_its_share():
    torch.testing.assert_close(objective().targets(torch.tensor([1])), torch.tensor([[0.0, 1.0, 0.0]]))
    smoothed = objective(label_smoothing=0.3).targets(torch.tensor([1]))
    torch.testing.assert_close(smoothed, torch.tensor([[0.1, 0.8, 0.1]]))


@pytest.mark.parametrize("weighted", ["none", "balanced", "effective"])
def test_the_loss_gets_the_class_weights(weighted):
    seen = []
    objective(lambda logits, targets, weights: seen.append(weights), class_weights=weighted)(None, None)
    torch.testing.assert_close(seen[0], weights_of(weighted, LABELS, 3))


def test_class_weights_are_one_on_average_over_the_images():
    balanced, effective = (weights_of(name, LABELS, 3) for name in ("balanced", "effective"))
    torch.testing.assert_close(balanced, torch.tensor([2 / 3, 1.0, 2.0]))
    numbers = torch.tensor([(1 - EFFECTIVE**images) / (1 - EFFECTIVE) for images in (3, 2, 1)])
    torch.testing.assert_close(effective * numbers, (effective * numbers)[:1].expand(3))
    for weights in (balanced, effective):
        assert weights[LABELS].mean().item() == pytest.approx(1)


def test_effective_weights_are_between_none_and_balanced():
    labels = torch.cat([torch.zeros(9_000), torch.ones(100)]).long()
    balanced, effective = (weights_of(name, labels, 2) for name in ("balanced", "effective"))
    assert 1 < effective[1] / effective[0] < balanced[1] / balanced[0]


def test_without_mixing_a_batch_stays_as_it_is():
    values, targets = torch.rand(4, 3, 8, 8), torch.rand(4, 3)
    mixed = objective().mixed(values, targets, generator(1))
    assert mixed[0] is values and mixed[1] is targets


def test_mixup_blends_images_and_targets_by_the_same_share():
    """One-hot images, so that each result says which images it is made of."""
    values, targets = torch.eye(4).view(4, 4, 1, 1), torch.eye(4)
    for seed in range(20):
        mixed, blended = objective(mixup=0.4).mixed(values, targets, generator(seed))
        torch.testing.assert_close(mixed.view(4, 4), blended)
        torch.testing.assert_close(blended.sum(1), torch.ones(4))
        assert (blended > 0).sum(1).max() <= 2


def test_the_shares_of_mixup_follow_its_beta_distribution():
    values, targets = torch.zeros(2, 1, 1, 1), torch.eye(2)
    shares = []
    for seed in range(400):
        _, blended = objective(mixup=2.0).mixed(values, targets, generator(seed))
        if blended[0, 0] < 1:  # the two images were exchanged
            shares.append(blended[0, 0].item())
    assert sum(shares) / len(shares) == pytest.approx(0.5, abs=0.05)
    # Beta(2, 2) has the variance 1/20.
    assert torch.tensor(shares).var().item() == pytest.approx(0.05, abs=0.012)


@pytest.mark.parametrize(("shape", "places"), [((2, 1, 10, 12), (2, 3)), ((2, 10, 12, 1), (1, 2))])
def test_cutmix_replaces_a_rectangle_and_counts_its_area(shape, places):
    values = torch.zeros(shape)
    values[1] = 1
    areas = set()
    for seed in range(50):
        mixed, blended = objective(cutmix=1.0, places=places).mixed(values, torch.eye(2), generator(seed))
        other = mixed[0].mean().item()  # the share of the first image that is now the second
        assert blended[0].tolist() == pytest.approx([1 - other, other], abs=1e-6)
        rows, columns = mixed[0].squeeze().bool().any(1).sum(), mixed[0].squeeze().bool().any(0).sum()
        assert mixed[0].sum() == rows * columns
        areas.add(round(other, 3))
    assert len(areas) > 10


def test_with_both_each_batch_gets_one_of_them():
    values, targets = torch.zeros(2, 1, 8, 8), torch.eye(2)
    values[1] = 1
    kinds = set()
    for seed in range(60):
        mixed, _ = objective(mixup=1.0, cutmix=1.0).mixed(values, targets, generator(seed))
        kinds.add(bool(((mixed > 0) & (mixed < 1)).any()))
    assert kinds == {True, False}


def test_the_loss_of_soft_targets_is_their_cross_entropy():
    logits = torch.tensor([[2.0, 0.0, -1.0]])
    targets = torch.tensor([[0.5, 0.25, 0.25]])
    total = sum(math.exp(each) for each in (2, 0, -1))
    by_hand = -sum(share * (each - math.log(total)) for share, each in zip((0.5, 0.25, 0.25), (2, 0, -1), strict=True))
    assert objective()(logits, targets).item() == pytest.approx(by_hand)
