"""The default pool."""

from pathlib import Path

import pytest

from autotl import ProvidedWeights, hookimpl
from autotl.backbones.catalogue import Catalogue
from autotl.host import Host
from autotl.study.pool import choose

LITE = "timm:tf_efficientnet_lite0.in1k"
SHIPPED = ("autotl:convnext", "autotl:pvt_v2", "autotl:resnet10")


class Lite:
    """A provider of the weights of EfficientNet-Lite 0, which the pool does not read."""

    @hookimpl
    def register_weights(self, register):
        register("lite", lambda: self, summary="For a test")

    def names(self):
        return [LITE]

    def source(self, name):
        return ProvidedWeights(file=Path(__file__))


@pytest.fixture
def catalogue(tmp_path):
    """Backbones on a machine without internet access; `catalogue(plugin)` adds a plugin."""

    def make(*plugins):
        host = Host()
        for entry in list(host.weights):  # of installed plugins
            host.weights.drop(entry.owner)
        for plugin in plugins:
            host.add(plugin)
        return Catalogue(host, tmp_path / "cache")

    return make


@pytest.mark.parametrize("pool", ["auto", "small"])
def test_a_network_whose_weights_are_here_is_in_the_pool_of_a_cpu(catalogue, pool):
    chosen = choose(catalogue(Lite()), (), (), pool, "cpu", pytest.fail)
    assert chosen.backbones == (*SHIPPED, LITE)
    assert not chosen.downloads and len(chosen.skipped) == 2
    chosen = choose(catalogue(), (), (), pool, "cpu", pytest.fail)
    assert chosen.backbones == SHIPPED and LITE in chosen.skipped


def test_the_shipped_pool_has_nothing_else(catalogue):
    assert choose(catalogue(Lite()), (), (), "shipped", "cpu", pytest.fail).backbones == SHIPPED
