import autotl_our_mirror

from autotl.testing import WeightsTests


class TestOurMirror(WeightsTests):
    plugin = autotl_our_mirror
    backbones = ("timm:test_resnet.r160_in1k",)
