"""Tests for authors of plugins: subclass one of these for each kind that the plugin registers.

    import autotl_late_probe
    from autotl.testing import StrategyTests

    class TestLateProbe(StrategyTests):
        plugin = autotl_late_probe

pytest then runs every check on everything of that kind that the plugin registers. This needs pytest, but no GPU or
network connection: the checks train a network of three small layers on ninety small images.
"""

from autotl.testing.augmentations import AugmentationTests
from autotl.testing.backbones import BackboneTests
from autotl.testing.methods import MethodTests
from autotl.testing.metrics import MetricTests
from autotl.testing.strategies import StrategyTests
from autotl.testing.training import AdapterTests, GradientMethodTests, ObjectiveTests, OptimizerTests
from autotl.testing.weights import WeightsTests

__all__ = [
    "AdapterTests",
    "AugmentationTests",
    "BackboneTests",
    "GradientMethodTests",
    "MethodTests",
    "MetricTests",
    "ObjectiveTests",
    "OptimizerTests",
    "StrategyTests",
    "WeightsTests",
]
