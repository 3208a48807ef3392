from autotl import Optimization, hookimpl


@hookimpl
def register_optimizers(register):
    register("rms-prop", RmsProp, summary="RMSprop, as EfficientNet was trained")


class RmsProp:
    def suggest(self, trial, context, pretrained):
        return Optimization(
            lr=trial.suggest_float("rms-prop.lr" if pretrained else "rms-prop.scratch_lr", 1e-5, 1e-2, log=True),
            head_lr=trial.suggest_float("rms-prop.head_lr", 1e-4, 1e-2, log=True),
            weight_decay=1e-5,
            params={"momentum": trial.suggest_float("rms-prop.momentum", 0.0, 0.95)},
        )

    def build(self, groups, params):
        from torch.optim import RMSprop

        return RMSprop(groups, eps=1e-3, **params)
