"""Everything that ships passes the checks for third-party plugins."""

from autotl.builtin import (
    augmentations,
    fine_tuning,
    linear_probe,
    logistic,
    reference,
    shipped,
    timm_family,
    torchvision_family,
)
from autotl.testing import AugmentationTests, BackboneTests, MethodTests, StrategyTests


class TestAugmentations(AugmentationTests):
    plugin = augmentations


class TestLogistic(MethodTests):
    plugin = logistic
    options = {"logistic": {"penalty": [1.0, 0.1, 0.01], "class_weights": "balanced"}}


class TestFineTuning(StrategyTests):
    plugin = fine_tuning


class TestLinearProbe(StrategyTests):
    plugin = linear_probe


class TestReference(BackboneTests):
    plugin = reference


class TestShipped(BackboneTests):
    plugin = shipped


class TestTimm(BackboneTests):
    plugin = timm_family
    networks = ("test_resnet.r160_in1k", "test_vit3.r160_in1k")


class TestTorchvision(BackboneTests):
    plugin = torchvision_family
    networks = ("shufflenet_v2_x0_5",)
