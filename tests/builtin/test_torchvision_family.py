import re

import pytest
import torch
from torch import nn
from torchvision import models

from autotl.builtin.torchvision_family import Torchvision


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_a_network_with_weights_sees_images_as_torchvisions_own_does(name, tmp_path, monkeypatch):
    state = models.get_model(name, weights=None, init_weights=False).state_dict()
    file = tmp_path / "weights.pth"
    torch.save(state, file)
    weights = models.get_model_weights(name).DEFAULT
    monkeypatch.setattr(type(weights), "get_state_dict", lambda *args, **kwargs: state)
    theirs = models.get_model(name, weights=weights).eval()
    ours = Torchvision().build(name, file).eval()
    images = torch.randn(2, 3, 128, 128)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images))


def test_the_published_names_of_densenets_tensors_are_converted(monkeypatch, tmp_path):
    small = models.DenseNet(4, (2, 2), 8)
    monkeypatch.setattr(models, "get_model", lambda name, **options: small)
    state = {key: value + 1 for key, value in small.state_dict().items()}
    published = {re.sub(r"(denselayer\d\.\w+)([12]\.)", r"\1.\2", key): value for key, value in state.items()}
    assert published.keys() != state.keys()
    torch.save(published, tmp_path / "weights.pth")
    made = Torchvision().build("densenet121", tmp_path / "weights.pth").state_dict()
    assert all(torch.equal(made[key], value) for key, value in state.items())


@pytest.mark.parametrize(
    ("name", "size"), [("vit_b_16", 224), ("vit_b_16.IMAGENET1K_SWAG_E2E_V1", 384), ("vit_h_14", 518)]
)
def test_a_vision_transformer_is_built_for_the_size_of_its_weights(name, size, monkeypatch):
    built = {}
    monkeypatch.setattr(models, "get_model", lambda name, **options: built.update(options) or nn.Identity())
    family = Torchvision()
    family.build(name, None)
    assert built["image_size"] == family.card(name).input.size == size


def test_position_embeddings_and_class_tokens_are_exempt_from_weight_decay(monkeypatch):
    small = models.VisionTransformer(32, 16, num_layers=1, num_heads=1, hidden_dim=8, mlp_dim=8)
    monkeypatch.setattr(models, "get_model", lambda name, **options: small)
    assert Torchvision().build("vit_b_16", None).no_weight_decay() == {"class_token", "encoder.pos_embedding"}


def test_the_card_names_the_data_of_weights_that_saw_more_than_imagenet():
    plain, swag = map(Torchvision().card, ("regnet_y_16gf", "regnet_y_16gf.IMAGENET1K_SWAG_E2E_V1"))
    assert plain.source == "ImageNet-1k" and "ImageNet's terms" in plain.license
    assert "Instagram" in swag.source and swag.source.endswith("ImageNet-1k") and "SWAG" in swag.license
