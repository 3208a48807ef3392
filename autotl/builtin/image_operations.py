"""The operations of the built-in augmentations, with a separate amount for each image of a batch.

An operation takes images [N, 3, S, S] uint8 and amounts [N] float32 and returns new images. The operations are those of
torchvision (`transforms.v2.functional`), which has only one amount per batch. An amount of 0 changes nothing;
autocontrast and equalize ignore it.

The result for an image is bit-identical regardless of the other images in the batch. So sums over pixels are sums of
integers, which do not depend on the order, and there are no matrix products.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from autotl import Draw


def flip(images: Tensor, draw: Draw) -> Tensor:
    """Mirror an image left to right, or not, with equal chances."""
    (chance,) = draw(1).unbind(1)
    return torch.where(_pixelwise(chance < 0.5), images.flip(3), images)


def flip_rotate_zoom(images: Tensor, draw: Draw, degrees: float, zoom: float) -> Tensor:
    """Mirror, rotate by up to `degrees` in either direction, and zoom about the centre, all in one interpolation.

    Between 1 - zoom and 1 + zoom of an image's side are visible; beyond its edges the image is mirrored.
    """
    chance, turn, seen = draw(3).unbind(1)
    mirror = _planewise(torch.where(chance < 0.5, -1.0, 1.0))
    angle = math.radians(degrees) * (2 * turn - 1)
    seen = 1 + zoom * (2 * seen - 1)
    cos, sin = _planewise(seen * angle.cos()), _planewise(seen * angle.sin())
    x, y = _places(images)
    return _read(images, mirror * (x * cos - y * sin), x * sin + y * cos, outside="reflection")


def basic(
    images: Tensor,
    draw: Draw,
    *,
    mirror: bool = False,
    upside_down: bool = False,
    quarter_turns: bool = False,
    degrees: float = 0.0,
    min_area: float = 1.0,
    shift: float = 0.0,
    colour: float = 0.0,
    erasing: float = 0.0,
) -> Tensor:
    """The classic operations one after another, those that move pixels in one interpolation.

    Half of the images are mirrored left to right (`mirror`), and half top to bottom (`upside_down`). All are rotated by
    0, 90, 180 or 270 degrees (`quarter_turns`) and by up to `degrees`, cropped to at least `min_area` of their area,
    and shifted by up to `shift` of their side; beyond its edges an image is mirrored. Brightness, contrast and
    saturation change by up to `colour`. A rectangle is erased from a share `erasing` of the images.
    """
    flips, turns, area, aspect, places, shifts, colours, erased = draw(18).split((2, 2, 1, 1, 2, 2, 3, 5), 1)
    chances = (0.5 * mirror, 0.5 * upside_down)
    signs = torch.stack([torch.where(flips[:, at] < chance, -1.0, 1.0) for at, chance in enumerate(chances)], 1)
    quarter = (4 * turns[:, 0]).floor() * (math.pi / 2 * quarter_turns)
    angle = quarter + math.radians(degrees) * (2 * turns[:, 1] - 1)
    seen = _sides(min_area + (1 - min_area) * area, (min_area < 1) * CROP_ASPECT, aspect)
    centre = (1 - seen) * (2 * places - 1) + 2 * shift * (2 * shifts - 1)
    if mirror or upside_down or quarter_turns or degrees or shift or min_area < 1:
        cos, sin, (x, y) = _planewise(angle.cos()), _planewise(angle.sin()), _places(images)
        across, down = (_planewise(part) for part in (signs * seen).unbind(1))
        right, below = (_planewise(part) for part in centre.unbind(1))
        x, y = right + cos * across * x - sin * down * y, below + sin * across * x + cos * down * y
        images = _read(images, x, y, outside="reflection")
    if colour:
        for change, amounts in zip((brightness, contrast, saturation), colours.unbind(1), strict=True):
            images = change(images, colour * (2 * amounts - 1))
    return erase(images, erased, erasing) if erasing else images


def quarter_turn(images: Tensor, draw: Draw) -> Tensor:
    """By 90 degrees, to the left or to the right with equal chances."""
    (chance,) = draw(1).unbind(1)
    return torch.where(_pixelwise(chance < 0.5), images.rot90(1, (2, 3)), images.rot90(3, (2, 3)))


CROP_ASPECT = math.log(4 / 3)
"""The logarithm of a crop's largest ratio of width to height (Szegedy et al. 2015, arXiv 1409.4842)."""
ERASED_AREA = (0.02, 0.4)
ERASED_ASPECT = math.log(1 / 0.3)
"""Those of Zhong et al. 2020, arXiv 1708.04896."""


def erase(images: Tensor, draws: Tensor, probability: float) -> Tensor:
    """Give a rectangle of an image its mean colour, with this probability. draws: [N, 5] in [0, 1)."""
    chance, area, aspect, place = draws.split((1, 1, 1, 2), 1)
    least, most = ERASED_AREA
    sides = _sides(least + (most - least) * area, ERASED_ASPECT, aspect)
    low = (1 - sides) * (2 * place - 1) - sides  # in the coordinates of `_places`
    high = low + 2 * sides
    inside = _pixelwise(chance[:, 0] < probability)
    for at, where in enumerate(_places(images)):
        inside = inside & ((where >= _pixelwise(low[:, at])) & (where < _pixelwise(high[:, at])))
    mean = images.int().sum((2, 3), keepdim=True) // images.shape[-1] ** 2
    return torch.where(inside, mean.to(torch.uint8), images)


def _sides(area: Tensor, spread: float, aspect: Tensor) -> Tensor:
    """Width and height, [N, 2], of rectangles as shares of the side: at most 1.

    area: [N, 1], shares. aspect: [N, 1] in [0, 1), for logarithms of width to height between -spread and spread.
    """
    ratio = (spread * (2 * aspect - 1)).exp()
    return (area * torch.cat([ratio, 1 / ratio], 1)).sqrt().clamp(max=1)


def randaugment(images: Tensor, draw: Draw, operations: int, magnitude: float) -> Tensor:
    """Several operations in sequence, all of the same strength; magnitude: from 0 to 10, the strongest."""
    which, sign = draw(2 * operations).view(len(images), operations, 2).unbind(2)
    return _operate(images, which, magnitude / 10 * _column("randaugment", images.device), sign)


def trivialaugment(images: Tensor, draw: Draw, strength: float) -> Tensor:
    """One operation of random strength; strength: the share of the wide space that is used, up to 1."""
    which, share, sign = draw(3).split(1, 1)
    return _operate(images, which, strength * share * _column("trivialaugment", images.device), sign)


@cache
def _column(name: str, device: torch.device) -> Tensor:
    """A column of `OPERATIONS`, [their number], copied once: a copy per batch would wait for the device."""
    with torch.inference_mode(False):
        return torch.tensor([getattr(operation, name) for operation in OPERATIONS], device=device)


def _operate(images: Tensor, which: Tensor, amounts: Tensor, sign: Tensor) -> Tensor:
    """Apply to each image some of `OPERATIONS` in sequence.

    which, sign: [N, K] in [0, 1), for K operations. amounts: the amount of every operation, [number of operations] or
    [N, that number].
    """
    chosen = (which * len(OPERATIONS)).long()
    amounts = amounts.expand(len(images), -1).gather(1, chosen)
    amounts = torch.where(_column("signed", images.device)[chosen] & (sign < 0.5), -amounts, amounts)
    # The only time that the host waits for the device.
    counts = F.one_hot(chosen, len(OPERATIONS)).sum(0).tolist()
    for step, order in enumerate(chosen.argsort(dim=0, stable=True).unbind(1)):
        result = images.clone()
        for operation, group in zip(OPERATIONS, order.split(counts[step]), strict=True):
            if len(group):
                result[group] = operation.change(images[group], amounts[group, step])
        images = result
    return images


def identity(images: Tensor, _: Tensor) -> Tensor:
    return images


def shear_x(images: Tensor, amounts: Tensor) -> Tensor:
    """Rows are shifted to the left, each by amount times its distance from the top."""
    x, y = _places(images)
    return _read(images, x + _planewise(amounts) * (y + 1), y)


def shear_y(images: Tensor, amounts: Tensor) -> Tensor:
    """Columns are shifted up, each by amount times its distance from the left."""
    x, y = _places(images)
    return _read(images, x, y + _planewise(amounts) * (x + 1))


def translate_x(images: Tensor, shares: Tensor) -> Tensor:
    """To the right by a share of the side, in whole pixels."""
    x, y = _places(images)
    return _read(images, x - _whole_pixels(shares, images), y)


def translate_y(images: Tensor, shares: Tensor) -> Tensor:
    """Downwards by a share of the side, in whole pixels."""
    x, y = _places(images)
    return _read(images, x, y - _whole_pixels(shares, images))


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Counter-clockwise about the centre."""
    angle = degrees * (math.pi / 180)
    cos, sin = _planewise(angle.cos()), _planewise(angle.sin())
    x, y = _places(images)
    return _read(images, x * cos - y * sin, x * sin + y * cos)


def brightness(images: Tensor, amounts: Tensor) -> Tensor:
    """-1 makes an image black."""
    return _away_from(0, images, amounts)


def saturation(images: Tensor, amounts: Tensor) -> Tensor:
    """-1 makes an image grey."""
    return _away_from(_grey(images), images, amounts)


def contrast(images: Tensor, amounts: Tensor) -> Tensor:
    """-1 gives every pixel the image's mean grey."""
    mean = _grey(images).int().sum((1, 2, 3), keepdim=True) / images.shape[-1] ** 2
    return _away_from(mean, images, amounts)


def sharpness(images: Tensor, amounts: Tensor) -> Tensor:
    """-1 smooths an image, except its outermost pixels."""
    if images.shape[-1] < 3:
        return images
    whole = images.short()
    inner = whole[..., 1:-1, 1:-1]
    threes = whole[..., :-2, :] + whole[..., 1:-1, :] + whole[..., 2:, :]
    nines = threes[..., :-2] + threes[..., 1:-1] + threes[..., 2:]
    smooth = ((nines + 4 * inner) / 13).round()  # Pillow's kernel: 5 in the middle, 1 around it
    result = images.clone()
    result[..., 1:-1, 1:-1] = _away_from(smooth, inner, amounts)
    return result


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """The lowest bits of each value become 0."""
    dropped = _pixelwise(bits.round().to(torch.uint8))
    return (images >> dropped) << dropped


def solarize(images: Tensor, levels: Tensor) -> Tensor:
    """Values in the highest levels, as many of the 256 as the amount says, are inverted."""
    return torch.where(images >= _pixelwise(256 - levels), 255 - images, images)


def autocontrast(images: Tensor, _: Tensor) -> Tensor:
    """Each channel is stretched to the whole range; one of a single value stays as it is."""
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    stretched = (images - low) * 255.0 / (high - low).clamp(min=1)
    return torch.where(high > low, stretched.to(torch.uint8), images)


def equalize(images: Tensor, _: Tensor) -> Tensor:
    """Each channel's values are spread so that its histogram is flat, by Pillow's rule."""
    levels = images.flatten(2).flatten(0, 1).long()
    offsets = torch.arange(0, 256 * len(levels), 256, device=images.device)[:, None]
    # A bincount would wait for a GPU; so would a sum in two dimensions, because torch is in its deterministic mode.
    places = (levels + offsets).flatten()
    counts = places.new_zeros(256 * len(levels)).scatter_add_(0, places, torch.ones_like(places)).view(-1, 256)
    below = counts.cumsum(1) - counts
    step = (below * (counts > 0)).amax(1, keepdim=True) // 255
    spread = ((below + step // 2) // step.clamp(min=1)).clamp(max=255)
    table = torch.where(step > 0, spread, torch.arange(256, device=images.device))
    return table.to(torch.uint8).gather(1, levels).view_as(images)


class Operation(NamedTuple):
    """An operation and its largest amounts; a signed one applies in both directions."""

    change: Callable[[Tensor, Tensor], Tensor]
    randaugment: float
    trivialaugment: float
    signed: bool


# The 14 operations of both papers. RandAugment's amounts are AutoAugment's (Cubuk et al. 2019, arXiv 1805.09501), with
# translations of 150 of 331 px. TrivialAugment's are its wide space, with 32 of ImageNet's 224 px. Both are shares of
# the side here, so that a strength means the same for every input size.
OPERATIONS = (
    Operation(identity, 0, 0, signed=False),
    Operation(shear_x, 0.3, 0.99, signed=True),
    Operation(shear_y, 0.3, 0.99, signed=True),
    Operation(translate_x, 150 / 331, 32 / 224, signed=True),
    Operation(translate_y, 150 / 331, 32 / 224, signed=True),
    Operation(rotate, 30, 135, signed=True),
    Operation(brightness, 0.9, 0.99, signed=True),
    Operation(saturation, 0.9, 0.99, signed=True),
    Operation(contrast, 0.9, 0.99, signed=True),
    Operation(sharpness, 0.9, 0.99, signed=True),
    Operation(posterize, 4, 6, signed=False),
    Operation(solarize, 256, 256, signed=False),
    Operation(autocontrast, 0, 0, signed=False),
    Operation(equalize, 0, 0, signed=False),
)


def _pixelwise(values: Tensor) -> Tensor:
    """[N] → [N, 1, 1, 1]."""
    return values.view(-1, 1, 1, 1)


def _planewise(values: Tensor) -> Tensor:
    """[N] → [N, 1, 1]."""
    return values.view(-1, 1, 1)


def _places(images: Tensor) -> tuple[Tensor, Tensor]:
    """The coordinates of the pixels' centres, from -1 at one edge to 1 at the other: x [S], y [S, 1]."""
    side = images.shape[-1]
    place = torch.arange(1 - side, side, 2, device=images.device) / side
    return place, place[:, None]


def _whole_pixels(shares: Tensor, images: Tensor) -> Tensor:
    """Shares of the side as differences of coordinates, truncated to whole pixels: [N, 1, 1]."""
    side = images.shape[-1]
    return _planewise((shares * side).trunc() * 2 / side)


def _read(images: Tensor, x: Tensor, y: Tensor, outside: str = "zeros") -> Tensor:
    """New images whose pixels are interpolated at the coordinates (x, y); x, y: broadcast to [N, S, S]."""
    grid = torch.stack(torch.broadcast_tensors(x, y), dim=-1)
    read = F.grid_sample(images.float(), grid, padding_mode=outside, align_corners=False)
    return read.round_().to(torch.uint8)


def _away_from(other: Tensor | float, images: Tensor, amounts: Tensor) -> Tensor:
    """Extrapolates: amount -1 gives `other`, 0 the images, and 1 twice the images' distance from `other`."""
    factor = _pixelwise(1 + amounts)
    return (images * factor + other * (1 - factor)).clamp_(0, 255).to(torch.uint8)


def _grey(images: Tensor) -> Tensor:
    """[N, 1, S, S] in whole levels, with the weights of ITU-R BT.601."""
    red, green, blue = images.split(1, dim=1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue).floor()
