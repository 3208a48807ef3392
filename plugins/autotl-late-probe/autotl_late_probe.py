from autotl import Head, Phase, hookimpl


class LateProbe:
    def suggest(self, trial, context):
        cut, penalty = context.backbone().names[-1], trial.suggest_float("late-probe.penalty", 1e-4, 1, log=True)
        phase = Phase(method="logistic", frozen=cut, options={"penalty": penalty})
        return context.plan(cut=cut, head=Head(pooling="avg"), phases=[phase])


@hookimpl
def register_strategies(register):
    register("late-probe", LateProbe, summary="A linear classifier on the last stage")
