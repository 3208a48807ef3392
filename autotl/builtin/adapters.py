"""The adapters: `all` trains all parameters of a stage, `norm` and `bias` a few of them, `lora` a few new ones."""

from autotl import Adapted, PlanError, hookimpl


@hookimpl
def register_adapters(register):
    register("all", All, summary="All parameters of the trained stages")
    register("norm", Norm, summary="Only norm layers (Frankle et al. 2021)")
    register("bias", Bias, summary="Only biases (BitFit, Ben Zaken et al. 2022)")
    register("lora", Lora, summary="A low-rank change of each weight matrix (Hu et al. 2022)")


class All:
    by_default = True

    def suggest(self, trial, context):
        return {}

    def build(self, params):
        return lambda weights: Adapted([weight.parameter for weight in weights])


class Norm:
    """Scales and shifts of batch norm, layer norm and their relatives, which are one-dimensional weights with a bias
    of modules named as norms; arXiv 2003.00152."""

    def suggest(self, trial, context):
        return {}

    def build(self, params):
        return lambda weights: Adapted([weight.parameter for weight in weights if _is_norm(weight.module)])


class Bias:
    """arXiv 2106.10199. The shifts of norm layers are biases, too."""

    def suggest(self, trial, context):
        return {}

    def build(self, params):
        return lambda weights: Adapted([weight.parameter for weight in weights if weight.name.endswith("bias")])


class Lora:
    """W becomes W + (alpha / rank) · B A, with A and B of the given rank; only they are trained (arXiv 2106.09685).

    It applies to weights of linear layers and of convolutions with one group. B starts at zero, so the network starts
    unchanged. Afterwards B A is added to W, so the trained network has no more parameters than before.
    """

    def suggest(self, trial, context):
        return {
            "rank": 2 ** trial.suggest_int("lora.rank_log2", 1, 5),
            "alpha": trial.suggest_float("lora.alpha", 1, 32),
        }

    def build(self, params):
        rank, alpha = params.get("rank", 8), params.get("alpha", 8.0)
        if set(params) - {"rank", "alpha"} or not isinstance(rank, int) or rank < 1:
            raise PlanError(f"lora has the parameters rank, of 1 or more, and alpha, not {params}.")
        if not isinstance(alpha, int | float) or alpha <= 0:
            raise PlanError(f"alpha of lora must be above zero, not {alpha!r}.")
        return lambda weights: _lora(weights, rank, alpha)


def _lora(weights, rank, alpha):
    import torch
    from torch import nn

    pairs = {}
    for weight in weights:
        linear = isinstance(weight.module, nn.Linear)
        convolution = isinstance(weight.module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and weight.module.groups == 1
        if (linear or convolution) and weight.name.endswith("weight"):
            value = weight.parameter
            rows, columns = len(value), value[0].numel()
            inner = min(rank, rows, columns)
            down = torch.empty(inner, columns, device="cpu")
            nn.init.kaiming_uniform_(down, a=5**0.5)  # on the CPU, so that every device draws the same
            up = value.new_zeros(rows, inner)
            pairs[weight.name] = (value, nn.Parameter(up), nn.Parameter(down.to(value)))

    def computed():
        return {
            name: value.detach() + (alpha / rank) * (up @ down).view_as(value)
            for name, (value, up, down) in pairs.items()
        }

    return Adapted([factor for _, *factors in pairs.values() for factor in factors], computed)


def _is_norm(module):
    """By torch's base classes and, for timm's own norms, by name."""
    from torch import nn

    return (
        isinstance(module, nn.modules.batchnorm._NormBase | nn.LayerNorm | nn.GroupNorm)
        or "Norm" in type(module).__name__
    )
