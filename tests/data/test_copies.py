"""Files that show the same picture are found by their pixels."""

import io

import numpy as np
import pytest
from PIL import Image

from autotl.data import copies


def photo(number, size=(160, 120)):
    """A picture with large and small shapes, different for each number."""
    draw = np.random.default_rng(number)
    coarse = Image.fromarray(draw.integers(0, 256, (5, 6, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
    return Image.fromarray((np.asarray(coarse) * 0.9 + draw.integers(0, 25, (size[1], size[0], 3))).astype(np.uint8))


def as_jpeg(image, quality):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def pictures(*images):
    return np.stack([copies.picture(image) for image in images]).view(copies.PICTURE).reshape(-1)


def test_the_same_pixels_are_the_same_picture():
    one, other = photo(0), photo(1)
    changed = one.copy()
    changed.putpixel((3, 4), (1, 2, 3))
    words = copies.same(pictures(one, other, one.copy(), changed))
    assert words[0] == words[2] and len(set(words)) == 3


def test_the_size_belongs_to_the_picture():
    tall = Image.frombytes("RGB", (10, 40), photo(0, (40, 10)).tobytes())
    assert len(set(copies.same(pictures(photo(0, (40, 10)), tall)))) == 2


def test_pictures_saved_again_are_near_and_others_are_not():
    photos = [photo(number) for number in range(40)]
    again = [as_jpeg(photos[0], 30), as_jpeg(photos[1], 80), photos[2].resize((80, 60)), photos[3]]
    found = copies.near(pictures(*photos, *again), ["a"] * 44)
    assert sorted(found) == [(0, 40), (1, 41), (2, 42)]  # the fourth is the same, not nearly


def test_labels_keep_near_copies_apart():
    assert copies.near(pictures(photo(0), as_jpeg(photo(0), 50)), ["a", "b"]) == []


def test_even_pictures_are_never_near_copies():
    even = [Image.new("RGB", (40, 40), (value, value, value)) for value in (100, 101, 140)]
    assert copies.near(pictures(*even), ["a"] * 3) == []


@pytest.mark.parametrize("count", [0, 1])
def test_few_pictures(count):
    some = pictures(*[photo(n) for n in range(2)])[:count]
    assert copies.near(some, ["a"] * count) == []
    assert copies.keepable([], ["a"] * count, ["train"] * count) == []
    assert len(copies.clusters(copies.same(some), [])) == count


def test_very_many_pictures_of_one_hash_are_one_cluster():
    many = np.repeat(pictures(photo(0)), 2_000)
    many["pixels"] = np.random.default_rng(0).integers(0, 256, many["pixels"].shape)
    found = copies.near(many, ["a"] * len(many))
    assert len(found) >= len(many) - 1
    assert len(set(copies.clusters(copies.same(many), found))) == 1


def test_what_is_fixed_in_two_splits_is_never_linked():
    labels = ["a"] * 12
    fixed = ["train", "test", None, None, *["train"] * 8]
    assert copies.keepable([(0, 1)], labels, fixed) == []
    # 2 is nearest to 0, and is linked to it; 3 follows.
    assert copies.keepable([(0, 2), (1, 2), (2, 3), (1, 3)], labels, fixed) == [(0, 2), (2, 3)]


def test_a_cluster_of_more_than_half_a_class_is_no_cluster():
    pairs = [(at, at + 1) for at in range(5)] + [(10, 11)]
    assert copies.keepable(pairs, ["a"] * 12, ["train"] * 12) == pairs
    assert copies.keepable(pairs, ["a"] * 10 + ["b"] * 4, ["train"] * 14) == [(10, 11)]


def test_clusters_join_the_same_and_the_near():
    numbers = copies.clusters(["x", "y", "x", "z", "w"], [(1, 2)])
    assert len({numbers[0], numbers[1], numbers[2]}) == 1 and len(set(numbers)) == 3


def test_dark_images_of_12_bits_are_distinguished():
    grey = np.array(photo(0).convert("L"), np.int32)
    dark, same, other = (Image.fromarray(value) for value in (grey << 1, grey << 1, (grey << 1) + 1))
    found = pictures(dark, same, other, photo(1))
    assert found["peak"].tolist() == [2 * grey.max(), 2 * grey.max(), 2 * grey.max() + 1, 0]
    one, two, three, _ = copies.same(found)
    assert one == two != three
    assert copies.near(found[[0, 2]], ["a", "a"]) == [(0, 1)]
    assert found["grey"][0].std() > copies.FLAT
