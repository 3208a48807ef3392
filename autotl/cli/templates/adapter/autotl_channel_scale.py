from autotl import Adapted, hookimpl


@hookimpl
def register_adapters(register):
    register("channel-scale", ChannelScale, summary="One trained factor per output channel")


class ChannelScale:
    def suggest(self, trial, context):
        return {}

    def build(self, params):
        from torch import nn

        def adapt(weights):
            matrices = {weight.name: weight.parameter for weight in weights if weight.parameter.ndim > 1}
            factors = {
                name: nn.Parameter(value.new_ones(len(value), *[1] * (value.ndim - 1)))
                for name, value in matrices.items()
            }
            return Adapted(
                list(factors.values()),
                lambda: {name: factors[name] * value.detach() for name, value in matrices.items()},
            )

        return adapt
