"""Turns an image file into the model's input according to preprocessing.json. Needs only Pillow and NumPy.

Decoding: the first frame, rotated according to its EXIF orientation, in RGB, with transparent pixels on white. Grey
integers of `bits` bits (default 16) are scaled to 8 bits, and larger values are clipped. `mode` is how the image
becomes square. `crop` (default): the long side is cropped to at most four times the short side, and the short side is
resized to `resize` px. `squash`: both sides are resized. `pad`: the long side is resized, and the rest of a square gets
the colour `mean`. Then the centre `size` x `size` px are kept. The model itself casts to floating point and normalises.
A model with several inputs has a list of such settings, one for each.
"""

import json
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

try:
    from pillow_heif import register_heif_opener
except ImportError:  # only HEIC needs it
    HEIF = False
else:
    HEIF = True
    register_heif_opener()

SPEC = json.loads(Path(__file__).with_name("preprocessing.json").read_text(encoding="utf-8"))
SPECS = SPEC if isinstance(SPEC, list) else [SPEC]
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO", "TGA", "HEIF")
# EPS is not read: decoding it starts other programs.
PIXELS = 2 * 89_478_485  # a small file may decode to more pixels than fit into memory
TOO_MANY = f"it has too many pixels to be safe, more than {PIXELS:,}: make it smaller"
LITTER = (
    *("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "picasa.ini", "icon\r"),
    *("__macosx", "__pycache__", "$recycle.bin", "system volume information", "@eadir", "#recycle", "lost+found"),
    *(".ds_store", ".ipynb_checkpoints"),
)
LITTER_BEGINS = ("._", "~$")
LITTER_ENDS = (":zone.identifier",)
LONGEST = 4
HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def prepare(file: str | Path) -> np.ndarray:
    """An image file → [3, size, size] uint8, for a model with one input."""
    (image,) = inputs(file)
    return image


def inputs(file: str | Path) -> list[np.ndarray]:
    """An image file → each input of the model, [3, size, size] uint8."""
    if os.path.exists(file) and not os.path.isfile(file):
        raise ValueError("not a regular file")  # a pipe would wait for a writer
    with _opened(file) as image:
        image.load()
        turn = TURNS.get(_orientation(image))
        return [_prepared(image, turn, spec) for spec in SPECS]


def _prepared(image: Image.Image, turn: Image.Transpose | None, spec: dict) -> np.ndarray:
    pixels = _rgb(image, spec)
    if turn is not None:
        pixels = pixels.transpose(turn)
    pixels = _middle(_resized(pixels, spec), spec["size"], spec["size"])
    return np.ascontiguousarray(np.asarray(pixels).transpose(2, 0, 1))


def files_in(paths: Iterable[str]) -> list[str]:
    """The files named, and all files in the folders named, sorted; without litter and, in folders, hidden files.

    Litter is files that systems and programs leave beside images.
    """
    files = []
    for path in paths:
        if os.path.isdir(path):
            files += sorted(_below(path), key=Path)
        elif not _is_litter(os.path.basename(path)):
            files.append(path)
    return files


def _below(folder: str) -> Iterator[str]:
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and not _is_litter(name)]
        yield from (os.path.join(place, name) for name in names if not name.startswith(".") and not _is_litter(name))


def _is_litter(name: str) -> bool:
    """Whether it is a file that a system or a program leaves beside a user's files."""
    name = name.casefold()
    return name in LITTER or name.startswith(LITTER_BEGINS) or name.endswith(LITTER_ENDS)


def readable(files: Iterable[str]) -> Iterator[tuple[str, list[np.ndarray]]]:
    """Printable names of image files with the model's inputs; unreadable files are listed on stderr and skipped."""
    for file in files:
        try:
            yield printable(file), inputs(file)
        except Exception as error:  # Pillow's readers raise almost anything for a damaged file
            print(f"{printable(file)}: {printable(str(error))}", file=sys.stderr)


def printable(text: str) -> str:
    """The text with escapes for characters that control a terminal, separate columns or are not printable."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def _opened(file: str | Path) -> Image.Image:
    Image.init()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])
    except Image.DecompressionBombError:
        raise ValueError(TOO_MANY) from None
    except UnidentifiedImageError:
        with open(file, "rb") as content:
            start = content.read(12)
        if start[4:8] == b"ftyp" and start[8:12] in HEIC and not HEIF:
            raise ValueError("it is HEIC, which pillow-heif reads: pip install pillow-heif") from None
        raise
    if image.width * image.height > PIXELS:
        raise ValueError(TOO_MANY)
    return image


def _resized(image: Image.Image, spec: dict) -> Image.Image:
    mode, resize = spec.get("mode", "crop"), spec["resize"]
    if mode == "crop":
        short = min(image.size)
        image = _middle(image, min(image.width, LONGEST * short), min(image.height, LONGEST * short))
    measure = min(image.size) if mode == "crop" else max(image.size)
    sides = (resize, resize) if mode == "squash" else [max(1, resize * side // measure) for side in image.size]
    image = image.resize(tuple(sides), Image.Resampling[spec["interpolation"].upper()])
    if mode != "pad":
        return image
    square = Image.new("RGB", (resize, resize), tuple(round(255 * mean) for mean in spec["mean"]))
    square.paste(image, ((resize - image.width) // 2, (resize - image.height) // 2))
    return square


def _rgb(image: Image.Image, spec: dict) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point pixels have no defined range")
    if image.mode.startswith("I"):
        grey = np.asarray(image)
        if grey.min() < 0 or grey.max() > 0xFFFF:
            raise ValueError("of integers only 0 to 65535 are defined")
        bytes_ = (grey.astype(np.int32) >> (spec.get("bits", 16) - 8)).clip(max=255).astype(np.uint8)
        return Image.fromarray(bytes_).convert("RGB")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # broken metadata does not make the pixels unreadable
        return 1


def _middle(image: Image.Image, width: int, height: int) -> Image.Image:
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))
