import autotl_grey_square

from autotl.testing import AugmentationTests


class TestGreySquare(AugmentationTests):
    plugin = autotl_grey_square
