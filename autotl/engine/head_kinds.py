"""The kinds of heads: modules from what a head sees of the cut to logits, how they start, and what they cost.

A linear or an `mlp` head is trained on scaled features, and the scaling is then folded into its first layer. The others
keep the scaling as buffers, because a cosine and the padding of a convolution depend on it.
"""

import copy
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autotl.contracts import BackboneInfo, StageInfo
from autotl.engine.features import pooled
from autotl.engine.heads import Drop, LinearHead, Scaling, keep
from autotl.errors import PlanError, unknown
from autotl.plan import Head, Pooling

GROUP = 16
"""Channels per group of a convolution's norm, the best fixed number in Wu and He 2018, arXiv 1803.08494."""
COSINE_SCALE = 10.0
"""The initial scale of cosines, as in Gidaris and Komodakis 2018, arXiv 1804.09458."""
MOST_FLAT = 4096
"""The most features of a head without pooling."""


class MlpHead(nn.Module):
    """A hidden layer with ReLU, then a linear classifier. hidden: D → W; output: W → C."""

    def __init__(self, hidden: LinearHead, output: LinearHead) -> None:
        super().__init__()
        self.hidden, self.output = hidden, output

    def forward(self, features: Tensor, drop: Drop = keep) -> Tensor:
        """[N, D] → logits [N, C]."""
        logits: Tensor = self.output(drop(self.hidden(features).relu()))
        return logits


class Scaled(nn.Module):
    """Scaling as buffers: (features - mean) · factor, [D] each; the factor of a constant feature is 0."""

    def __init__(self, mean: Tensor, factor: Tensor) -> None:
        super().__init__()
        self.mean: Tensor
        self.factor: Tensor
        self.register_buffer("mean", mean)
        self.register_buffer("factor", factor)

    def forward(self, features: Tensor) -> Tensor:
        """[N, D, …] → the same shape."""
        shape = (-1, *[1] * (features.dim() - 2))
        return (features - self.mean.view(shape)) * self.factor.view(shape)


class CosineHead(nn.Module):
    """The cosine of scaled features and each class's weights, times a learned scale.

    A variant of Chen et al. 2019, arXiv 1904.04232, who fix the scale. weight: [C, D]; scale: a scalar.
    """

    def __init__(self, scaled: Scaled, weight: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.scaled = scaled
        self.weight, self.scale = (nn.Parameter(tensor, requires_grad=False) for tensor in (weight, scale))

    def forward(self, features: Tensor, drop: Drop = keep) -> Tensor:
        """[N, D] → logits [N, C]."""
        unit = F.normalize(drop(self.scaled(features)), dim=1)
        return self.scale * F.linear(unit, F.normalize(self.weight, dim=1))


class ConvHead(nn.Module):
    """A 3 x 3 convolution with group norm and ReLU on the scaled map, then pooling and a linear classifier.

    weight: [W, C, 3, 3]; norm_weight, norm_bias: [W].
    """

    def __init__(
        self,
        scaled: Scaled,
        weight: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        output: LinearHead,
        pooling: Pooling,
    ) -> None:
        super().__init__()
        self.scaled, self.output, self._pooling = scaled, output, pooling
        self.weight, self.norm_weight, self.norm_bias = (
            nn.Parameter(tensor, requires_grad=False) for tensor in (weight, norm_weight, norm_bias)
        )
        self._groups = len(weight) // GROUP if len(weight) % GROUP == 0 else 1

    def forward(self, maps: Tensor, drop: Drop = keep) -> Tensor:
        """[N, C, H, W] → logits [N, classes]."""
        value = F.conv2d(self.scaled(maps), self.weight, padding=1)
        value = F.group_norm(value, self._groups, self.norm_weight, self.norm_bias).relu()
        logits: Tensor = self.output(drop(pooled(value, [2, 3], self._pooling)))
        return logits


AnyHead = LinearHead | MlpHead | CosineHead | ConvHead


class TrainedHead(nn.Module):
    """A head in training: on scaled features, with dropout before its last layer."""

    def __init__(self, head: AnyHead, scaling: Scaling, dropout: float) -> None:
        super().__init__()
        self.head = head.requires_grad_()
        self._scaling = scaling if isinstance(head, LinearHead | MlpHead) else None
        self._dropout = dropout

    def forward(self, seen: Tensor) -> Tensor:
        """What the head sees, as it is → logits [N, C]."""
        if self._scaling:
            seen = self._scaling.apply(seen)
        logits: Tensor = self.head(seen, partial(F.dropout, p=self._dropout, training=self.training))
        return logits

    @torch.no_grad()
    def folded(self) -> AnyHead:
        """The head without gradients, with the scaling in it."""
        head = copy.deepcopy(self.head).requires_grad_(False).eval()
        return _first_layer(head, self._scaling.fold) if self._scaling else head


def start(head: Head, stage: StageInfo, scaling: Scaling, classes: int, previous: AnyHead | None) -> AnyHead:
    """The head that a phase trains: that of the previous phase, or a new one.

    A new one gives all classes the same logits, as in BiT (Kolesnikov et al. 2020, arXiv 1912.11370), except `cosine`,
    whose weights cannot be zero. Layers before the last are drawn at random (He et al. 2015, arXiv 1502.01852), on the
    CPU, so that they do not depend on the device.
    """
    if previous is not None:
        return _first_layer(copy.deepcopy(previous), scaling.unfold)
    device, seen = scaling.mean.device, len(scaling.mean)
    scaled = Scaled(scaling.mean, 1 / scaling.std)
    match head.kind:
        case "linear":
            return _zeros(classes, seen).to(device)
        case "mlp":
            assert head.width is not None
            hidden = LinearHead(_drawn(head.width, seen), torch.zeros(head.width))
            return MlpHead(hidden, _zeros(classes, head.width)).to(device)
        case "cosine":
            return CosineHead(scaled, torch.randn(classes, seen), torch.tensor(COSINE_SCALE)).to(device)
        case "conv":
            assert head.width is not None
            weight, one, zero = _drawn(head.width, seen, 3, 3), torch.ones(head.width), torch.zeros(head.width)
            output = _zeros(classes, features(head, stage))
            return ConvHead(scaled, weight, one, zero, output, head.pooling).to(device)


def restored(head: Head, state: Mapping[str, Tensor]) -> AnyHead:
    """The head whose state dict this is. Raises: KeyError for a missing and for an unknown tensor."""

    def linear(name: str = "") -> LinearHead:
        return LinearHead(state[f"{name}weight"], state[f"{name}bias"])

    def scaled() -> Scaled:
        return Scaled(state["scaled.mean"], state["scaled.factor"])

    made: AnyHead
    match head.kind:
        case "linear":
            made = linear()
        case "mlp":
            made = MlpHead(linear("hidden."), linear("output."))
        case "cosine":
            made = CosineHead(scaled(), state["weight"], state["scale"])
        case "conv":
            weight, norm_weight, norm_bias = (state[name] for name in ("weight", "norm_weight", "norm_bias"))
            made = ConvHead(scaled(), weight, norm_weight, norm_bias, linear("output."), head.pooling)
    for name in state:
        if name not in made.state_dict():
            raise KeyError(name)
    return made


def check(head: Head, stage: StageInfo) -> None:
    """Raises: PlanError if this stage's output does not allow the head, on the stage or with it as a tap."""
    if head.kind == "conv" and stage.layout == "tokens":
        raise PlanError(
            f"A conv head needs a cut with height and width, but '{stage.name}' ends in tokens: use another kind of "
            "head, or another cut."
        )
    allowed = (*stage.poolings, "gem", "flatten")
    if head.pooling not in allowed:
        raise PlanError(unknown(f"pooling after {stage.name}", head.pooling, allowed))
    if head.pooling == "flatten" and (count := features(head, stage)) > MOST_FLAT:
        raise PlanError(
            f"Without pooling ('flatten') the head would have {count:,} features after '{stage.name}', but at most "
            f"{MOST_FLAT:,} are allowed: use a later cut, or the pooling avg, max or gem."
        )


def is_possible(head: Head, stage: StageInfo) -> bool:
    """Whether this stage's output allows the head, see `check`."""
    try:
        check(head, stage)
    except PlanError:
        return False
    return True


def features(head: Head, stage: StageInfo) -> int:
    """How many features a stage gives the head's classifier."""
    channels = head.width if head.kind == "conv" else stage.channels
    assert channels is not None
    return channels * stage.places if head.pooling == "flatten" else channels


def parameters(head: Head, info: BackboneInfo, cut: str, classes: int) -> int:
    """How many parameters the head has."""
    stage = info.stage(cut)
    seen = sum(features(head, info.stage(name)) for name in (*head.taps, cut))
    match head.kind:
        case "linear":
            return classes * (seen + 1)
        case "cosine":
            return classes * seen + 1
        case "mlp":
            assert head.width is not None
            return head.width * (seen + 1) + classes * (head.width + 1)
        case "conv":
            assert head.width is not None
            return (9 * stage.channels + 2) * head.width + classes * (seen + 1)


def flops(head: Head, info: BackboneInfo, cut: str, classes: int) -> int:
    """The head's multiply-accumulates times two, for one image."""
    stage = info.stage(cut)
    seen = sum(features(head, info.stage(name)) for name in (*head.taps, cut))
    match head.kind:
        case "linear" | "cosine":
            return 2 * seen * classes
        case "mlp":
            assert head.width is not None
            return 2 * head.width * (seen + classes)
        case "conv":
            assert head.width is not None
            return 2 * (9 * stage.channels * head.width * stage.places + seen * classes)


def _first_layer(head: AnyHead, change: Callable[[LinearHead], LinearHead]) -> AnyHead:
    """The head with its first layer changed, if that is linear."""
    if isinstance(head, LinearHead):
        return change(head)
    return MlpHead(change(head.hidden), head.output) if isinstance(head, MlpHead) else head


def _drawn(outputs: int, *inputs: int) -> Tensor:
    """Random weights before a ReLU."""
    weight: Tensor = nn.init.kaiming_normal_(torch.empty(outputs, *inputs), nonlinearity="relu")
    return weight


def _zeros(outputs: int, inputs: int) -> LinearHead:
    return LinearHead(torch.zeros(outputs, inputs), torch.zeros(outputs))
