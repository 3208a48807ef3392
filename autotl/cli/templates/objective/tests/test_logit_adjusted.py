import autotl_logit_adjusted

from autotl.testing import ObjectiveTests


class TestLogitAdjusted(ObjectiveTests):
    plugin = autotl_logit_adjusted
