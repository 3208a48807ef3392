import pytest
from timm.models.vision_transformer import VisionTransformer as TimmTransformer
from torchvision.models import VisionTransformer

from autotl.backbones.costs import measure
from autotl.backbones.splitting import split
from autotl.plan import Input

WIDTH, TOKENS, HIDDEN = 32, 5, 64


def torchvision_transformer():
    return VisionTransformer(image_size=32, patch_size=16, num_layers=2, num_heads=2, hidden_dim=WIDTH, mlp_dim=HIDDEN)


def timm_transformer():
    return TimmTransformer(img_size=32, patch_size=16, depth=2, num_heads=2, embed_dim=WIDTH, mlp_ratio=HIDDEN / WIDTH)


@pytest.mark.parametrize("build", [torchvision_transformer, timm_transformer])
def test_all_products_of_attention_count(build):
    patches = 2 * 3 * 16 * 16 * WIDTH * (TOKENS - 1)
    projections = 2 * TOKENS * WIDTH * 4 * WIDTH
    attention = 2 * 2 * TOKENS * TOKENS * WIDTH
    hidden = 2 * 2 * TOKENS * WIDTH * HIDDEN
    input = Input(size=32, resize=32, interpolation="bilinear", mean=(0.5,) * 3, std=(0.25,) * 3)
    info = measure("a:transformer", input, split(build().eval(), 32))
    assert info.flops(info.names[-1]) == patches + 2 * (projections + attention + hidden)
