import autotl_brier_score

from autotl.testing import MetricTests


class TestBrierScore(MetricTests):
    plugin = autotl_brier_score
