"""The augmentation `none`: images as they are."""

from autotl import hookimpl


@hookimpl
def register_augmentations(register):
    register("none", NoAugmentation, summary="Images as they are")


class NoAugmentation:
    def suggest(self, trial, context):
        return {}

    def build(self, params, context):
        return lambda images, generator: images
