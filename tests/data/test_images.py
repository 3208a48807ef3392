"""Every kind of image in a folder gives the pixels that a person would see, or one clear reason."""

import io
import struct
import sys
import time
import zlib

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from autotl.data import images
from autotl.data.images import (
    FORMATS,
    PIXELS,
    UnreadableImage,
    decode,
    fit,
    open_image,
    peak,
    prepare,
    upright,
    without_warnings,
)
from autotl.plan import Input


def encoded(image, format="PNG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def wants(size, resize, interpolation="bicubic", **others):
    values = {"mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2), **others}
    return Input(size=size, resize=resize, interpolation=interpolation, **values)


def test_lossless_rgb_is_kept_exactly():
    pixels = noise(5, 7)
    found = decode(encoded(Image.fromarray(pixels)))
    assert found.dtype == np.uint8 and found.shape == (5, 7, 3)
    np.testing.assert_array_equal(found, pixels)


UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied_once(orientation, format):
    pixels = noise(16, 24)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if format == "WEBP" else {}
    found = decode(encoded(Image.fromarray(pixels), format, exif=exif, **options))
    np.testing.assert_array_equal(found, UPRIGHT[orientation](pixels))


def test_a_turned_jpeg_equals_the_upright_one():
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[:16, :, 0] = 255
    pixels[16:, :24, 2] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = decode(encoded(Image.fromarray(pixels), "JPEG", quality=95))
    turned = decode(encoded(Image.fromarray(np.rot90(pixels)), "JPEG", quality=95, exif=exif))
    assert turned.shape == upright.shape
    assert np.abs(turned.astype(int) - upright).mean() < 3


@pytest.mark.parametrize(
    "directory",
    [b"\xff\xff" + b"\xff" * 30, b"\0\x01" + struct.pack(">HHI4sI", 0x0112, 2, 3, b"up\0\0", 0)],
    ids=["cut off", "an orientation in letters"],
)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_does_not_hide_the_image(directory):
    good = encoded(Image.fromarray(noise(8, 8)), "JPEG")
    exif = b"Exif\0\0" + b"MM\0*\0\0\0\x08" + directory
    broken = good[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + good[2:]
    np.testing.assert_array_equal(decode(broken), decode(good))


def test_palette():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1])
    assert decode(encoded(image)).tolist() == [[[10, 20, 30], [200, 100, 50]]]


@pytest.mark.parametrize("format", ["PNG", "GIF"])
def test_transparent_palette_entry_is_white(format):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1])
    assert decode(encoded(image, format, transparency=0)).tolist() == [[[255] * 3, [200, 100, 50]]]


def test_palette_with_an_alpha_for_each_entry():
    image = Image.new("P", (3, 1))
    image.putpalette([0, 0, 0, 0, 0, 0, 0, 0, 0])
    image.putdata([0, 1, 2])
    found = decode(encoded(image, transparency=bytes([0, 128, 255])))
    assert found[0, :, 0].tolist() == [255, 127, 0]


@pytest.mark.parametrize(("mode", "colour"), [("RGB", (0, 0, 0)), ("L", 0), ("1", 0)])
def test_a_colour_declared_transparent_is_white(mode, colour):
    assert (decode(encoded(Image.new(mode, (2, 2), colour), transparency=colour)) == 255).all()


@pytest.mark.parametrize(
    ("mode", "colour", "seen"),
    [
        ("RGBA", (255, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (255, 0, 0, 128), (255, 127, 127)),
        ("RGBA", (255, 0, 0, 255), (255, 0, 0)),
        ("LA", (0, 0), (255, 255, 255)),
        ("LA", (100, 255), (100, 100, 100)),
        ("L", 77, (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
        ("1", 0, (0, 0, 0)),
    ],
)
def test_alpha_on_white_and_grey(mode, colour, seen):
    assert decode(encoded(Image.new(mode, (3, 2), colour)))[1, 2].tolist() == list(seen)


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
@pytest.mark.parametrize(("cmyk", "seen"), [((0, 255, 255, 0), (255, 0, 0)), ((0, 0, 0, 255), (0, 0, 0))])
def test_cmyk_is_not_inverted(format, cmyk, seen):
    found = decode(encoded(Image.new("CMYK", (16, 16), cmyk), format))[8, 8]
    np.testing.assert_allclose(found, seen, atol=3)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bit_grey_keeps_its_top_byte(format):
    grey = np.array([[0, 0x00FF, 0x0100, 0x8000, 0xFFFF]], np.uint16)
    found = decode(encoded(Image.fromarray(grey), format))
    assert found[0].tolist() == [[v] * 3 for v in (0, 0, 1, 128, 255)]


@pytest.mark.parametrize("kind", [np.uint16, np.int32])
def test_integers_are_scaled_by_the_bits_that_they_use(kind):
    grey = np.tile(np.array([[0, 15, 16, 0x0800, 0x0FFF, 0x1000, 0xFFFF]], kind), (7, 1))
    image = upright(open_image(encoded(Image.fromarray(grey), "TIFF")))
    assert peak(image) == 0xFFFF
    found = fit(image, wants(8, 8, "nearest", mode="squash", bits=12))
    assert list(dict.fromkeys(found[0, 0].tolist())) == [0, 1, 128, 255]
    assert (found[0] == found[1]).all() and (found[0] == found[2]).all()
    # Of 8 bits a value stays as it is.
    small = upright(open_image(encoded(Image.fromarray(np.full((8, 8), 77, kind)), "TIFF")))
    assert (fit(small, wants(8, 8, bits=8)) == 77).all()


def test_a_deep_image_is_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    grey = (np.arange(6, dtype=np.uint16) << 8).reshape(2, 3)
    data = encoded(Image.fromarray(grey), exif=exif)
    np.testing.assert_array_equal(decode(data)[..., 0], np.rot90(grey >> 8, -1))


def test_bits_do_not_change_images_of_8_bits():
    image = upright(open_image(encoded(Image.fromarray(noise(8, 8)))))
    assert peak(image) == 0
    np.testing.assert_array_equal(fit(image, wants(8, 8, bits=9)), fit(image, wants(8, 8)))


def test_16_bit_grey_in_the_other_byte_order():
    image = Image.frombytes("I;16B", (2, 1), struct.pack(">HH", 0x8000, 0x1234))
    assert decode(encoded(image, "TIFF"))[0, :, 0].tolist() == [0x80, 0x12]


def test_32_bit_integers_in_16_bit_range():
    found = decode(encoded(Image.fromarray(np.array([[0, 0x8000, 0xFFFF]], np.int32)), "TIFF"))
    assert found[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("value", [-1, 0x10000])
def test_32_bit_integers_of_no_defined_range(value):
    with pytest.raises(UnreadableImage, match=f"{value}.*must be from 0 to 65535"):
        decode(encoded(Image.fromarray(np.array([[0, value]], np.int32)), "TIFF"))


def test_float_pixels_have_no_defined_range():
    with pytest.raises(UnreadableImage, match="floating-point"):
        decode(encoded(Image.fromarray(np.full((2, 2), 0.5, np.float32)), "TIFF"))


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_an_animation_the_first_frame(format):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert (decode(data) == [255, 0, 0]).all()


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "JPEG2000"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated(format, share):
    data = encoded(Image.fromarray(noise(64, 64)), format)
    decode(data)
    with pytest.raises(UnreadableImage) as caught:
        decode(data[: int(len(data) * share)])
    assert str(caught.value) and "\n" not in str(caught.value)


def test_truncated_progressive_jpeg():
    data = encoded(Image.fromarray(noise(64, 64)), "JPEG", progressive=True)
    with pytest.raises(UnreadableImage, match="truncated"):
        decode(data[: len(data) // 2])


def png(width, height, body=b""):
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + body


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"\0", "not an image"),
        (b"hello, this is no image\n" * 100, "not an image"),
        (b"\xff\xd8\xff", "not an image"),
        (b"\x89PNG\r\n\x1a\n" + b"\xff" * 100, "."),
        (png(4, 4, b"\0\0\0\x10IDATgarbage"), "."),
        (png(0, 4), "."),
        (b"GIF89a\0\0\0\0\0\0\0;", "."),
    ],
)
def test_files_that_are_no_images(data, reason):
    with pytest.raises(UnreadableImage, match=reason):
        decode(data)


@pytest.mark.filterwarnings("error")
def test_a_photo_of_108_megapixels_is_opened():
    with without_warnings():
        assert open_image(png(12_000, 9_000, b"\0\0\0\x10IDAT")).size == (12_000, 9_000)


@pytest.mark.parametrize("limit", [Image.MAX_IMAGE_PIXELS, None], ids=["where Pillow stops", "where Pillow does not"])
def test_too_many_pixels(limit, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    width = PIXELS // 16_384 + 1
    with pytest.raises(UnreadableImage, match=r"more than 178,956,970 pixels, too many .*: make it smaller"):
        open_image(png(width, 16_384, b"\0\0\0\x10IDAT"))


@pytest.fixture
def without_pillow_heif(monkeypatch):
    """As if pillow-heif were not installed."""
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    for known in (Image.OPEN, Image.SAVE):
        monkeypatch.delitem(known, "HEIF", raising=False)
    for cached in (images._readable, images.plugins):
        cached.cache_clear()
    yield
    for cached in (images._readable, images.plugins):
        cached.cache_clear()


def heic(image, **options):
    images._readable()  # which registers pillow-heif with Pillow
    return encoded(image, "HEIF", **options)


def test_heic_is_turned_upright_once():
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[:, :48] = (200, 30, 30)
    found = decode(heic(Image.fromarray(pixels), exif=exif.tobytes(), quality=-1))
    assert found.shape == (96, 64, 3)
    assert np.abs(found[:40].astype(int) - (200, 30, 30)).max() < 9 and found[56:].max() < 9


def test_heic_without_pillow_heif_says_what_to_install(request):
    data = heic(Image.fromarray(noise(64, 64)))
    request.getfixturevalue("without_pillow_heif")
    assert "pillow-heif" not in images.plugins()
    with pytest.raises(UnreadableImage, match="it is HEIC, which needs pillow-heif: pip install pillow-heif"):
        decode(data)
    with pytest.raises(UnreadableImage, match="not an image in a supported format: JPEG, PNG") as caught:
        decode(b"no image")
    assert "HEIF" not in str(caught.value)


@pytest.mark.parametrize("format", FORMATS)
def test_formats_that_are_read(format):
    pixels = noise(16, 16)
    images._readable()
    options = {"lossless": True} if format == "WEBP" else {}
    found = decode(encoded(Image.fromarray(pixels), format, **options))
    assert found.shape == (16, 16, 3)


def test_formats_that_start_another_program_are_not_read(monkeypatch):
    data = encoded(Image.new("RGB", (4, 4)), "EPS")
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was started"))
    with pytest.raises(UnreadableImage, match="not an image in a supported format: JPEG, PNG"):
        decode(data)


# Preparation


def test_an_image_of_the_right_size_is_only_transposed():
    pixels = noise(16, 16)
    found = prepare(pixels, wants(16, 16))
    assert found.dtype == np.uint8 and found.flags.c_contiguous
    np.testing.assert_array_equal(found, pixels.transpose(2, 0, 1))


@pytest.mark.parametrize("turned", [False, True], ids=["wide", "tall"])
def test_the_middle_is_kept(turned):
    pixels = noise(8, 20)
    if turned:
        pixels = pixels.transpose(1, 0, 2)
    found = prepare(np.ascontiguousarray(pixels), wants(8, 8)).transpose(1, 2, 0)
    np.testing.assert_array_equal(found, pixels[6:14] if turned else pixels[:, 6:14])


def test_the_short_side_is_resized_with_the_aspect_kept():
    pixels = noise(40, 90)
    resized = Image.fromarray(pixels).resize((45, 20), Image.Resampling.LANCZOS)
    expected = np.asarray(resized)[2:18, 14:30].transpose(2, 0, 1)
    np.testing.assert_array_equal(prepare(pixels, wants(16, 20, "lanczos")), expected)


def test_every_interpolation_gives_other_pixels():
    pixels = noise(40, 40)
    kinds = ("nearest", "bilinear", "bicubic", "lanczos")
    assert len({prepare(pixels, wants(16, 20, kind)).tobytes() for kind in kinds}) == 4


def test_a_smaller_image_is_enlarged():
    found = prepare(np.full((3, 5, 3), 90, np.uint8), wants(32, 40))
    assert found.shape == (3, 32, 32) and (found == 90).all()


@pytest.mark.parametrize("shape", [(1, 60_000, 3), (60_000, 1, 3)])
def test_an_image_of_one_line_is_cropped_before_it_is_resized(shape):
    start = time.perf_counter()
    found = prepare(np.full(shape, 90, np.uint8), wants(224, 256))
    assert (found == 90).all() and time.perf_counter() - start < 1


@pytest.mark.parametrize("turned", [False, True], ids=["wide", "tall"])
@pytest.mark.parametrize("mode", ["squash", "pad"])
def test_squash_and_pad_keep_the_ends_of_an_image(mode, turned):
    pixels = np.full((20, 60, 3), 90, np.uint8)
    pixels[:, :6], pixels[:, -6:] = 250, 10
    found = prepare(
        np.ascontiguousarray(pixels.transpose(1, 0, 2)) if turned else pixels, wants(30, 30, "nearest", mode=mode)
    )
    found = found.transpose(0, 2, 1) if turned else found
    rows = found[:, 10:20] if mode == "pad" else found
    assert (rows[:, :, :3] == 250).all() and (rows[:, :, -3:] == 10).all() and (rows[:, :, 4:-4] == 90).all()


def test_a_square_is_filled_with_the_mean_colour():
    found = prepare(np.full((20, 60, 3), 90, np.uint8), wants(30, 30, mode="pad", mean=(0.1, 0.5, 1.0)))
    for rows in (slice(0, 10), slice(20, 30)):
        assert (found[:, rows] == np.array([26, 128, 255])[:, None, None]).all()
    assert (found[:, 10:20] == 90).all()


@pytest.mark.parametrize("mode", ["squash", "pad"])
def test_a_share_of_a_squashed_or_padded_image_may_be_cropped(mode):
    pixels = noise(40, 40)
    np.testing.assert_array_equal(prepare(pixels, wants(16, 20, mode=mode)), prepare(pixels, wants(16, 20)))


@pytest.mark.parametrize("mode", ["squash", "pad"])
def test_an_image_of_one_line_is_squashed_or_padded_quickly(mode):
    hair = np.full((1, 60_000, 3), 90, np.uint8)
    hair[:, :30_000] = 250
    start = time.perf_counter()
    found = prepare(hair, wants(224, 224, "nearest", mode=mode))
    assert time.perf_counter() - start < 1
    seen = found[:, found.shape[1] // 2 - 1 : found.shape[1] // 2 + 1].reshape(3, -1)
    assert {90, 250} <= set(seen.ravel().tolist())
