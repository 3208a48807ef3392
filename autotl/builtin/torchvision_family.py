"""The family `torchvision:`: every classifier of torchvision, such as `torchvision:resnet50[.IMAGENET1K_V1]`."""

import re

from autotl import Input, ModelCard, WeightsSource, hookimpl, load_weights

FIXED = ("vit_", "maxvit")
"""Networks with only one input size, because their position embeddings are learned."""
UNDECAYED = ("class_token", "pos_embedding", "relative_position_bias_table")
"""Suffixes of parameters to which torchvision's own recipes apply no weight decay."""
SWAG = "photos of Instagram by their hashtags (Singh et al. 2022, arXiv 2201.08371), then "


@hookimpl
def register_backbones(register):
    register("torchvision", Torchvision, summary="All classifiers of torchvision, trained on ImageNet-1k")


class Torchvision:
    def __init__(self):
        from torchvision import models

        self.models = models

    def names(self):
        return self.models.list_models(module=self.models)

    def card(self, name):
        weights = self._weights(name)
        preparation = weights.transforms()
        own = Input(
            size=preparation.crop_size[0],
            resize=preparation.resize_size[0],
            interpolation=preparation.interpolation.value,
            mean=tuple(preparation.mean),
            std=tuple(preparation.std),
        )
        return ModelCard(
            input=own,
            weights=WeightsSource(url=weights.url, sha256=_hash_in(weights.url)),
            source=f"{SWAG}ImageNet-1k" if "SWAG" in weights.name else "ImageNet-1k",
            license=weights.meta.get("license", "BSD-3-Clause code; ImageNet's terms for the weights"),
            sizes=() if name.startswith(FIXED) else own.larger(),
            libraries=("torchvision",),
            note=f"{weights.meta['num_params'] / 1e6:.1f} M parameters, {weights.meta['_file_size']:.0f} MB",
        )

    def build(self, name, weights):
        self._weights(name)
        architecture = name.partition(".")[0]
        # GoogLeNet and Inception v3 have auxiliary classifiers that are used only in training. They themselves turn
        # images prepared as for all others into their own input, as when torchvision loads their weights.
        own = {"aux_logits": False, "init_weights": True, "transform_input": True}
        options = own if architecture in ("googlenet", "inception_v3") else {}
        if architecture.startswith("vit_"):
            options = {"image_size": self.card(name).input.size}
        model = self.models.get_model(architecture, weights=None, **options)
        undecayed = {each for each, _ in model.named_parameters() if each.endswith(UNDECAYED)}
        model.no_weight_decay = lambda: undecayed
        if weights is not None:
            load_weights(model, weights, ignore=("AuxLogits.", "aux1.", "aux2."), convert=_renamed)
        return model

    def _weights(self, name):
        architecture, _, tag = name.partition(".")
        if architecture not in self.names():
            raise KeyError(name)
        known = self.models.get_model_weights(architecture)
        return known[tag] if tag else known.DEFAULT


def _renamed(state):
    """DenseNet's weights were published under names that torch no longer allows, such as `denselayer1.norm.1`."""
    return {
        re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)", r"\1\2", name): value for name, value in state.items()
    }


def _hash_in(url):
    """The first digits of the file's SHA-256, which torch's servers put into its name."""
    found = re.search(r"-([0-9a-f]{8,})\.pth$", url)
    return found[1] if found else None
