"""The family `timm:`: every pretrained network of timm, classifier or not, `timm:resnet18.a1_in1k`."""

import math

from autotl import Input, ModelCard, WeightsSource, hookimpl


@hookimpl
def register_backbones(register):
    register("timm", Timm, summary="All pretrained networks of timm")


class Timm:
    def __init__(self):
        import timm

        self.timm = timm

    def names(self):
        return self.timm.list_models(pretrained=True)

    def card(self, name):
        facts = self._facts(name)
        size = facts.input_size[-1]
        resize = size if facts.crop_mode == "squash" else max(size, math.floor(size / facts.crop_pct))
        own = Input(size=size, resize=resize, interpolation=facts.interpolation, mean=facts.mean, std=facts.std)
        return ModelCard(
            input=own,
            weights=WeightsSource(
                repo=facts.hf_hub_id,
                filename=facts.hf_hub_filename or "model.safetensors",
                url=None if facts.hf_hub_id else facts.url,
            ),
            source=facts.tag or "unknown",
            licence=facts.license or "unknown",
            sizes=() if facts.fixed_input_size else own.larger(),
            libraries=("timm",),
        )

    def build(self, name, weights):
        self._facts(name)
        if weights is None:
            return self.timm.create_model(name.partition(".")[0], pretrained=False)
        # timm itself converts the many layouts in which its checkpoints were published.
        return self.timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": str(weights)})

    def _facts(self, name):
        try:
            facts = self.timm.get_pretrained_cfg(name, allow_unregistered=True)
        except RuntimeError:  # a tag that the architecture does not have
            facts = None
        if facts is None or not self.timm.is_model(name):
            raise KeyError(name)
        return facts
