"""Decoding an image file to upright RGB pixels, and preparing these for a backbone.

Choices that the file leaves open are made here: transparent pixels become white, of an animation the first frame is
used. Colour profiles are ignored, also for CMYK. Grey images of more than 8 bits keep their values until they are
prepared; the `Input` sets how many of their bits count.

JPEGs are always decoded in full. Scaled decoding (Pillow's `draft`) would halve the time for large photos,
but its pixels depend on the requested size, and every user of an exported model would have to repeat it.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import version

import numpy as np
from PIL import Image, UnidentifiedImageError

from autotl.errors import one_line
from autotl.plan import BITS, Input, Interpolation

DECODER = 1
"""Incremented when the same bytes give other pixels than before."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO", "TGA", "HEIF")
"""The formats that are read, under any file name. Not all of Pillow's: EPS would start Ghostscript."""

PIXELS = 2 * 89_478_485
"""The most pixels that an image may have: twice Pillow's limit, above which Pillow opens none."""

_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
"""Brands of HEIF files that Pillow cannot read without pillow-heif."""

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_RESAMPLING: dict[Interpolation, Image.Resampling] = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_LONGEST = 4
"""A crop uses at most this many short sides of the long side: an image of 60,000 x 1 px must not be scaled up."""


_TOO_MANY = f"it has more than {PIXELS:,} pixels, too many to decode safely: make it smaller"
_NEEDS_PILLOW_HEIF = "it is HEIC, which needs pillow-heif: pip install pillow-heif"


class UnreadableImage(Exception):
    """A file that gives no pixels; the message is the reason."""


def decode(data: bytes) -> np.ndarray:
    """The pixels of an image file, [H, W, 3] uint8, upright.

    Raises: UnreadableImage.
    """
    return np.asarray(in_bytes(upright(open_image(data)), BITS))


def prepare(rgb: np.ndarray, input: Input) -> np.ndarray:
    """[H, W, 3] uint8 → [3, S, S] uint8."""
    return fit(Image.fromarray(rgb), input)


def open_image(data: bytes) -> Image.Image:
    """The image with its header read and no pixels decoded yet.

    Raises: UnreadableImage.
    """
    if not data:
        raise UnreadableImage("the file is empty")
    with _one_kind_of_error():
        try:
            image = Image.open(io.BytesIO(data), formats=_readable())
        except Image.DecompressionBombError:
            raise UnreadableImage(_TOO_MANY) from None
        except UnidentifiedImageError:
            if data[4:8] == b"ftyp" and data[8:12] in _HEIC and "HEIF" not in _readable():
                raise UnreadableImage(_NEEDS_PILLOW_HEIF) from None
            raise
        if not image.width * image.height:
            raise UnreadableImage(f"it is {image.width} x {image.height} pixels")
        if image.width * image.height > PIXELS:
            raise UnreadableImage(_TOO_MANY)
    return image


@contextmanager
def without_warnings() -> Iterator[None]:
    """Suppresses Pillow's warnings: errors in a file are reported as its problem."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def upright(image: Image.Image) -> Image.Image:
    """The opened image decoded and turned by its EXIF orientation, in mode RGB, or I if it has more bits.

    Raises: UnreadableImage.
    """
    with _one_kind_of_error():
        image.load()
        turn = _UPRIGHT.get(_orientation(image))
        image = _rgb(image)
        return image if turn is None else image.transpose(turn)


def is_deep(image: Image.Image) -> bool:
    """Whether an opened image is grey with integers of more than 8 bits."""
    return image.mode.startswith("I")


def peak(image: Image.Image) -> int:
    """The largest value of an upright image for which `is_deep`; 0 for other images."""
    return int(np.asarray(image).max()) if is_deep(image) else 0


def depth(peak: int) -> int:
    """How many bits the values up to this peak use, at least 8."""
    return max(8, peak.bit_length())


def in_bytes(image: Image.Image, bits: int) -> Image.Image:
    """An upright image in mode RGB; integers are reduced to the upper 8 of `bits` bits."""
    if not is_deep(image):
        return image
    return Image.fromarray((np.asarray(image) >> (bits - 8)).clip(max=255).astype(np.uint8)).convert("RGB")


def fit(image: Image.Image, input: Input) -> np.ndarray:
    """An upright image → [3, S, S] uint8."""
    image = in_bytes(image, input.bits)
    if input.mode == "crop":
        short = min(image.size)
        image = _middle(image, min(image.width, _LONGEST * short), min(image.height, _LONGEST * short))
    image = image.resize(_sides(image, input), _RESAMPLING[input.interpolation])
    if input.mode == "pad":
        image = _on_a_square(image, input)
    middle = _middle(image, input.size, input.size)
    return np.ascontiguousarray(np.asarray(middle).transpose(2, 0, 1))


def _sides(image: Image.Image, input: Input) -> tuple[int, int]:
    """The width and height that the image is resized to."""
    if input.mode == "squash":
        return input.resize, input.resize
    measure = min(image.size) if input.mode == "crop" else max(image.size)
    return max(1, input.resize * image.width // measure), max(1, input.resize * image.height // measure)


def _on_a_square(image: Image.Image, input: Input) -> Image.Image:
    red, green, blue = (round(255 * mean) for mean in input.mean)
    square = Image.new("RGB", (input.resize, input.resize), (red, green, blue))
    square.paste(image, ((input.resize - image.width) // 2, (input.resize - image.height) // 2))
    return square


@cache
def _readable() -> list[str]:
    """Those of `FORMATS` that the installed Pillow knows, HEIF by pillow-heif."""
    with suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


@cache
def plugins() -> dict[str, str]:
    """Decoders besides Pillow, with their versions."""
    return {"pillow-heif": version("pillow-heif")} if "HEIF" in _readable() else {}


def _middle(image: Image.Image, width: int, height: int) -> Image.Image:
    if (width, height) == image.size:
        return image
    # Rounded half to even, as in torchvision's CenterCrop.
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode == "F":
        raise UnreadableImage("its pixels are floating-point numbers without a defined range")
    if is_deep(image):
        return Image.fromarray(_integers(np.asarray(image)))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _integers(grey: np.ndarray) -> np.ndarray:
    """[H, W] integers of any type → int32, from 0 to 65535."""
    low, high = int(grey.min()), int(grey.max())
    if low < 0 or high > 0xFFFF:
        raise UnreadableImage(f"its values go from {low} to {high}; integers must be from 0 to 65535")
    return grey.astype(np.int32)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # Broken metadata does not make the pixels unreadable.
        return 1


@contextmanager
def _one_kind_of_error() -> Iterator[None]:
    """Turns the errors of Pillow's readers, which are of any kind for a damaged file, into UnreadableImage."""
    try:
        yield
    except (UnreadableImage, MemoryError):
        raise
    except UnidentifiedImageError:
        raise UnreadableImage(f"not an image in a supported format: {', '.join(_readable())}") from None
    except Exception as error:
        raise UnreadableImage(one_line(f"{type(error).__name__}: {error}")) from error
