"""A trained model as one module of standard operators, from pixels to probabilities."""

import warnings

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from autotl.backbones.stages import Stages
from autotl.engine.features import normalise, seen_by
from autotl.engine.head_kinds import AnyHead
from autotl.engine.views import view
from autotl.errors import StudyError, one_line
from autotl.plan import TransferPlan

INPUT, OUTPUT, BATCH_AXIS = "images", "probabilities", "batch"


class Graph(nn.Module):
    """images: [N, 3, S, S] uint8, prepared according to the plan's input → probabilities: [N, classes] float32.

    It ends at the plan's cut, and includes casting, normalisation and the plan's views.
    """

    def __init__(self, plan: TransferPlan, stages: Stages, head: AnyHead) -> None:
        super().__init__()
        self.plan = plan
        self.stages = stages
        self.head = head
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        prepared = normalise(images, self.plan.input)
        each = [self._probabilities(view(prepared, number)) for number in range(self.plan.test_views)]
        return torch.stack(each).mean(0) if len(each) > 1 else each[0]

    def _probabilities(self, prepared: Tensor) -> Tensor:
        probabilities: Tensor = self.head(seen_by(self.plan.head, self.stages, prepared)).softmax(1)
        return probabilities

    @property
    def device(self) -> torch.device:
        return next(self.head.parameters()).device

    def example(self) -> Tensor:
        """A batch to trace with: of two images, because with one the batch size would be traced as a constant."""
        size = self.plan.input.size
        return torch.zeros(2, 3, size, size, dtype=torch.uint8)


def program(graph: Graph) -> ExportedProgram:
    """The graph on the CPU, traced by PyTorch for batches of any size.

    Raises: StudyError if the network cannot be traced.
    """
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            shapes = ({0: Dim(BATCH_AXIS, min=1)},)
            return torch.export.export(graph.cpu(), (graph.example(),), dynamic_shapes=shapes)
    except Exception as error:  # the tracer raises almost anything
        raise StudyError(
            f"'{graph.plan.backbone}' cannot be exported as a graph: {one_line(error, 300)} "
            "Use --format bundle, which needs autotl to run."
        ) from error
