"""The built-in augmentations: each image of a batch is changed with its own random numbers.

They take and return uint8, so their results stay in the range that every backbone accepts.
"""

from functools import partial

from autotl import hookimpl


@hookimpl
def register_augmentations(register):
    register("flip", Flip, summary="Half of the images mirrored left to right")
    register("flip-rotate-zoom", FlipRotateZoom, summary="Flips, rotations and zooms of searched strength")
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
