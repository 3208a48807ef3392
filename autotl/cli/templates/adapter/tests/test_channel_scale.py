import autotl_channel_scale

from autotl.testing import AdapterTests


class TestChannelScale(AdapterTests):
    plugin = autotl_channel_scale
