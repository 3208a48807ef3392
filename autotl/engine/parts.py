"""The trainable parts of stages: the parameters that an adapter trains, and the weights that it computes from them."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from autotl.backbones.stages import Stages
from autotl.contracts import Adapted, Weight


class Parts:
    """What is trained of the stages after the frozen ones."""

    def __init__(self, stages: Stages, frozen: str | None, adapt: Callable[[str, Sequence[Weight]], Adapted]) -> None:
        """Freezes everything else."""
        stages.freeze(frozen)
        self._stages = stages
        self.by_stage: dict[str, dict[str, nn.Parameter]] = {}
        """The parameters to train of each stage by name: those in the state dict, or `STAGE.adapter.NUMBER`."""
        self.pretrained: list[nn.Parameter] = []
        """Those of them that are the stages' own."""
        self._computed: list[Callable[[], Mapping[str, Tensor]]] = []
        for stage in stages.after(frozen):
            weights = [
                Weight(name, parameter, stages.get_submodule(name.rpartition(".")[0]))
                for name, parameter in stages.stage_parameters(stage).items()
            ]
            self._add(stage, weights, adapt(stage, weights))

    def _add(self, stage: str, weights: Sequence[Weight], adapted: Adapted) -> None:
        own = {id(weight.parameter): weight.name for weight in weights}
        self.by_stage[stage] = {
            own.get(id(parameter), f"{stage}.adapter.{number}"): parameter
            for number, parameter in enumerate(adapted.parameters)
        }
        for weight in weights:
            weight.parameter.requires_grad_(weight.name in self.by_stage[stage])
        self.pretrained += [parameter for parameter in adapted.parameters if id(parameter) in own]
        if adapted.weights:
            self._computed.append(adapted.weights)

    def __call__(self, value: Tensor, start: str | None) -> Tensor:
        """The value at the boundary `start` (None: the images) → the value at the last boundary."""
        if not self._computed:
            return self._stages(value, start=start)
        computed = {name: tensor for weights in self._computed for name, tensor in weights().items()}
        found: Tensor = torch.func.functional_call(self._stages, computed, (value,), {"start": start})
        return found

    def state(self) -> dict[str, Tensor]:
        """All tensors of the stages that training changes, by name; not copied."""
        buffers = self._stages.trained_state().items()
        return {
            **{name: tensor for name, tensor in buffers if not isinstance(tensor, nn.Parameter)},
            **{name: parameter for trained in self.by_stage.values() for name, parameter in trained.items()},
        }

    @torch.no_grad()
    def merge(self) -> None:
        """Copy the computed weights into the stages, which then need no adapter."""
        own = self._stages.trained_state()
        for weights in self._computed:
            for name, tensor in weights().items():
                own[name].copy_(tensor)
        self._computed.clear()
