from autotl import FittedHead, Head, Phase, PlanError, hookimpl


@hookimpl
def register_methods(register):
    register("nearest-mean", NearestMean, summary="The class whose mean is nearest")


@hookimpl
def register_strategies(register):
    register("nearest-mean", Strategy, summary="Frozen backbone, the class whose mean feature is nearest")


class Strategy:
    def suggest(self, trial, context):
        cut = context.cut()
        phase = Phase(method="nearest-mean", frozen=cut, options={"shrink": [0.0, 0.2, 0.5]})
        return context.plan(cut=cut, head=Head(pooling=context.pooling(cut)), phases=[phase], input=context.input())


class NearestMean:
    options = ("shrink",)

    def fit(self, features, labels, classes, options, step):
        from torch.nn.functional import one_hot

        step()
        middle = features.mean(0)
        spread = features.std(0).clamp(min=1e-6)
        scaled = (features - middle) / spread
        of_class = one_hot(labels, classes).float()
        means = (of_class.T @ scaled) / of_class.sum(0).clamp(min=1)[:, None]
        heads = []
        for shrink in options["shrink"]:
            if not 0 <= shrink < 1:
                raise PlanError(f"nearest-mean shrinks by 0 to 1, not {shrink}.")
            drawn = (1 - shrink) * means
            # |x - m|² is smallest where x·m - |m|²/2 is largest: a linear classifier.
            weight = drawn / spread
            heads.append(FittedHead(weight, -drawn.square().sum(1) / 2 - weight @ middle, {"shrink": shrink}))
        return heads
