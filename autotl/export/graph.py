"""A trained model as one module of standard operators, from pixels to probabilities."""

import warnings
from collections.abc import Sequence
from inspect import Parameter, Signature
from typing import cast

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from autotl.backbones.stages import Stages
from autotl.engine.features import normalise, seen_by
from autotl.engine.head_kinds import AnyHead
from autotl.engine.views import view
from autotl.errors import StudyError, one_line
from autotl.plan import Ensemble, Input, TransferPlan, inputs_of

INPUT, OUTPUT, BATCH_AXIS = "images", "probabilities", "batch"


def input_names(inputs: Sequence[Input]) -> list[str]:
    """The names of a graph's inputs: `images`, and for further preparations of the same images `images2`, …"""
    return [INPUT, *(f"{INPUT}{number}" for number in range(2, len(inputs) + 1))]


class Graph(nn.Module):
    """images: [N, 3, S, S] uint8, prepared according to the plan's input → probabilities: [N, classes] float32.

    It ends at the plan's cut, and includes casting, normalisation, the plan's views and the temperature.
    """

    def __init__(self, plan: TransferPlan, stages: Stages, head: AnyHead, temperature: float = 1.0) -> None:
        super().__init__()
        self.plan = plan
        self.temperature = temperature
        self.inputs = inputs_of(plan)
        self.stages = stages
        self.head = head
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        prepared = normalise(images, self.plan.input)
        each = [self._probabilities(view(prepared, number)) for number in range(self.plan.test_views)]
        return tempered(torch.stack(each).mean(0) if len(each) > 1 else each[0], self.temperature)

    def _probabilities(self, prepared: Tensor) -> Tensor:
        probabilities: Tensor = self.head(seen_by(self.plan.head, self.stages, prepared)).softmax(1)
        return probabilities

    @property
    def device(self) -> torch.device:
        return next(self.head.parameters()).device


class Average(nn.Module):
    """The mean of the probabilities of several graphs, with the temperature of the mean.

    Each input is [N, 3, S, S] uint8: the same N images, prepared in one of the different ways that the graphs need.
    """

    def __init__(self, graphs: Sequence[Graph], temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = temperature
        self.plan = Ensemble(members=tuple(graph.plan for graph in graphs))
        self.inputs = inputs_of(self.plan)
        self.graphs = nn.ModuleList(graphs)
        ways = [input.of_pixels for input in self.inputs]
        places = [ways.index(graph.plan.input.of_pixels) for graph in graphs]

        def forward(*images: Tensor) -> Tensor:
            each = [graph(images[place]) for graph, place in zip(self.graphs, places, strict=True)]
            return tempered(torch.stack(each).mean(0), self.temperature)

        # PyTorch takes the names of a traced graph's inputs from here, and MLflow cannot trace `*images`.
        named = [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in input_names(self.inputs)]
        forward.__signature__ = Signature(named)  # type: ignore[attr-defined]
        self.forward = forward
        self.eval()

    @property
    def device(self) -> torch.device:
        return cast(Graph, self.graphs[0]).device


AnyGraph = Graph | Average


def tempered(probabilities: Tensor, temperature: float) -> Tensor:
    """[N, C] raised to the power 1 / temperature; each row sums to 1. See `engine.temperature`."""
    if temperature == 1:
        return probabilities
    return (probabilities.clamp(min=torch.finfo(probabilities.dtype).tiny).log() / temperature).softmax(1)


def examples(graph: AnyGraph) -> tuple[Tensor, ...]:
    """A batch for each input to trace with: of two images, because with one the batch size would be a constant."""
    return tuple(torch.zeros(2, 3, input.size, input.size, dtype=torch.uint8) for input in graph.inputs)


def shapes(graph: AnyGraph, axis: object) -> tuple[object, ...]:
    """What may vary in the shapes of its inputs, as PyTorch wants to know it: `axis`, the first one of each."""
    return tuple({0: axis} for _ in graph.inputs)


def program(graph: AnyGraph) -> ExportedProgram:
    """The graph on the CPU, traced by PyTorch for batches of any size.

    Raises: StudyError if the network cannot be traced.
    """
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            vary = shapes(graph, Dim(BATCH_AXIS, min=1))
            return torch.export.export(graph.cpu(), examples(graph), dynamic_shapes=vary)
    except Exception as error:  # the tracer raises almost anything
        names = ", ".join(f"'{plan.backbone}'" for plan in graph.plan.members)
        raise StudyError(
            f"{names} cannot be exported as a graph: {one_line(error, 300)} "
            "Use --format bundle, which needs autotl to run."
        ) from error
