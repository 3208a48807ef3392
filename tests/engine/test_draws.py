import hashlib

import pytest
import torch

from autotl.engine.draws import Draws, keys

N = 20_000


@pytest.fixture(scope="module")
def images():
    return keys([hashlib.sha256(str(number).encode()).hexdigest() for number in range(N)])


def correlation(one, other):
    return torch.corrcoef(torch.stack([one.double(), other.double()]))[0, 1].item()


NONE = 5 / N**0.5  # five standard deviations of the correlation of independent numbers


@pytest.mark.parametrize(("seed", "view"), [(0, 0), (0, 1), (1, 0), (123456789, 7)])
def test_numbers_are_uniform_from_zero_up_to_one(images, seed, view):
    drawn = Draws(seed, view, images)(4)
    assert drawn.dtype == torch.float32
    assert drawn.shape == (N, 4)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    for column in drawn.double().T:
        assert column.mean().item() == pytest.approx(0.5, abs=5 * (1 / 12 / N) ** 0.5)
        assert column.var().item() == pytest.approx(1 / 12, rel=0.04)
        share = torch.arange(1, N + 1) / N
        assert (column.sort().values - share).abs().max() < 2.6 / N**0.5  # Kolmogorov and Smirnov, p = 3e-6


def test_the_largest_number_is_below_one_in_float32():
    extreme = Draws(0, 0, torch.arange(200_000))(20)
    assert extreme.max() < 1
    assert (extreme * 14).floor().max() == 13  # as in the choice of one of 14 operations


def test_a_row_depends_on_its_image_and_not_on_the_batch(images):
    whole, some = Draws(3, 1, images), Draws(3, 1, images[[7, 5, 100]])
    assert torch.equal(some(3), whole(3)[[7, 5, 100]])
    assert torch.equal(some(2), whole(2)[[7, 5, 100]])  # nor does a later call
    other = Draws(3, 1, images[5:6])
    assert torch.equal(torch.cat([other(1), other(4)], 1), Draws(3, 1, images)(5)[5:6])


def test_calls_columns_views_seeds_and_images_are_independent(images):
    first = Draws(0, 0, images)
    one = first(2)
    others = {
        "the next column": one[:, 1],
        "the next call": first(1)[:, 0],
        "the next view": Draws(0, 1, images)(1)[:, 0],
        "the next seed": Draws(1, 0, images)(1)[:, 0],
        "both": Draws(1, 1, images)(1)[:, 0],
        "the next image": one[:, 0].roll(1),
    }
    for name, other in others.items():
        assert abs(correlation(one[:, 0], other)) < NONE, name
        assert (one[:, 0] == other).double().mean() < 0.001, name


def test_seed_and_view_are_not_interchangeable(images):
    """Runs with seeds 0, 1, 2 must not see each other's views in another order."""
    pairs = [(seed, view) for seed in range(8) for view in range(8)]
    drawn = {tuple(Draws(seed, view, images[:4])(1).flatten().tolist()) for seed, view in pairs}
    assert len(drawn) == len(pairs)


def test_neighbouring_keys_draw_independent_numbers():
    """Hashes are random; the numbers must not rely on it."""
    neighbours = Draws(0, 0, torch.arange(N))(2)
    assert abs(correlation(neighbours[:-1, 0], neighbours[1:, 0])) < NONE
    assert abs(correlation(neighbours[:-1, 1], neighbours[1:, 0])) < NONE
    assert abs(correlation(neighbours[:, 0], torch.arange(N))) < NONE


def test_keys_of_different_hashes_differ(images):
    assert images.dtype == torch.int64
    assert len(images.unique()) == N
    assert images.min() >= 0
