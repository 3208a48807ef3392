"""The family `timm:`: every pretrained network of timm, classifier or not, such as `timm:resnet18.a1_in1k`."""

import math
from typing import Literal
from unittest.mock import patch

from autotl import Input, ModelCard, WeightsSource, hookimpl, load_weights

MODES: dict[str, Literal["crop", "squash", "pad"]] = {"center": "crop", "squash": "squash", "border": "pad"}
"""timm's names for how images that are not square become square."""


@hookimpl
def register_backbones(register):
    register("timm", Timm, summary="All pretrained networks of timm")


class Timm:
    def __init__(self):
        import timm
        from timm.models import _builder

        self.timm, self.builder = timm, _builder

    def names(self):
        return self.timm.list_models(pretrained=True)

    def card(self, name):
        facts = self._facts(name)
        size = facts.input_size[-1]
        own = Input(
            size=size,
            resize=max(size, math.floor(size / facts.crop_pct)),
            interpolation=facts.interpolation,
            mean=facts.mean,
            std=facts.std,
            mode=MODES[facts.crop_mode],
        )
        return ModelCard(
            input=own,
            weights=WeightsSource(
                repo=facts.hf_hub_id,
                filename=facts.hf_hub_filename or "model.safetensors",
                url=None if facts.hf_hub_id else facts.url,
            ),
            source=facts.tag or "unknown",
            license=facts.license or "unknown",
            sizes=() if facts.fixed_input_size else own.larger(),
            libraries=("timm",),
        )

    def build(self, name, weights):
        self._facts(name)
        if weights is None:
            return self.timm.create_model(name, pretrained=False)
        model, convert = self._convertible(name)
        load_weights(model, weights, convert=convert)
        return model

    def _convertible(self, name):
        """A network before timm loads its weights, and timm's function that converts a state dict for it.

        Weights are published in many layouts, and only timm's loading code can convert them. autotl does not load with
        that code, because with a head of another shape it fails or silently skips it.
        """
        known = {}

        def load_pretrained(model, *, filter_fn=None, **options):
            known["filter"] = filter_fn

        with patch.object(self.builder, "load_pretrained", load_pretrained):
            model = self.timm.create_model(name, pretrained=True)
        change = known["filter"]

        def convert(state):
            try:
                return change(state, model) if change else state
            except Exception:  # of another network; `load_weights` reports what does not fit
                return state

        return model, convert

    def _facts(self, name):
        try:
            facts = self.timm.get_pretrained_cfg(name, allow_unregistered=True)
        except RuntimeError:  # a tag that the architecture does not have
            facts = None
        if facts is None or not self.timm.is_model(name):
            raise KeyError(name)
        return facts
