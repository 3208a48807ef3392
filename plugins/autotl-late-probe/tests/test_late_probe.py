import autotl_late_probe

from autotl.testing import StrategyTests


class TestLateProbe(StrategyTests):
    plugin = autotl_late_probe
