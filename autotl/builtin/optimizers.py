"""The optimizers `adamw` and `sgd`, with their ranges of learning rates and weight decay."""

from autotl import Optimization, PlanError, hookimpl


@hookimpl
def register_optimizers(register):
    register("adamw", AdamW, summary="Adam with decoupled weight decay (Loshchilov and Hutter 2019)")
    register("sgd", Sgd, summary="SGD with Nesterov momentum")


class AdamW:
    """Learning rates of timm's fine-tuning of ViT and ConvNeXt; arXiv 1711.05101."""

    by_default = True

    def suggest(self, trial, context, pretrained):
        return Optimization(
            # From random weights: timm's and torchvision's recipes for training on ImageNet.
            lr=trial.suggest_float("adamw.lr", 1e-5, 3e-3, log=True)
            if pretrained
            else trial.suggest_float("adamw.scratch_lr", 3e-4, 1e-2, log=True),
            head_lr=trial.suggest_float("adamw.head_lr", 3e-4, 3e-2, log=True),
            weight_decay=trial.suggest_float("adamw.weight_decay", 1e-3, 0.3, log=True),
        )

    def build(self, groups, params):
        from torch.optim import AdamW

        if params:
            raise PlanError(f"The optimizer adamw has no parameters besides learning rates and weight decay: {params}.")
        return AdamW(groups, fused=True)


class Sgd:
    """The grid of Kornblith et al. 2019, arXiv 1805.08974."""

    by_default = True

    def suggest(self, trial, context, pretrained):
        return Optimization(
            lr=trial.suggest_float("sgd.lr", 1e-4, 1e-1, log=True)
            if pretrained
            else trial.suggest_float("sgd.scratch_lr", 1e-2, 0.5, log=True),
            head_lr=trial.suggest_float("sgd.head_lr", 1e-2, 1.0, log=True),
            weight_decay=trial.suggest_float("sgd.weight_decay", 1e-6, 1e-3, log=True),
        )

    def build(self, groups, params):
        from torch.optim import SGD

        momentum = params.get("momentum", 0.9)
        if set(params) - {"momentum"} or not isinstance(momentum, int | float) or not 0 <= momentum < 1:
            raise PlanError(f"The optimizer sgd has one parameter, momentum, from 0 to below 1, not {params}.")
        return SGD(groups, momentum=momentum, nesterov=momentum > 0, fused=True)
