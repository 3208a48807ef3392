"""Splitting a network into stages must not change what it computes."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import timm
import torch
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models

from autotl.backbones import splitting
from autotl.backbones.splitting import Traced, split, split_with_tail
from autotl.backbones.stages import Stages, Tail
from autotl.builtin.reference_networks import Edges, Pixels
from autotl.errors import PlanError, PluginError

torch.set_num_threads(1)


def test_a_network_that_fails_to_name_what_does_not_decay_says_so():
    network = own_small()
    network.no_weight_decay = lambda: 1 / 0
    with pytest.raises(PluginError, match=r"no_weight_decay\(\) of ResNet fails: ZeroDivisionError"):
        split(network, 64)


def own_small(**options) -> nn.Module:
    widths = (32, 64, 128, 256)
    return ResNet(BasicBlock, (1, 1, 1, 1), channels=widths, stem_width=16, stem_type="deep", **options)


@dataclass(frozen=True)
class Case:
    build: Callable[[], nn.Module]
    size: int
    stages: int
    first: str
    last: str
    shape: tuple[int, ...]
    """At the last boundary."""


def tv(name: str, size: int, *facts, **options) -> tuple[str, Case]:
    return f"torchvision:{name}", Case(lambda: getattr(models, name)(**options), size, *facts)


def tm(name: str, size: int, *facts) -> tuple[str, Case]:
    return f"timm:{name}", Case(lambda: timm.create_model(name), size, *facts)


NO_SIDE_EXITS = {"aux_logits": False, "init_weights": False}
CASES = dict(
    (
        tv("resnet18", 64, 9, "maxpool", "layer4.1", (512, 2, 2)),
        tv("resnet50", 64, 17, "maxpool", "layer4.2", (2048, 2, 2)),
        tv("resnext50_32x4d", 64, 17, "maxpool", "layer4.2", (2048, 2, 2)),
        tv("densenet121", 64, 8, "features.pool0", "features.norm5", (1024, 2, 2)),
        tv("vgg11_bn", 64, 8, "features.3", "features.28", (512, 2, 2)),
        tv("alexnet", 96, 5, "features.2", "features.12", (256, 2, 2)),
        tv("googlenet", 64, 12, "maxpool1", "inception5b", (1024, 2, 2), **NO_SIDE_EXITS),
        tv("inception_v3", 128, 16, "Conv2d_1a_3x3", "Mixed_7c", (2048, 2, 2), **NO_SIDE_EXITS),
        tv("squeezenet1_0", 64, 9, "features.2", "features.12", (512, 3, 3)),
        tv("mobilenet_v2", 64, 19, "features.0", "features.18", (1280, 2, 2)),
        tv("mobilenet_v3_small", 64, 13, "features.0", "features.12", (576, 2, 2)),
        tv("efficientnet_b0", 64, 18, "features.0", "features.8", (1280, 2, 2)),
        tv("convnext_tiny", 64, 22, "features.0", "features.7.2", (768, 2, 2)),
        tv("regnet_y_400mf", 64, 17, "stem", "trunk_output.block4.block4-5", (440, 2, 2)),
        tv("vit_b_16", 64, 13, "conv_proj", "encoder.ln", (17, 768), image_size=64),
        tv("swin_t", 64, 16, "features.0.2", "permute", (768, 2, 2)),
        tm("resnet18", 64, 9, "maxpool", "layer4.1", (512, 2, 2)),
        tm("inception_v4", 96, 22, "features.0", "features.21", (1536, 1, 1)),
        tm("inception_resnet_v2", 96, 49, "conv2d_1a", "conv2d_7b", (1536, 1, 1)),
        tm("vit_tiny_patch16_224", 224, 13, "patch_embed", "norm", (197, 192)),
        tm("deit_tiny_patch16_224", 224, 13, "patch_embed", "norm", (197, 192)),
        tm("deit_tiny_distilled_patch16_224", 224, 13, "patch_embed", "norm", (198, 192)),
        tm("swin_tiny_patch4_window7_224", 224, 16, "patch_embed", "norm", (7, 7, 768)),
        tm("efficientnet_b0", 64, 18, "bn1", "bn2", (1280, 2, 2)),
        tm("convnext_atto", 64, 16, "stem.1", "stages.3.blocks.1", (320, 2, 2)),
        tm("mobilenetv3_small_100", 64, 14, "bn1", "act2", (1024, 1, 1)),
        tm("regnety_002", 64, 14, "stem", "s4.b7", (368, 2, 2)),
        tm("densenet121", 64, 8, "features.pool0", "features.norm5", (1024, 2, 2)),
        tm("maxvit_rmlp_pico_rw_256", 256, 34, "stem", "norm", (256, 8, 8)),
        ("autotl:own", Case(own_small, 64, 7, "conv1.2", "layer4.0", (256, 2, 2))),
        ("reference:pixels", Case(Pixels, 64, 1, "pixels.1", "pixels.1", (768, 1, 1))),
        ("reference:edges", Case(Edges, 64, 1, "edges.3", "edges.3", (512, 1, 1))),
    )
)


@dataclass(frozen=True)
class Network:
    case: Case
    model: nn.Module
    stages: Stages
    tail: Tail
    images: Tensor
    values: dict[str, Tensor]
    """At each boundary, in evaluation."""

    @property
    def middle(self) -> str:
        return self.stages.names[len(self.values) // 2]


@pytest.fixture(scope="module", params=CASES)
def network(request) -> Network:
    case = CASES[request.param]
    model = disturb(case.build()).eval()
    stages, tail = split_with_tail(model, case.size)
    batch = images(case.size)
    with torch.no_grad():
        values = {boundary.name: value for boundary, value in stages.walk(batch)}
    return Network(case, model, stages, tail, batch, values)


def disturb(model: nn.Module) -> nn.Module:
    """Noise on all weights and statistics: in a newly made network many mistakes do not show."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer += 0.1 * torch.randn_like(buffer)
            if name.endswith("running_var"):
                buffer *= 0.5 + torch.rand_like(buffer)
    return model


def images(size: int, count: int = 3) -> Tensor:
    """By default another number than in the trace."""
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def same(a: Tensor, b: Tensor) -> bool:
    assert a.isfinite().all()
    return torch.equal(a, b)


@torch.no_grad()
def test_stages_and_tail_are_the_network(network):
    assert same(network.model(network.images), network.tail(network.values[network.case.last]))


@torch.no_grad()
def test_stages_and_tail_are_the_network_in_training(network):
    statistics = copy.deepcopy(dict(network.model.named_buffers()))

    def train(*modules):
        torch.manual_seed(2)
        result = network.images
        for module in modules:
            result = module.train()(result)
            module.eval()
        learned = copy.deepcopy(dict(network.model.named_buffers()))
        for name, buffer in network.model.named_buffers():
            buffer.copy_(statistics[name])
        return result, learned

    expected, expected_statistics = train(network.model)
    result, learned_statistics = train(network.stages, network.tail)
    assert same(expected, result)
    assert all(torch.equal(learned_statistics[name], value) for name, value in expected_statistics.items())


@torch.no_grad()
def test_every_stage_can_be_resumed(network):
    previous, value = None, network.images
    for name, expected in network.values.items():
        value = network.stages(value, name, start=previous)
        assert same(expected, value), name
        assert same(expected, network.stages(value, name, start=name))
        previous = name
    assert previous == network.case.last


@torch.no_grad()
def test_what_follows_depends_on_the_boundary(network):
    value = network.values[network.middle]
    noisy = value + 0.1 * value.std() * torch.randn_like(value)
    result = network.tail(network.stages(noisy, start=network.middle))
    assert not same(result, network.tail(network.values[network.case.last]))


def test_boundaries_are_as_described(network):
    case, boundaries = network.case, network.stages.boundaries
    assert (len(boundaries), boundaries[0].name, boundaries[-1].name) == (case.stages, case.first, case.last)
    assert boundaries[-1].shape == case.shape
    assert len(network.values) == len(boundaries)  # names are unique
    for boundary in boundaries:
        value = network.values[boundary.name]
        assert value.shape[1:] == boundary.shape
        assert boundary.channels == value.shape[1 if boundary.layout == "NCHW" else -1]


def test_the_state_dict_is_a_part_of_the_networks_own(network):
    whole, part = network.model.state_dict(), network.stages.state_dict()
    assert part.keys() <= whole.keys()
    assert all(part[name].data_ptr() == whole[name].data_ptr() for name in part)


def test_every_parameter_belongs_to_one_stage(network):
    owned = [name for stage in network.stages.names for name in network.stages.stage_parameters(stage)]
    assert sorted(owned) == sorted(name for name, _ in network.stages.named_parameters())


@torch.no_grad()
def test_a_cut_has_only_what_it_needs(network):
    part = network.stages.cut(network.middle)
    assert part.boundaries == network.stages.boundaries[: len(part.names)]
    assert not part.training
    needed = {key for name in part.names for key in network.stages.stage_parameters(name)}
    assert {key for key, _ in part.named_parameters()} == needed
    assert part.state_dict().keys() <= network.stages.state_dict().keys()
    assert same(network.values[network.middle], part(network.images))


def test_nothing_is_tied_to_the_device_of_the_trace(network):
    moved = copy.deepcopy(network.stages).to("meta")
    for mode in (False, True):
        assert moved.train(mode)(network.images.to("meta")).shape[1:] == network.case.shape


# From here on, small networks: what is tested does not depend on the architecture.


def test_other_sizes_than_that_of_the_trace():
    for build in (models.resnet18, models.squeezenet1_0, models.convnext_tiny, own_small):
        model = disturb(build()).eval()
        stages, tail = split_with_tail(model, 64)
        with torch.no_grad():
            assert same(model(images(96)), tail(stages(images(96))))


@pytest.mark.parametrize("build", [models.resnet18, models.vgg11_bn, models.convnext_tiny])
def test_stages_are_the_same_at_every_size(build):
    # At 32 px the last planes are single points, which must not be taken for a global pooling.
    model = build()
    small, large = split(model, 32), split(model, 224)
    assert small.names == large.names
    assert small.fingerprint == large.fingerprint


def test_layouts_and_prefix_tokens():
    def ends(model, size=224):
        return {(b.layout, b.prefix_tokens) for b in split(model, size).boundaries}

    assert ends(models.resnet18(), 64) == {("NCHW", 0)}
    assert ends(models.swin_t()) == {("NHWC", 0), ("NCHW", 0)}
    assert ends(timm.create_model("deit_tiny_patch16_224")) == {("tokens", 1)}
    assert ends(timm.create_model("deit_tiny_distilled_patch16_224")) == {("tokens", 2)}
    assert ends(timm.create_model("mixer_s32_224")) == {("tokens", 0)}
    # Its class token joins only after the last block.
    assert {b.prefix_tokens for b in split(timm.create_model("convit_tiny"), 224).boundaries} == {0, 1}


def test_a_shape_of_equal_sides_has_its_neighbours_layout():
    class Last(nn.Module):
        def forward(self, value):
            return value.permute(0, 2, 3, 1)

    class First(nn.Module):
        def forward(self, value):
            return value.permute(0, 3, 1, 2)

    def network(*layers):
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * 16 * 16, 2))

    planes = network(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 1))
    assert [b.layout for b in split(planes, 16).boundaries] == ["NCHW", "NCHW"]
    channels_last = network(nn.Conv2d(3, 8, 1), Last(), nn.Linear(8, 16))
    assert [b.layout for b in split(channels_last, 16).boundaries] == ["NHWC", "NHWC"]


@pytest.mark.parametrize(
    ("build", "size", "frozen"),
    [
        (own_small, 64, "layer2.0"),
        (own_small, 64, "layer4.0"),
        (lambda: models.mobilenet_v3_small(dropout=0.5), 64, "features.5"),
        (lambda: models.densenet121(drop_rate=0.2), 64, "features.transition1"),
        (lambda: models.vit_b_16(image_size=32, dropout=0.2), 32, "encoder.layers.encoder_layer_3"),
    ],
)
def test_frozen_stages_stay_as_they_are_and_others_learn(build, size, frozen):
    stages = split(disturb(build()), size)
    stages.freeze(frozen)
    stages.train()
    before = copy.deepcopy(stages.state_dict())
    behind = stages.names.index(frozen) + 1

    value = stages(images(size).requires_grad_(), frozen)
    assert value.grad_fn is None
    assert same(value, copy.deepcopy(stages).eval()(images(size), frozen))

    head = nn.Linear(stages.boundaries[-1].channels, 2)
    optimizer = torch.optim.SGD([*stages.parameters(), *head.parameters()], lr=0.1)
    features = stages(images(size))
    head(features.mean(1) if features.ndim == 3 else features.mean((2, 3))).square().sum().backward()
    optimizer.step()

    for index, name in enumerate(stages.names):
        parameters = stages.stage_parameters(name)
        for key, parameter in parameters.items():
            assert parameter.requires_grad == (parameter.grad is not None) == (index >= behind), key
        assert all(torch.equal(parameters[key], before[key]) for key in parameters) == (index < behind), name
    kept = stages.cut(frozen).state_dict()
    assert all(torch.equal(kept[key], before[key]) for key in kept)


def test_freezing_can_be_undone():
    stages = split(own_small(), 64)
    stages.freeze("layer2.0")
    stages.freeze(None)
    assert all(parameter.requires_grad for parameter in stages.parameters())
    assert all(module.training for module in stages.modules())
    assert stages(images(64), "conv1.2").grad_fn is not None


def test_a_cut_keeps_what_is_frozen():
    stages = split(own_small(), 64)
    stages.freeze("layer2.0")
    assert stages.cut("layer3.0").train()(images(64), "layer2.0").grad_fn is None
    assert stages.cut("layer1.0").train()(images(64)).grad_fn is None


def test_the_network_itself_is_not_changed():
    model = own_small(drop_rate=0.3)
    model.layer1.eval()
    modes = [module.training for module in model.modules()]
    state = copy.deepcopy(model.state_dict())
    attributes = {name: list(vars(module)) for name, module in model.named_modules()}
    stages = split(model, 64)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert {name: list(vars(module)) for name, module in model.named_modules()} == attributes
    assert stages.training


def test_a_copy_is_independent():
    stages = split(own_small(), 64).eval()
    twin = copy.deepcopy(stages)
    with torch.no_grad():
        expected = stages(images(64))
        assert same(expected, twin(images(64)))
        for parameter in twin.parameters():
            parameter.zero_()
        assert same(expected, stages(images(64)))
        assert not same(expected, twin(images(64)))


def test_a_checkpoint_of_the_network_loads_by_name():
    donor = disturb(models.resnet18()).eval()
    stages = split(models.resnet18(), 64).eval()
    stages.load_state_dict({k: v for k, v in donor.state_dict().items() if k in stages.state_dict()})
    with torch.no_grad():
        assert same(split(donor, 64)(images(64)), stages(images(64)))


def test_autocast():
    stages = split(own_small(), 64).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert stages(images(64)).dtype == torch.bfloat16


def test_different_stage_lists_have_different_fingerprints():
    stages = split(own_small(), 64)
    assert stages.fingerprint == split(disturb(own_small()), 64).fingerprint
    others = [stages.cut("layer3.0"), split(own_small(output_stride=16), 64), split(models.resnet18(), 64)]
    assert others[1].fingerprint == stages.fingerprint  # a stride is no parameter
    assert len({stages.fingerprint, others[0].fingerprint, others[2].fingerprint}) == 3


class Handmade(nn.Module):
    """Its own forward uses buffers and whether it is being trained."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Linear(48, 2)
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("scale", torch.ones(3), persistent=False)

    def forward(self, images):
        value = self.a((images - self.mean.view(1, 3, 1, 1)) * self.scale.view(1, 3, 1, 1))
        return self.fc(self.b(F.dropout(value, 0.5, self.training)).flatten(1))


def test_operations_in_forward_itself_are_kept():
    model = Handmade()
    stages, tail = split_with_tail(model, 4)
    assert stages.names == ("a", "b")
    assert stages.state_dict().keys() == {"mean", "a.weight", "a.bias", "b.weight", "b.bias"}
    model.mean.fill_(0.5)
    model.scale.fill_(2)
    for mode in (True, False):
        for module in (model, stages, tail):
            module.train(mode)
        torch.manual_seed(3)
        expected = model(images(4))
        torch.manual_seed(3)
        assert same(expected, tail(stages(images(4))))
    stages.freeze("b")
    stages.train()
    assert same(stages(images(4)), stages(images(4)))


class Counting(nn.Module):
    """One of its blocks creates a tensor that has the default device, whatever that of the network is."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.fc = nn.Conv2d(3, 8, 3), Numbered(8), nn.Linear(8, 2)

    def forward(self, images):
        return self.fc(self.second(self.first(images)).mean((2, 3)))


class Numbered(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.one, self.other = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, value):
        return self.other(self.one(value) + torch.arange(value.shape[-1]))


def test_a_network_with_tensors_of_its_own_device_is_split():
    model = disturb(Counting()).eval()
    stages, tail = split_with_tail(model, 8)
    assert stages.names == ("first", "second")
    assert same(tail(stages(images(8))), model(images(8)))
    with pytest.raises(splitting._NoSplitError, match="device"):
        splitting._split_as(splitting._empty(model, 8), model, splitting._blocks)


@pytest.mark.parametrize("name", ["torchvision:squeezenet1_0", "timm:vit_tiny_patch16_224", "timm:densenet121"])
def test_stages_do_not_depend_on_the_kind_of_tensors_without_memory(name):
    case = CASES[name]
    model = case.build()
    made = [
        splitting._split_as(shadow(model, case.size), model, splitting._blocks)[0]
        for shadow in (splitting._empty, splitting._faked)
    ]
    assert made[0].boundaries == made[1].boundaries
    assert made[0].graph == made[1].graph


def test_a_trace_gives_the_stages_of_other_instances_of_the_network():
    models_of_one_kind = [disturb(own_small()).eval() for _ in range(2)]
    one, other = models_of_one_kind
    with torch.no_grad():
        other.conv1[0].weight *= 2
    traced = Traced(one, split(one, 64))
    stages = traced.stages(other)
    assert same(stages(images(64)), split(other, 64)(images(64)))
    assert not same(stages(images(64)), split(one, 64)(images(64)))
    assert traced.stages(own_small(act_layer=nn.LeakyReLU)) is None
    assert traced.stages(own_small(num_classes=10)) is None


class Overwriting(nn.Module):
    def __init__(self, *channels: int) -> None:
        super().__init__()
        self.act, self.conv = nn.ReLU(inplace=True), nn.Conv2d(*channels, 3, padding=1)
        self.other = nn.Conv2d(channels[-1], channels[-1], 1)

    def forward(self, value):
        return self.other(self.conv(self.act(value)))


def test_no_stage_changes_its_input():
    model = nn.Sequential(Overwriting(3, 8), Overwriting(8, 8), nn.Flatten(), nn.Linear(8 * 8 * 8, 2))
    stages, tail = split_with_tail(disturb(model).eval(), 8)
    batch = images(8)
    with torch.no_grad():
        values = [(value, value.clone()) for _, value in stages.walk(batch)]
        assert same(batch, images(8))
        assert all(same(now, then) for now, then in values)
        assert same(tail(values[-1][0]), model(images(8)))


def test_shared_parameters_belong_to_the_first_stage_that_uses_them():
    model = nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(3)), nn.Flatten(), nn.Linear(48, 2))
    model[2].weight = model[0].weight
    stages = split(model, 4)
    assert list(stages.stage_parameters("0")) == ["0.weight", "0.bias"]
    assert list(stages.stage_parameters("2")) == ["2.bias"]
    stages.freeze("0")
    assert not model[2].weight.requires_grad


def test_a_module_called_twice_ends_one_stage():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.fc = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Linear(48, 2)

        def forward(self, images):
            return self.fc(self.a(self.b(self.a(images))).flatten(1))

    model = disturb(Twice()).eval()
    stages, tail = split_with_tail(model, 4)
    assert stages.names == ("a", "b")
    with torch.no_grad():
        assert same(model(images(4)), tail(stages(images(4))))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, value):
        return self.b(self.a(value))


class Row(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(), Block())

    def forward(self, value):
        return self.blocks(value)


class Undecided(Row):
    """Has control flow that no trace can follow."""

    def forward(self, value):
        return self.blocks(value) if value.shape[2] > 2 else value


class Noisy(Row):
    """Makes a tensor that a trace would take for a constant."""

    def forward(self, value):
        return self.blocks(value) + torch.rand(1)


def test_a_row_of_blocks_is_split_where_it_can_be_traced():
    model = disturb(nn.Sequential(Row(), Undecided(), Noisy(), nn.Flatten(), nn.Linear(48, 2)))
    stages, tail = split_with_tail(model, 4)
    assert stages.names == ("0.blocks.0", "0.blocks.1", "1", "2")
    torch.manual_seed(4)
    expected = model(images(4))
    torch.manual_seed(4)
    assert same(expected, tail(stages(images(4))))


def test_a_network_without_blocks_splits_between_its_layers():
    class Handwritten(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2, self.fc = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 16, 5), nn.Linear(400, 10)

        def forward(self, images, scale=None):
            value = F.max_pool2d(F.relu(self.conv1(images)), 2)
            value = F.max_pool2d(F.relu(self.conv2(value)), 2)
            return self.fc(value.flatten(1) if scale is None else scale)

    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Handwritten()

        def forward(self, images):
            return self.inner(images)

    for model, names in ((Handwritten(), ("conv1", "conv2")), (Wrapper(), ("inner.conv1", "inner.conv2"))):
        stages, tail = split_with_tail(disturb(model), 32)
        assert stages.names == names
        assert [boundary.shape for boundary in stages.boundaries] == [(6, 14, 14), (16, 5, 5)]
        assert same(model(images(32)), tail(stages(images(32))))


def test_a_headless_network_keeps_its_last_stage():
    stages, tail = split_with_tail(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1), nn.ReLU()), 8)
    assert stages.names == ("0", "2")
    assert not list(tail.parameters())


# What is refused, and with which message.


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "vit_tiny_patch16_224"])
def test_a_network_of_timm_without_classifier_has_the_stages_of_one_with(name):
    """Such as DINOv2's, which ends in pooled features."""
    whole, headless = (split(timm.create_model(name, num_classes=classes), 224) for classes in (1000, 0))
    assert headless.boundaries == whole.boundaries


def test_a_forward_that_cannot_be_traced_is_refused():
    with pytest.raises(PluginError, match=r"Cannot split Undecided .* control flow.* a separate module\.$"):
        split(Undecided(), 8)


def test_a_network_without_a_boundary_is_refused():
    with pytest.raises(PluginError, match="no point where all following steps depend on a single feature map"):
        split(nn.Sequential(nn.Flatten(), nn.Linear(48, 2)), 4)


def test_a_size_that_the_network_does_not_take_is_refused():
    with pytest.raises(PluginError, match=r"it fails on images of 64 px: .*224"):
        split(timm.create_model("vit_tiny_patch16_224"), 64)


def test_stages_that_only_training_has_are_refused():
    class Moody(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.fc = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Linear(48, 2)

        def forward(self, images):
            value = self.a(images)
            return self.fc((self.b(value) if self.training else value).flatten(1))

    with pytest.raises(PluginError, match="its stages in training mode differ from those in evaluation mode"):
        split(Moody(), 4)


def test_a_name_that_stages_need_themselves_is_refused():
    model = nn.Sequential()
    model.add_module("names", nn.Conv2d(3, 3, 1))
    with pytest.raises(PluginError, match="'names' already exists"):
        split(model, 4)


def test_unknown_and_misplaced_boundaries():
    stages = split(own_small(), 64)
    for use in (stages.cut, stages.freeze, stages.stage_parameters, lambda name: stages(images(64), name)):
        with pytest.raises(PlanError, match=r"Unknown stage 'layer2\.1'\. Did you mean 'layer2\.0'\?"):
            use("layer2.1")
    with pytest.raises(ValueError, match=r"'layer1\.0' comes before 'layer2\.0'"):
        stages(images(64), "layer1.0", start="layer2.0")
