"""Damages images in many ways and reads each as a search does: python tests/campaigns/damaged_images.py --images 4000.

An image must be read, or be excluded with a reason in one line. The last line counts the outcomes, and the exit code
is 1 if any image caused a crash. The script of an export reads the same files, and must give the same pixels of those
that are read. It is not part of `make test`.
"""

import argparse
import collections
import io
import json
import random
import runpy
import shutil
import struct
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from autotl.data.images import FORMATS
from autotl.data.pixels import PixelStore
from autotl.export.export import STANDALONE
from autotl.plan import Input

INPUT = Input(size=32, resize=36, interpolation="bicubic", mean=(0.5,) * 3, std=(0.25,) * 3)
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "I;16", "F")
OTHERS = ("EPS", "PDF", "PCX", "SGI", "DDS", "ICNS", "XBM", "MSP", "IM", "QOI", "SPIDER")
"""Formats that are not read, but may be in a folder of images under any name."""
TOGETHER = 200
"""Number of images that one process reads."""
SLOW = 20.0
"""An image that takes longer than this, in seconds, counts as a crash: the search would seem to hang."""


def sound(draw: random.Random) -> tuple[bytes, str]:
    """An image of a random size, mode and format, as bytes with the name of its format."""
    while True:
        mode, form = draw.choice(MODES), draw.choice(FORMATS if draw.random() < 0.8 else OTHERS)
        width, height = draw.choice([(1, 1), (1, 300), (7, 5), (32, 32), (60, 40), (200, 150)])
        noise = np.random.default_rng(draw.randrange(2**32)).integers(0, 256, (height, width, 3), dtype=np.uint8)
        options: dict[str, object] = {}
        if draw.random() < 0.2:
            exif = Image.Exif()
            exif[0x0112] = draw.randrange(12)
            options["exif"] = exif
        if form in ("GIF", "PNG", "WEBP", "TIFF") and draw.random() < 0.2:
            options |= {"save_all": True, "append_images": [Image.new("RGB", (width, height))]}
        if form == "TIFF":
            options["compression"] = draw.choice(["raw", "tiff_lzw", "tiff_deflate", "packbits", "jpeg", "group4"])
        if form == "JPEG":
            options["progressive"] = draw.random() < 0.5
        file = io.BytesIO()
        try:
            converted = Image.fromarray(noise) if mode == "RGB" else Image.fromarray(noise).convert("L").convert(mode)
            converted.save(file, form, **options)
        except Exception:  # this format has no such mode: try another one
            continue
        return file.getvalue(), form


def flip_bytes(draw: random.Random, data: bytearray, within: int | None = None) -> bytearray:
    """A few bytes are changed, anywhere or among the first."""
    for _ in range(draw.choice([1, 1, 2, 5, 20, 100])):
        data[draw.randrange(min(len(data), within or len(data)))] = draw.randrange(256)
    return data


def large_numbers(draw: random.Random, data: bytearray) -> bytearray:
    """A number of the header is changed, so that the image may have more pixels than fit in memory."""
    number = draw.choice([0, 1, 0x7FFF, 0xFFFF, 20_000, 100_000, 0x7FFFFFFF, 0xFFFFFFFF])
    at = draw.randrange(max(1, min(len(data) - 4, 64)))
    data[at : at + 4] = struct.pack(draw.choice(["<I", ">I"]), number)
    return data


def move_part(draw: random.Random, data: bytearray) -> bytearray:
    """A part is removed, doubled or set to zero."""
    start = draw.randrange(len(data))
    end = draw.randint(start, min(len(data), start + draw.choice([1, 4, 64, 4096])))
    part = data[start:end]
    return data[:start] + draw.choice([bytearray(), part + part, bytearray(len(part))]) + data[end:]


Damage = Callable[[random.Random, bytearray], bytearray]
DAMAGES: dict[str, Damage] = {
    "none": lambda draw, data: data,
    "truncated": lambda draw, data: data[: draw.randrange(len(data))],
    "a few bytes kept": lambda draw, data: data[: draw.randrange(32)],
    "bytes flipped": flip_bytes,
    "header flipped": partial(flip_bytes, within=64),
    "large numbers": large_numbers,
    "part moved": move_part,
    "tail of another": lambda draw, data: data[: draw.randrange(len(data))] + bytearray(sound(draw)[0]),
    "in front of another": lambda draw, data: bytearray(sound(draw)[0])[: draw.randrange(64)] + data,
    "text": lambda draw, data: bytearray(draw.choice([b"<svg/>", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"%PDF-1.7\n", b"\0"])),
    "noise": lambda draw, data: data[: draw.randrange(16)] + bytearray(draw.randbytes(draw.randrange(4096))),
}


def write_images(folder: Path, count: int, seed: int) -> Iterator[tuple[Path, str]]:
    """Damaged images with the kind of damage; the same for the same seed."""
    draw = random.Random(seed)
    for number in range(count):
        data, form = sound(draw)
        kind = draw.choice(list(DAMAGES))
        damaged = DAMAGES[kind](draw, bytearray(data))
        suffix = draw.choice([form, form, form, "jpg", "png", "tif", "eps", "", "txt"]).lower()
        file = folder / f"{number}-{kind.replace(' ', '_')}.{suffix}"
        file.write_bytes(damaged)
        yield file, kind


def read(files: list[Path], folder: Path) -> list[tuple[str, str]]:
    """The outcome for each file, `read`, `excluded` or `crashed`, with the reason."""
    warnings.simplefilter("ignore")
    store = PixelStore(folder / "cache")
    script = runpy.run_path(str(folder / "preprocess.py"))["prepare"]
    outcomes = []
    for file in files:
        began = time.monotonic()
        try:
            (seen,) = store.look([file], [INPUT])
            if isinstance(seen, str):
                outcome = ("crashed", f"a reason of two lines: {seen!r}") if "\n" in seen else ("excluded", seen)
            elif np.array_equal(script(file), store.read(INPUT, [seen.sha])[0]):
                outcome = "read", ""
            else:
                outcome = "crashed", "the script beside an export gives other pixels"
        except BaseException as error:
            outcome = "crashed", f"{type(error).__name__}: {error}"
        took = time.monotonic() - began
        outcomes.append(outcome if took < SLOW else ("crashed", f"it took {took:.0f} s"))
    return outcomes


def survive(files: list[Path], folder: Path) -> list[tuple[str, str]]:
    """`read` in a process of its own; if it dies, its images are read one by one to find the cause."""
    try:
        with ProcessPoolExecutor(max_workers=1) as pool:
            return pool.submit(read, files, folder).result()
    except BrokenProcessPool:
        if len(files) == 1:
            return [("crashed", "the process died")]
        return [outcome for file in files for outcome in survive([file], folder)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4000, help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="other seeds damage other images (default: %(default)s)")
    parser.add_argument("--keep", type=Path, help="a folder for the images that crashed")
    options = parser.parse_args()
    counts: collections.Counter[str] = collections.Counter()
    kinds: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        shutil.copyfile(STANDALONE / "preprocess.py", folder / "preprocess.py")
        (folder / "preprocessing.json").write_text(json.dumps(INPUT.model_dump(mode="json")))
        images = list(write_images(folder, options.images, options.seed))
        for start in range(0, len(images), TOGETHER):
            some = images[start : start + TOGETHER]
            for (file, kind), (outcome, why) in zip(some, survive([file for file, _ in some], folder), strict=True):
                counts[outcome] += 1
                kinds[kind][outcome] += 1
                if outcome == "crashed":
                    print(f"crashed: {file.name}: {why}")
                    if options.keep:
                        options.keep.mkdir(parents=True, exist_ok=True)
                        shutil.copy(file, options.keep)
    for kind, found in sorted(kinds.items()):
        print(f"{kind:<20} {found['read']:>5} read {found['excluded']:>5} excluded {found['crashed']:>3} crashed")
    print(f"{'all':<20} {counts['read']:>5} read {counts['excluded']:>5} excluded {counts['crashed']:>3} crashed")
    return 1 if counts["crashed"] else 0


if __name__ == "__main__":
    sys.exit(main())
