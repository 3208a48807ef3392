import pytest
import torch
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
