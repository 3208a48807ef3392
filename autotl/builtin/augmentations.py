"""The built-in augmentations: each image of a batch is changed with its own random numbers.

They take and return uint8, so their results stay in the range that every backbone accepts.
"""

from functools import partial
from typing import ClassVar

from autotl import hookimpl


@hookimpl
def register_augmentations(register):
    register("flip", Flip, summary="Half of the images mirrored left to right")
    register("flip-rotate-zoom", FlipRotateZoom, summary="Flips, rotations and zooms of searched strength")
    register("basic", Basic, summary="Mirroring, turns, crops, shifts, colours, erasing, each of searched strength")
    register("randaugment", RandAugment, summary="A few random operations of the same strength (Cubuk et al. 2020)")
    register("trivialaugment", TrivialAugment, summary="One random operation of random strength (Müller, Hutter 2021)")


class Flip:
    def suggest(self, trial, context):
        return {}

    def build(self, params):
        from autotl.builtin.image_operations import flip

        return flip


class FlipRotateZoom:
    """From flips only to well beyond fastai's defaults (10 degrees, 10 % zoom); images are mirrored beyond their edges.

    30 degrees is also AutoAugment's largest rotation.
    """

    def suggest(self, trial, context):
        return {
            "degrees": trial.suggest_float("flip-rotate-zoom.degrees", 0, 30),
            "zoom": trial.suggest_float("flip-rotate-zoom.zoom", 0, 0.4),
        }

    def build(self, params):
        from autotl.builtin.image_operations import flip_rotate_zoom

        return partial(flip_rotate_zoom, **params)


class Basic:
    """The operations of classic augmentation, each of searched strength, from none to the strongest in use.

    Crops are those of Inception (Szegedy et al. 2015, arXiv 1409.4842), which are of 8 to 100 % of the area. Images are
    shifted by up to twice as much as in He et al. 2016 (arXiv 1512.03385; 4 of 32 px), and rotated by up to
    AutoAugment's 30 degrees. Colours change by 0.4 in timm and by 0.8 in SimCLR (Chen et al. 2020, arXiv 2002.05709).
    Random erasing (Zhong et al. 2020, arXiv 1708.04896) changes half of the images. Operations that the images
    do not allow, as digits do not allow mirroring, are not drawn.
    """

    by_default = False
    SWITCHES = ("mirror", "upside_down", "quarter_turns")
    RANGES: ClassVar = {
        "degrees": (0, 30),
        "min_area": (0.08, 1),
        "shift": (0, 0.25),
        "colour": (0, 0.8),
        "erasing": (0, 0.5),
    }

    MEASURED: ClassVar = {
        "mirror": "mirroring",
        "upside_down": "turning upside down",
        "quarter_turns": "quarter turns",
        "degrees": "rotation",
        "min_area": "crops",
        "colour": "other colours",
    }
    """The operations that are measured first, by their parameters."""

    def operations(self):
        from autotl.builtin.image_operations import basic, quarter_turn

        return {
            "mirroring": lambda images, draw: images.flip(3),
            "turning upside down": lambda images, draw: images.flip(2),
            "quarter turns": quarter_turn,
            "rotation": partial(basic, degrees=20),
            "crops": partial(basic, min_area=0.35),
            "other colours": partial(basic, colour=0.6),
        }

    def suggest(self, trial, context):
        no = {name for name, operation in self.MEASURED.items() if operation in context.data.harmful}
        switches = [name for name in self.SWITCHES if name not in no]
        ranges = {name: ends for name, ends in self.RANGES.items() if name not in no}
        drawn = {name: trial.suggest_categorical(f"basic.{name}", [False, True]) for name in switches}
        return drawn | {name: trial.suggest_float(f"basic.{name}", *ends) for name, ends in ranges.items()}

    def build(self, params):
        from autotl.builtin.image_operations import basic

        return partial(basic, **params)


class RandAugment:
    """A few of 14 operations in sequence, all of the same strength (Cubuk et al. 2020, arXiv 1909.13719).

    The paper finds 1 to 3 operations best, and its magnitudes go up to 10, the strongest. Magnitude 9
    on this scale is 27 for torchvision, whose scale goes up to 30.
    """

    def suggest(self, trial, context):
        return {
            "operations": trial.suggest_int("randaugment.operations", 1, 3),
            "magnitude": trial.suggest_int("randaugment.magnitude", 1, 10),
        }

    def build(self, params):
        from autotl.builtin.image_operations import randaugment

        return partial(randaugment, **params)


class TrivialAugment:
    """One of 14 operations, with a random strength for each image (Müller and Hutter 2021, arXiv 2103.10158).

    Strength 1 is the paper's wide space, 0.25 about RandAugment's: 34 instead of 135 degrees.
    """

    def suggest(self, trial, context):
        return {"strength": trial.suggest_float("trivialaugment.strength", 0.25, 1)}

    def build(self, params):
        from autotl.builtin.image_operations import trivialaugment

        return partial(trivialaugment, **params)
