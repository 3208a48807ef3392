import autotl_rms_prop

from autotl.testing import OptimizerTests


class TestRmsProp(OptimizerTests):
    plugin = autotl_rms_prop
