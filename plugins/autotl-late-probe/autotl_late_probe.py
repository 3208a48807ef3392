from autotl import Head, Phase, hookimpl


class LateProbe:
    def suggest(self, trial, context):
        cut = context.backbone().names[-1]
        penalty = trial.suggest_float("late-probe.penalty", 1e-4, 1, log=True)
        probe = Phase(method="logistic", frozen=cut, options={"penalty": penalty})
        return context.plan(cut=cut, head=Head(pooling="avg"), phases=[probe])


@hookimpl
def register_strategies(register):
    register("late-probe", LateProbe, summary="A linear classifier on the last stage")
