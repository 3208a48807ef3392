"""Splits a network into stages.

The network is traced with torch.fx; its blocks (a residual block, a transformer layer) are single steps. A point
where all following steps depend on the images through only one value is a possible cut: cutting there does not change
what the network computes.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from itertools import pairwise
from math import isqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from autotl.backbones import compiler
from autotl.backbones.stages import Piece, Stages, Tail
from autotl.contracts import Boundary, Layout
from autotl.errors import PluginError, out_of_memory


def split(model: nn.Module, size: int) -> Stages:
    """The stages of a network, which share its parameters; the network is neither run nor changed.

    size: side in px of the square images for which shapes are recorded.

    Raises: PluginError if the network cannot be traced or has no possible cut.
    """
    return split_with_tail(model, size)[0]


class Traced:
    """The stages of a network without its weights, for other instances of it: a trace takes longer than a network."""

    def __init__(self, model: nn.Module, stages: Stages) -> None:
        """`stages`: those that `split` made of the model."""
        self._structure = _structure(model)
        self._boundaries, self._pieces = stages.boundaries, stages.pieces

    def stages(self, model: nn.Module) -> Stages | None:
        """As `split`; None if the model is built differently from the one that was traced."""
        return Stages(model, self._boundaries, self._pieces) if _structure(model) == self._structure else None


def _structure(model: nn.Module) -> tuple[str, dict[str, torch.Size]]:
    """The modules with their settings, and the shapes of their state."""
    return repr(model), {name: tensor.shape for name, tensor in model.state_dict().items()}


def split_with_tail(model: nn.Module, size: int) -> tuple[Stages, Tail]:
    """The stages, and the tail that `split` discards: `tail(stages(images))` equals `model(images)`."""
    try:
        try:
            return _split(model, size, _blocks)
        except _NoSplitError:
            # A network without blocks may still split between its layers.
            with suppress(_NoSplitError):
                return _split(model, size, _layers)
            raise
    except _NoSplitError as error:
        if error.__cause__ and out_of_memory(error.__cause__):
            raise error.__cause__ from None
        raise PluginError(f"Cannot split {type(model).__name__} into stages: {error}") from error


class _NoSplitError(Exception):
    """Why a network cannot be split, and what its author can do."""


_Steps = Callable[[nn.Module], Iterable[nn.Module]]
"""Chooses the modules of a network that are traced as single steps."""


def _split(model: nn.Module, size: int, steps: _Steps) -> tuple[Stages, Tail]:
    try:
        with compiler.unused():
            return _split_as(_empty(model, size), model, steps)
    except _NoSplitError:
        return _split_as(_faked(model, size), model, steps)


def _split_as(shadow: "_Shadow", model: nn.Module, steps: _Steps) -> tuple[Stages, Tail]:
    # `self.training` is a constant in a trace, so each mode needs its own.
    network = shadow.network
    evaluation, training = (_Trace(network.train(mode), set(steps(network)), shadow) for mode in (False, True))
    boundaries = evaluation.boundaries()
    if boundaries != training.boundaries():
        raise _NoSplitError("its stages in training mode differ from those in evaluation mode.")
    if not boundaries:
        raise _NoSplitError(
            "it has no point where all following steps depend on a single feature map or token sequence. "
            "Write forward so that each module passes one tensor to the next."
        )
    *pieces, rest = map(_piece, evaluation.graphs(), training.graphs())
    try:
        return Stages(model, boundaries, pieces), Tail(model, rest)
    except KeyError as error:
        raise _NoSplitError(f"it uses a reserved name: {error.args[0]}. Rename that module.") from error


class _Shadow(NamedTuple):
    """A copy of a model, and images for it, whose tensors have shapes but no memory and no values."""

    network: nn.Module
    images: Tensor
    mode: AbstractContextManager[Any]
    """In which the copy runs."""


IMAGES = 2
"""Batch norm in training needs more than one value per channel."""


def _empty(model: nn.Module, size: int) -> _Shadow:
    """With tensors on the device `meta`: a network that creates tensors on another device, or reads a value, fails."""
    images = torch.empty(IMAGES, 3, size, size, device="meta")
    return _Shadow(_copied(model, lambda tensor: _placed(tensor, images.device)), images, nullcontext())


def _faked(model: nn.Module, size: int) -> _Shadow:
    """With fake tensors, which pretend to be on the model's device; they need torch's compiler, a long import."""
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    device = next((tensor.device for tensor in _state(model) if not tensor.is_meta), None)
    shadow = _copied(model, lambda tensor: fake.from_tensor(_placed(tensor, device) if tensor.is_meta else tensor))
    return _Shadow(shadow, fake.from_tensor(torch.zeros(IMAGES, 3, size, size, device=device)), fake)


def _copied(model: nn.Module, placed: Callable[[Tensor], Tensor]) -> nn.Module:
    try:
        return copy.deepcopy(model, {id(tensor): placed(tensor) for tensor in _state(model)})
    except Exception as error:
        raise _NoSplitError(f"it cannot be copied: {_reason(error)}.") from error


def _state(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _placed(tensor: Tensor, device: torch.device | None) -> Tensor:
    """A tensor of this shape on a device, without its values."""
    empty = torch.empty_like(tensor, device=device)
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def _piece(evaluation: fx.Graph, training: fx.Graph) -> Piece:
    nodes = [*evaluation.nodes, *training.nodes]
    uses = dict.fromkeys(str(node.target) for node in nodes if node.op in ("call_module", "get_attr"))
    (evaluate, code), (train, training_code) = map(_function, (evaluation, training))
    return Piece(evaluate, train, tuple(uses), code + training_code)


def _function(graph: fx.Graph) -> tuple[Callable[[nn.Module, Tensor], Any], str]:
    """The graph as a function, with its source. A GraphModule would register every module a second time."""
    code = graph.python_code("self")
    scope = dict(code.globals)
    exec(code.src, scope)
    return scope["forward"], code.src


_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def _blocks(network: nn.Module) -> Iterator[nn.Module]:
    """The outermost modules that are neither containers nor contain a row of blocks."""
    for child in network.children():
        if type(child) in _CONTAINERS or any(map(_is_row, child.modules())):
            yield from _blocks(child)
        else:
            yield child


def _is_row(module: nn.Module) -> bool:
    """Whether all children of a module are blocks: each has several layers with weights."""
    parts = list(_parts(module))
    return bool(parts) and all(sum(map(_has_weights, part.modules())) > 1 for part in parts)


def _parts(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, _CONTAINERS):
            yield from _parts(child)
        else:
            yield child


def _layers(network: nn.Module) -> Iterator[nn.Module]:
    """The modules without submodules."""
    return (module for module in network.modules() if next(module.children(), None) is None)


def _has_weights(module: nn.Module) -> bool:
    """Whether a module itself has a matrix or kernel; norms and scales have only vectors."""
    return any(parameter.ndim > 1 for parameter in module.parameters(recurse=False))


class _Tracer(fx.Tracer):
    """Traces a network, with some of its modules as single steps."""

    proxy_buffer_attributes = True

    def __init__(self, steps: set[nn.Module]) -> None:
        super().__init__()
        self.steps = steps
        self.ends: dict[fx.Node, str] = {}
        """The innermost module whose result a node is."""
        self.obstacle: nn.Module | None = None
        """The innermost module whose own forward could not be traced."""

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        # Only the images, so that Python fills in the defaults of all other arguments.
        return root_fn, [self.root, self.create_proxy("placeholder", "images", (), {})]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m in self.steps

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        try:
            result = super().call_module(m, forward, args, kwargs)
        except Exception:
            if self.obstacle is None:
                self.obstacle = m
            raise
        if isinstance(result, fx.Proxy):
            self.ends.setdefault(result.node, self.path_of_module(m))
        return result

    def create_arg(self, a: Any) -> Any:
        arg = super().create_arg(a)
        if isinstance(arg, fx.Node) and str(arg.target).startswith("_tensor_constant"):
            # The graph would keep it as a constant: on this device, for this size, drawn once.
            raise TypeError("it creates a tensor that does not depend on its input")
        return arg


def _trace(network: nn.Module, steps: set[nn.Module]) -> tuple[fx.Graph, dict[fx.Node, str]]:
    """The graph, and for each node the module that ends with it or was the last to end before.

    A module whose forward cannot be traced becomes a single step.
    """
    while True:
        tracer = _Tracer(steps)
        try:
            graph = tracer.trace(network)
        except Exception as error:
            if tracer.obstacle is None:
                raise _NoSplitError(
                    f"torch.fx cannot trace its forward: {_reason(error)}. "
                    "Move the code that depends on values or shapes into a separate module."
                ) from error
            steps = steps | {tracer.obstacle}
        else:
            names, name = {}, "output"
            for node in graph.nodes:
                names[node] = name = tracer.ends.get(node, name)
            return graph, names


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps each node's value with its version, which counts in-place writes."""

    extra_traceback = False

    def __init__(self, network: nn.Module, graph: fx.Graph) -> None:
        super().__init__(network, graph=graph)
        self.values: dict[fx.Node, tuple[Tensor, int]] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.values[n] = value, value._version
        return value


_IDLE = (nn.Identity, nn.modules.dropout._DropoutNd)
"""Modules that change nothing at the end of a stage."""

_GLOBAL_POOLS = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
"""Modules that reduce a feature map of any size for a classifier."""


class _Trace:
    """A network's graph in one mode, and where it is cut."""

    def __init__(self, network: nn.Module, steps: set[nn.Module], shadow: _Shadow) -> None:
        self.network = network
        self.graph, self.names = _trace(network, steps)
        recorder = _Recorder(network, self.graph)
        try:
            with shadow.mode, torch.no_grad():
                recorder.run(shadow.images)
        except Exception as error:
            size = shadow.images.shape[-1]
            raise _NoSplitError(f"it fails on images of {size} px: {_reason(error)}.") from error
        values = recorder.values.items()
        self.shapes = {node: tuple(value.shape) for node, (value, _) in values if _layouts(value.shape)}
        """Of the values that a head can be put on."""
        self.overwritten = {node for node, (value, version) in values if value._version > version}
        self.path = self._path()
        self.cuts = self._cuts()

    def boundaries(self) -> tuple[Boundary, ...]:
        shapes = [self.shapes[node] for node in self.cuts.values()]
        declared = getattr(self.network, "num_prefix_tokens", None)
        return tuple(
            Boundary(
                name=name,
                shape=shape[1:],
                layout=layout,
                prefix_tokens=_prefix_tokens(shape[1], declared) if layout == "tokens" else 0,
            )
            for name, shape, layout in zip(self.cuts, shapes, _settle(shapes), strict=True)
        )

    def graphs(self) -> Iterator[fx.Graph]:
        """The graph of each stage, then that of the tail."""
        return (self._between(*ends) for ends in pairwise((self.path[0], *self.cuts.values(), self.path[-1])))

    def _between(self, begin: fx.Node, end: fx.Node) -> fx.Graph:
        """The graph that leads from one node's value to another's."""
        graph = fx.Graph()
        value = graph.placeholder("value")
        if begin in self.overwritten:
            # The caller may still need the original value.
            value = graph.call_method("clone", (value,))
        copies = {begin: value}

        def place(node: fx.Node) -> fx.Node:
            if node not in copies:
                copies[node] = graph.node_copy(node, place)
            return copies[node]

        for node in self.path[self.path.index(begin) + 1 : self.path.index(end) + 1]:
            place(node)
        if end.op != "output":
            graph.output(copies[end])
        return graph

    def _path(self) -> list[fx.Node]:
        """The nodes that depend on the images, and the output; a stage can compute any other for itself."""
        path: dict[fx.Node, None] = {}
        for node in self.graph.nodes:
            if node.op in ("placeholder", "output") or not path.keys().isdisjoint(node.all_input_nodes):
                path[node] = None
        return list(path)

    def _bottlenecks(self) -> set[fx.Node]:
        """The nodes after which, of all values so far, only their own is still used."""
        found = set()
        wanted: dict[fx.Node, int] = {}
        for node in self.path:
            for source in wanted.keys() & set(node.all_input_nodes):
                wanted[source] -= 1
            wanted[node] = len(node.users)
            wanted = {value: times for value, times in wanted.items() if times}
            if list(wanted) == [node]:
                found.add(node)
        return found

    def _cuts(self) -> dict[str, fx.Node]:
        """The nodes that end a stage, by the stage's name.

        There is one between two layers with weights, as late as possible: norms, activations and local pooling belong
        to the stage before it, dropout and a classifier's pooling to the part after it. The network's output also ends
        a stage if a head can be put on it. In a network without a classifier (timm sets `num_classes = 0`), so does
        the value that is pooled into the output.
        """
        cuts: dict[str, fx.Node] = {}
        possible = self._bottlenecks() & self.shapes.keys()
        latest: fx.Node | None = None
        closed = True
        for node in self.graph.nodes:
            module = self.network.get_submodule(str(node.target)) if node.op == "call_module" else None
            if module is not None and any(map(_has_weights, module.modules())):
                if latest is not None:
                    cuts.setdefault(self.names[latest], latest)
                latest, closed = None, False
            if closed or node not in possible or isinstance(module, _IDLE):
                continue
            if latest is not None and self._is_pooling(node, module, latest):
                closed = True
            else:
                latest = node
        if latest is not None and getattr(self.network, "num_classes", None) == 0:
            cuts.setdefault(self.names[latest], latest)
        (output,) = self.graph.output_node().args
        if isinstance(output, fx.Node) and output in self.shapes:
            cuts.setdefault(self.names[output], output)
        return cuts

    def _is_pooling(self, node: fx.Node, module: nn.Module | None, before: fx.Node) -> bool:
        """Whether a node pools away the plane or some of the tokens, as a classifier does."""
        if module is not None:
            # Not by its shapes: local pooling of a small plane also leaves a single point.
            return any(isinstance(part, _GLOBAL_POOLS) for part in module.modules())
        shape, earlier = self.shapes[node], self.shapes[before]
        if len(shape) == len(earlier) == 3:
            return shape[1] < earlier[1] and shape[2] == earlier[2]
        return _is_point(shape) and not _is_point(earlier)


def _reason(error: Exception) -> str:
    """The first line of the error's message, or its type if it has none."""
    if isinstance(error, DataDependentOutputException):
        return "its forward depends on the value of a tensor; move that into a separate module"
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _layouts(shape: Sequence[int]) -> set[Layout]:
    """The layouts that a shape, batch included, may have; empty if a head cannot be put on it."""
    if len(shape) == 3:
        return {"tokens"}
    found: set[Layout] = set()
    if len(shape) == 4 and shape[2] == shape[3]:
        found.add("NCHW")
    if len(shape) == 4 and shape[1] == shape[2]:
        found.add("NHWC")
    return found


def _settle(shapes: Sequence[Sequence[int]]) -> list[Layout]:
    """A layout for each shape; an ambiguous one, with all sides equal, gets that of the nearest unambiguous shape."""
    options = [_layouts(shape) for shape in shapes]
    clear = {index: next(iter(option)) for index, option in enumerate(options) if len(option) == 1}

    def nearest(index: int) -> Layout:
        order = sorted(clear, key=lambda other: abs(other - index))
        return next((clear[other] for other in order if clear[other] in options[index]), "NCHW")

    return [nearest(index) for index in range(len(shapes))]


def _is_point(shape: Sequence[int]) -> bool:
    return shape[2:] == (1, 1) or shape[1:3] == (1, 1)


def _prefix_tokens(tokens: int, declared: int | None) -> int:
    """How many tokens precede the image's own, whose number is a square."""
    if declared is not None and tokens > declared and isqrt(tokens - declared) ** 2 == tokens - declared:
        return declared
    return tokens - isqrt(tokens) ** 2
