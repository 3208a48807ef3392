"""The family `autotl:`: small backbones that are part of this package and need no download.

Each is two files in `weights/`: `<name>.safetensors` (float16) and `<name>.json` with its architecture, input
preparation, source and the hash of its weights. `studies/backbones/train.py` makes both.
"""

import json
from functools import cache
from importlib import import_module
from pathlib import Path

from autotl import Input, ModelCard, WeightsSource, hookimpl, load_weights

WEIGHTS = Path(__file__).parent / "weights"
SIZES = (32, 96, 128)
"""Input sizes besides the 64 px that they were trained on. Larger ones are searched if the images are large enough,
because features may be better there; the smaller one is for cheap plans written by hand."""


@hookimpl
def register_backbones(register):
    register("autotl", Shipped, summary="Small backbones that ship with autotl, trained on 64 px photos")


class Shipped:
    def names(self):
        return sorted(file.stem for file in WEIGHTS.glob("*.json"))

    def card(self, name):
        facts = _facts(name)
        low, high = facts["top1_interval"]
        distilled = f", distilled from autotl:{facts['teacher']}" if facts.get("teacher") else ""
        return ModelCard(
            input=Input.model_validate_json(json.dumps(facts["input"])),
            weights=WeightsSource(file=WEIGHTS / f"{name}.safetensors", sha256=facts["sha256"]),
            source=facts["source"],
            license=facts["license"],
            sizes=SIZES,
            libraries=("timm",),
            note=f"{facts['top1']:.1%} top-1 accuracy on it ({low:.1%} to {high:.1%}){distilled}",
        )

    def build(self, name, weights):
        model = network(_facts(name)["model"], _facts(name)["classes"])
        if weights is not None:
            load_weights(model, weights)
        return model


def network(arguments, classes):
    """A network of timm from its `class`, a dotted name, and that class's arguments."""
    arguments = dict(arguments)
    module, _, cls = arguments.pop("class").rpartition(".")
    module = import_module(module)
    if "block" in arguments:
        arguments["block"] = getattr(module, arguments["block"])
    return getattr(module, cls)(num_classes=classes, **arguments)


@cache
def _facts(name):
    if name not in Shipped().names():
        raise KeyError(name)
    return json.loads((WEIGHTS / f"{name}.json").read_text())
