import subprocess
import sys

import pytest

COMPILER = """
import sys
def compiler(): return sorted({"torch._dynamo", "torch._inductor"} & set(sys.modules))
"""


def runs(script):
    done = subprocess.run([sys.executable, "-c", COMPILER + script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["torchvision:squeezenet1_1@random", "autotl:resnet10"])
def test_no_network_needs_the_compiler_for_its_stages_and_features(tmp_path, name):
    runs(f"""
from pathlib import Path
import torch
from autotl import Host
from autotl.backbones.catalogue import Catalogue
from autotl.engine.features import every_feature
catalogue = Catalogue(Host(), Path({str(tmp_path)!r}))
network = catalogue.network({name!r}, 0)
stages = catalogue.build(network).eval()
info = catalogue.info(network.backbone)
assert info.flops(info.names[-1]) > 1e6
every_feature(stages, info, torch.zeros(1, 3, 64, 64), catalogue.owner(network.backbone))
assert compiler() == [], compiler()
""")


def test_what_asks_for_the_compiler_gets_it():
    runs("""
import torch
from autotl.backbones import compiler as unused_compiler
with unused_compiler.unused():
    import torchvision
    assert compiler() == ["torch._dynamo"]
    from torch._dynamo.utils import is_compile_supported
    import torch._dynamo.config
    assert torch._dynamo.config.recompile_limit > 0
    assert "torch._inductor" in sys.modules
assert torchvision.ops.roi_align.__globals__["is_compile_supported"]("cpu") is is_compile_supported("cpu")
""")


def test_nothing_of_it_is_left_afterwards():
    runs("""
import torch
from autotl.backbones import compiler as unused_compiler
weight = torch.nn.Parameter(torch.ones(1))
with unused_compiler.unused():
    optimizer = torch.optim.SGD([weight])
    optimizer.zero_grad()
assert compiler() == []
assert "__dynamo_disable" not in vars(torch.optim.Optimizer.zero_grad.__wrapped__)
optimizer.zero_grad()
assert compiler() == ["torch._dynamo", "torch._inductor"]
assert torch.compile(lambda x: x + 1, backend="eager")(weight).item() == 2
""")
