"""The methods that train by gradient descent: `gradient-descent`, and `sam`, which looks for flat minima."""

from typing import ClassVar

from autotl import PlanError, hookimpl


@hookimpl
def register_methods(register):
    register("gradient-descent", GradientDescent, summary="A step of the optimizer along the gradient of each batch")
    register("sam", Sam, summary="Sharpness-aware minimisation: two gradients per step (Foret et al. 2021)")


class GradientDescent:
    by_default = True
    options = ()

    def suggest(self, trial, context):
        return {}

    def step(self, batch, options):
        batch.gradients()
        batch.update()


class Sam:
    """The step follows the gradient at the worst point nearby, at a distance of about `rho` (Foret et al. 2021, arXiv
    2010.01412)."""

    options = ()
    defaults: ClassVar = {"rho": 0.05}

    def suggest(self, trial, context):
        return {"rho": trial.suggest_float("sam.rho", 0.01, 0.5, log=True)}

    def step(self, batch, options):
        import torch

        rho = options["rho"]
        if not isinstance(rho, int | float) or rho <= 0:
            raise PlanError(f"rho of sam must be above zero, not {rho!r}.")
        batch.gradients()
        with torch.no_grad():
            moved = [parameter for parameter in batch.parameters if parameter.grad is not None]
            norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in moved])
            before = [parameter.clone() for parameter in moved]
            for parameter in moved:
                parameter.add_(parameter.grad * (rho / (norm + 1e-12)))
        batch.gradients()
        with torch.no_grad():
            for parameter, start in zip(moved, before, strict=True):
                parameter.copy_(start)
        batch.update()
