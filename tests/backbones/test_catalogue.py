import re
from argparse import Namespace
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from autotl import Input
from autotl.backbones import splitting
from autotl.backbones.catalogue import Catalogue
from autotl.backbones.weights import Given
from autotl.errors import PluginError, WeightsError
from autotl.plan import Network

SQUEEZENET = "torchvision:squeezenet1_1"
CONVNEXT = "timm:convnext_atto.d2_in1k"


@pytest.fixture
def catalogue(host, tmp_path):
    return Catalogue(host, tmp_path / "cache")


def test_names_and_globs_become_full_names_each_once(catalogue):
    squeezenets = ["torchvision:squeezenet1_0", "torchvision:squeezenet1_1"]
    names = catalogue.expand(["torchvision:squeezenet1_*", squeezenets[0], "reference:*", "tiny:net@random"])
    assert names == [*squeezenets, "reference:pixels", "reference:edges", "tiny:net@random"]
    assert catalogue.expand(["torchvision:squeezenet1_*@random"])[0] == "torchvision:squeezenet1_0@random"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("timm:resnet5", "Did you mean 'timm:resnet50"),
        ("tim:resnet50", "Unknown backbone family 'tim'. Did you mean 'timm'"),
        ("resnet50", "family:architecture"),
        ("timm:resnet18.a1_in1kk", "Did you mean 'timm:resnet18.a1_in1k'"),
        ("torchvision:resnet18.NO_SUCH_TAG", "Unknown backbone 'torchvision:resnet18.NO_SUCH_TAG'"),
        ("torchvision:", "family:architecture"),
    ],
)
def test_an_unknown_name_suggests_known_ones(catalogue, name, says):
    with pytest.raises(PluginError, match=says):
        catalogue.expand([name])


def test_every_classifier_of_torchvision_has_a_card(catalogue):
    names = catalogue.expand(["torchvision:*"])
    assert len(names) >= 80
    for name in names:
        card = catalogue.card(name)
        assert card.input.resize >= card.input.size
        assert card.weights.sha256
    old = catalogue.card("torchvision:resnet50.IMAGENET1K_V1")
    assert old.input == Input(
        size=224, resize=256, interpolation="bilinear", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )


def test_every_classifier_of_timm_has_a_card(catalogue):
    names = catalogue.expand(["timm:*"])
    assert len(names) > 1000
    modes = set()
    for name in names:
        card = catalogue.card(name)
        modes.add(card.input.mode)
        assert card.input.resize >= card.input.size
        assert card.weights.repo or card.weights.url or card.weights.file
    small = catalogue.card("timm:resnet18.a1_in1k")
    assert (small.input.size, small.input.resize, small.input.interpolation) == (224, 235, "bicubic")
    assert small.input.mode == "crop"
    assert modes == {"crop", "squash", "pad"}
    # A share of a squashed image may be cropped, too.
    squashed = catalogue.card("timm:dm_nfnet_f0.dm_in1k").input
    assert (squashed.mode, squashed.size, squashed.resize) == ("squash", 192, 213)
    assert small.weights.repo == "timm/resnet18.a1_in1k"


@pytest.mark.parametrize("name", ["torchvision:squeezenet1_1", "timm:test_resnet.r160_in1k"])
def test_named_weights_are_loaded_and_recorded(host, tmp_path, name):
    plain = Catalogue(host, tmp_path / "cache")
    family, _, rest = name.partition(":")
    torch.manual_seed(5)
    model = host.backbones[family].item.build(rest, None)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    file = tmp_path / "weights.safetensors"
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, file)
    named = Catalogue(host, tmp_path / "cache", {name: Given(file)})
    recorded = named.weights(name, seed=0)
    assert recorded.startswith("sha256:")
    stages = named.build(named.network(name, seed=0))
    for key, value in stages.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key
    with pytest.raises(WeightsError, match="The plan needs"):
        named.build(Network(name, "sha256:" + "0" * 64, named.card(name).input))
    with pytest.raises(WeightsError, match="autotl weights fetch"):
        plain.weights(name, seed=0)


def test_weights_of_another_network_are_refused(host, tmp_path):
    file = tmp_path / "weights.safetensors"
    save_file({"conv.weight": torch.zeros(3)}, file)
    for name in ("torchvision:squeezenet1_1", "timm:test_resnet.r160_in1k"):
        named = Catalogue(host, tmp_path / "cache", {name: Given(file)})
        with pytest.raises((WeightsError, PluginError), match=name):
            named.build(named.network(name, seed=0))


@pytest.mark.parametrize("name", ["torchvision:squeezenet1_1", "timm:test_resnet.r160_in1k"])
def test_weights_with_a_head_for_other_classes_give_the_stages_the_same(host, tmp_path, name):
    family, _, rest = name.partition(":")
    model = host.backbones[family].item.build(rest, None)
    state = {key: value for key, value in model.state_dict().items() if "fc" not in key and "classifier" not in key}
    file = tmp_path / "weights.pth"
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}, "args": Namespace()}, file)
    said = []
    named = Catalogue(host, tmp_path / "cache", {name: Given(file)}, said.append)
    for _ in range(2):
        stages = named.build(named.network(name, seed=0))
    assert all(torch.equal(value, state[key]) for key, value in stages.state_dict().items())
    (line,) = said
    assert line.startswith(f"Weights of {name}: ") and "state_dict 'module.'" in line


def test_timm_converts_weights_published_in_another_layout_with_any_head(host, tmp_path):
    family = host.backbones["timm"].item
    torch.manual_seed(3)
    theirs = family.build("convnext_atto.d2_in1k", None)
    renamed = {}
    for key, value in theirs.state_dict().items():  # as ConvNeXt's authors name them
        for ours, published in (
            (r"^stem\.", "downsample_layers.0."),
            (r"^stages\.(\d)\.blocks\.", r"stages.\1."),
            (r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
            ("conv_dw", "dwconv"),
            (r"mlp\.fc", "pwconv"),
            ("head.fc", "head"),
            (r"^head\.norm", "norm"),
        ):
            key = re.sub(ours, published, key)
        renamed[key] = value
    renamed |= {"head.weight": torch.zeros(5, 320), "head.bias": torch.zeros(5)}
    torch.save({"model": renamed}, tmp_path / "weights.pth")
    named = Catalogue(host, tmp_path / "cache", {CONVNEXT: Given(tmp_path / "weights.pth")})
    stages = named.build(named.network(CONVNEXT, seed=0))
    for key, value in stages.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[key]), key


def test_weights_of_a_network_that_was_cut_end_the_backbone_there(host, tmp_path):
    plain = Catalogue(host, tmp_path / "cache")
    *_, middle, last = plain.info(SQUEEZENET).names
    torch.manual_seed(5)
    kept = plain.structure(SQUEEZENET, plain.card(SQUEEZENET).input).cut(middle)
    file = tmp_path / "weights.safetensors"
    save_file({f"backbone.{key}": value for key, value in kept.state_dict().items()}, file)
    named = Catalogue(host, tmp_path / "cache", {SQUEEZENET: Given(file, upto=middle)})
    network = named.network(SQUEEZENET, seed=0)
    stages = named.build(network)
    assert stages.names == named.info(SQUEEZENET).names
    assert stages.names[-1] == middle
    assert named.requires(SQUEEZENET) == plain.requires(SQUEEZENET)
    assert all(torch.equal(value, kept.state_dict()[key]) for key, value in stages.state_dict().items())
    assert named.info(f"{SQUEEZENET}@random").names[-1] == last
    whole = Catalogue(host, tmp_path / "cache", {SQUEEZENET: Given(file)})
    with pytest.raises(WeightsError, match="missing: "):
        whole.build(network)
    elsewhere = Catalogue(host, tmp_path / "cache", {SQUEEZENET: Given(file, upto="nowhere")})
    with pytest.raises(WeightsError, match="'nowhere', which 'torchvision:squeezenet1_1' does not have"):
        elsewhere.info(SQUEEZENET)


def test_a_file_that_changes_while_it_is_used_is_not_taken_for_that_of_the_plan(host, tmp_path):
    model = host.backbones["torchvision"].item.build("squeezenet1_1", None)
    file = tmp_path / "weights.safetensors"
    save_file(model.state_dict(), file)
    named = Catalogue(host, tmp_path / "cache", {SQUEEZENET: Given(file)})
    network = named.network(SQUEEZENET, seed=0)
    save_file({key: value + 1 for key, value in model.state_dict().items()}, file)
    with pytest.raises(WeightsError, match="The plan needs"):
        named.build(network)


def test_random_weights_need_a_request_and_depend_on_their_seed(catalogue):
    name = "torchvision:squeezenet1_1@random"
    assert catalogue.weights(name, seed=4) == "random:4"
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    first, same, other = (catalogue.build(catalogue.network(name, seed)).state_dict() for seed in (4, 4, 5))
    assert torch.equal(torch.random.get_rng_state(), before)
    key = "features.0.weight"
    assert torch.equal(first[key], same[key])
    assert not torch.equal(first[key], other[key])


def test_facts_are_traced_once_and_then_read_from_disk(host, tmp_path, monkeypatch):
    info = Catalogue(host, tmp_path / "cache").info("tiny:net")
    monkeypatch.setattr(Catalogue, "structure", lambda *_: pytest.fail("traced a second time"))
    assert Catalogue(host, tmp_path / "cache").info("tiny:net") == info
    assert info.names == ("0.2", "1.2", "2.1")
    assert [stage.shape for stage in info.stages] == [(8, 32, 32), (12, 15, 15), (16, 7, 7)]
    assert info.parameters("2.1") == sum(stage.parameters for stage in info.stages)
    assert info.stages[0].parameters == 8 * 3 * 9 + 8 + 16
    assert info.stages[0].flops == 2 * 8 * 3 * 9 * 32 * 32


def test_a_network_is_split_once_however_often_it_is_built(catalogue, monkeypatch):
    split, splits = splitting.split, []
    monkeypatch.setattr(splitting, "split", lambda *given: splits.append(given) or split(*given))
    ones = [catalogue.build(catalogue.network("tiny:net@random", seed)) for seed in (0, 0, 1)]
    assert len(splits) == 1
    values = [stages.eval()(torch.ones(1, 3, 64, 64)) for stages in ones]
    assert torch.equal(values[0], values[1]) and not torch.equal(values[0], values[2])


def test_damaged_facts_are_traced_again(host, tmp_path):
    info = Catalogue(host, tmp_path / "cache").info("tiny:net")
    (file,) = (tmp_path / "cache/info").iterdir()
    whole = file.read_bytes()
    for damaged in (whole.replace(b"12", b"13"), b"", b"\xff"):
        assert damaged != whole
        file.write_bytes(damaged)
        assert Catalogue(host, tmp_path / "cache").info("tiny:net") == info
        assert file.read_bytes() == whole


def test_a_backbone_whose_libraries_are_not_installed_names_its_plugin(host, tmp_path):
    card = host.backbones["reference"].item.card("edges")
    host.backbones["reference"].item.card = lambda name: replace(card, libraries=("no-such-library",))
    with pytest.raises(PluginError, match="'reference:edges' of .* names a library that is not installed"):
        Catalogue(host, tmp_path / "cache").info("reference:edges")


def test_reference_backbones_compute_what_they_promise(catalogue):
    networks = [catalogue.network(f"reference:{name}", seed=0) for name in ("pixels", "edges")]
    pixels, edges = (catalogue.build(network).eval() for network in networks)
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(pixels(images).flatten(1), torch.nn.functional.avg_pool2d(images, 4).flatten(1))
    # A step in brightness along x is an edge whose slope points along x, direction 0 of 8.
    step = torch.zeros(1, 3, 64, 64)
    step[..., 32:] = 1
    strength = edges(step).view(8, 8, 8)
    assert strength[0].sum() > 0
    assert strength[1:].abs().max() < 1e-6
    assert edges(step.mT).view(8, 8, 8)[2].sum() == pytest.approx(strength[0].sum().item())
    assert edges(torch.ones(1, 3, 64, 64)).abs().max() == 0
