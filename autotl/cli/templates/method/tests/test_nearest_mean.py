import autotl_nearest_mean

from autotl.testing import MethodTests, StrategyTests


class TestNearestMean(MethodTests):
    plugin = autotl_nearest_mean
    options = {"nearest-mean": {"shrink": [0.0, 0.5]}}


class TestStrategy(StrategyTests):
    plugin = autotl_nearest_mean
