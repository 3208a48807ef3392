"""Shapes and bit depths of the train images, and their estimates from a few of them."""

import numpy as np
import pytest
from PIL import Image

from autotl.data import images, index
from autotl.data.dataset import open_dataset
from autotl.data.pixels import PixelStore
from autotl.data.shapes import SAMPLE, expected, shapes_of
from autotl.plan import Input

INPUT = Input(size=8, resize=8, interpolation="bilinear", mean=(0.5,) * 3, std=(0.2,) * 3)


def test_medians_and_the_highest_value_count():
    shapes = shapes_of([(300, 100), (100, 200), (400, 400), (80, 320)], [0, 700, 0, 3])
    assert (shapes.image_size, shapes.cut_away, shapes.bits) == (100, pytest.approx((0.5 + 2 / 3) / 2), 10)


@pytest.mark.parametrize(("peak", "bits"), [(0, 16), (1, 8), (255, 8), (256, 9), (4095, 12), (4096, 13), (65535, 16)])
def test_a_range_is_rounded_up_to_whole_bits(peak, bits):
    assert shapes_of([(8, 8)], [0, peak]).bits == bits


def save(path, value, kind=np.uint16, width=24):
    path.parent.mkdir(parents=True, exist_ok=True)
    grey = np.random.default_rng(value).integers(0, value + 1, (8, width))
    grey[0, 0] = value
    Image.fromarray(grey.astype(kind)).save(path)


@pytest.fixture
def scans(tmp_path):
    """Two classes: in train 10 bits are used, in test 16."""
    for number in range(12):
        for name in ("a", "b"):
            more = number + 20 * (name == "b")
            save(tmp_path / f"scans/train/{name}/{number}.png", 600 + more)
            save(tmp_path / f"scans/test/{name}/{number}.tiff", 50_000 + more, np.int32, width=8)
    return tmp_path / "scans"


def opened(path, store):
    return open_dataset(path, seed=0, inputs=[INPUT], pixels=store)


def test_the_test_split_has_no_influence(scans, tmp_path):
    dataset = opened(scans, PixelStore(tmp_path / "cache"))
    assert (dataset.shapes.bits, dataset.shapes.cut_away) == (10, pytest.approx(2 / 3))
    assert {image.peak > 600 for image in dataset.of("test")} == {True}
    assert expected(index.find(scans)) == dataset.shapes


def test_the_range_is_known_without_a_second_decoding(scans, tmp_path):
    opened(scans, PixelStore(tmp_path / "cache"))
    again = PixelStore(tmp_path / "cache")
    assert opened(scans, again).shapes.bits == 10 and again.decoded == 0


def test_the_estimate_opens_few_images_and_decodes_none_of_8_bits(stripes, monkeypatch):
    monkeypatch.setattr(images, "upright", lambda image: pytest.fail("decoded"))
    seen = []
    really = images.open_image
    monkeypatch.setattr(images, "open_image", lambda data: seen.append(1) or really(data))
    monkeypatch.setattr("autotl.data.shapes.SAMPLE", 10)
    shapes = expected(index.find(stripes))
    assert (shapes.image_size, shapes.cut_away, shapes.bits) == (32, 0, 16)
    assert len(seen) == 10 < SAMPLE


def test_the_estimate_of_unreadable_images(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "broken" / name).mkdir(parents=True)
        (tmp_path / "broken" / name / "1.png").write_bytes(b"no image")
    assert not expected(index.find(tmp_path / "broken")).cut_away
