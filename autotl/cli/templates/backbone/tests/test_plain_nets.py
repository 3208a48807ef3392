import autotl_plain_nets

from autotl.testing import BackboneTests


class TestPlainNets(BackboneTests):
    plugin = autotl_plain_nets
