"""The adapter `ssf` and the objective `poly-1`: examples of plugins for training by gradient descent.

The adapter computes weights from new parameters (Lian et al. 2022, arXiv 2210.08823). The objective is a loss with one
parameter (Leng et al. 2022, arXiv 2204.12511).
"""

from autotl import Adapted, hookimpl


@hookimpl
def register_adapters(register):
    register("ssf", ScaleAndShift, summary="A trained scale and shift of each output channel (Lian et al. 2022)")


@hookimpl
def register_objectives(register):
    register("poly-1", Poly1, summary="Cross-entropy plus epsilon · (1 - p) of the right class (Leng et al. 2022)")


class ScaleAndShift:
    """Linear layers and convolutions get a scale per output channel, and a shift if they have a bias. Norms have both
    already, so their own parameters are trained."""

    def suggest(self, trial, context):
        return {}

    def build(self, params):
        return adapt


def adapt(weights):
    from torch import nn

    scales, shifts, own = {}, {}, []
    for weight in weights:
        value = weight.parameter
        if value.ndim == 1 and not isinstance(weight.module, nn.Linear | nn.modules.conv._ConvNd):
            own.append(value)
        elif value.ndim > 1 and weight.name.endswith("weight"):
            scales[weight.name] = value, nn.Parameter(value.new_ones(len(value)))
        elif weight.name.endswith("bias"):
            shifts[weight.name] = value, nn.Parameter(value.new_zeros(len(value)))

    def computed():
        found = {}
        for name, (value, scale) in scales.items():
            found[name] = value.detach() * scale.view(-1, *[1] * (value.ndim - 1))
        for name, (value, shift) in shifts.items():
            _, scale = scales[f"{name.removesuffix('bias')}weight"]
            found[name] = value.detach() * scale + shift
        return found

    return Adapted([*own, *(new for _, new in (*scales.values(), *shifts.values()))], computed)


class Poly1:
    """epsilon 0 is cross-entropy. The paper finds up to 8 useful, and below zero, down to -1, for unequal classes."""

    def suggest(self, trial, context):
        return {"epsilon": trial.suggest_float("poly-1.epsilon", -1.0, 8.0)}

    def build(self, params):
        from torch.nn.functional import cross_entropy

        def loss(logits, targets, weights):
            share = weights * targets
            wrong = (share * (1 - logits.softmax(1))).sum(1).mean()
            return cross_entropy(logits, targets, weights) + params["epsilon"] * wrong

        return loss
