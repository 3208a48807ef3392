"""The shapes of a data set's images (size, aspect ratio, bit depth), which their preparation depends on."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from autotl.contracts import Shapes
from autotl.data import images
from autotl.data.images import UnreadableImage
from autotl.data.listing import Listing
from autotl.data.pixels import read_file
from autotl.plan import BITS

SAMPLE = 100
"""How many files, spread over the list, are read to estimate the shapes."""


def shapes_of(sizes: Sequence[tuple[int, int]], peaks: Sequence[int]) -> Shapes:
    """The shapes of images from their widths and heights and their `images.peak`."""
    short, long = np.sort(np.array(sizes), axis=1).T
    highest = max(peaks)
    return Shapes(
        image_size=int(np.median(short)),
        cut_away=float(np.median(1 - short / long)),
        bits=images.depth(highest) if highest else BITS,
    )


def expected(listing: Listing) -> Shapes:
    """The likely shapes of the train images, before all files have been read."""
    files = [listing.root / file.path for file in listing.files if file.split == "train"]
    seen = list(_measured(files[:: max(1, len(files) // SAMPLE)][:SAMPLE]))
    return shapes_of([size for size, _ in seen], [peak for _, peak in seen]) if seen else Shapes(image_size=0)


def _measured(paths: Sequence[Path]) -> Iterator[tuple[tuple[int, int], int]]:
    """Width, height and peak of the readable images, from their headers if possible."""
    for path in paths:
        try:
            image = images.open_image(read_file(path))
            yield image.size, images.peak(images.upright(image)) if images.is_deep(image) else 0
        except UnreadableImage:
            continue
