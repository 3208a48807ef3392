"""Head2Toe (Evci et al. 2022, arXiv 2201.03529): one linear classifier on the best features of all stages.

The most useful features for new images are often in the middle of a frozen backbone. A linear probe must choose one
cut. Head2Toe uses all stages: it scores each feature by the weight that a first, regularised fit gives it, and fits
the classifier only on the features with the highest scores.
"""

from autotl import Head, Phase, hookimpl

KEEP = [0.02, 0.05, 0.1, 0.2, 0.5]
"""Shares of all features. The paper keeps 0.05 % to 10 % of about ten times as many features."""
PENALTIES = [1e-3, 1e-2, 1e-1, 1.0]
"""L2 penalties of the classifier. One fit covers all shares and penalties, so they are not searched."""


@hookimpl
def register_strategies(register):
    register("head2toe", Head2Toe, summary="Frozen backbone, linear classifier on selected features of all stages")


@hookimpl
def register_methods(register):
    def load():
        from autotl_head2toe.selection import Select

        return Select()

    register("head2toe", load, summary="Scores features by ridge or group lasso; logistic regression on the best")


class Head2Toe:
    first_guess = {"head2toe.scores": "group-lasso", "head2toe.strength": 0.1}

    def suggest(self, trial, context):
        backbone, input = context.backbone(), context.input()
        cut = backbone.names[-1]
        pooling = context.pooling(cut)
        taps = tuple(stage.name for stage in backbone.stages if stage.name != cut and pooling in stage.poolings)
        options = {
            "scores": trial.suggest_categorical("head2toe.scores", ["ridge", "group-lasso"]),
            "strength": trial.suggest_float("head2toe.strength", 1e-3, 0.5, log=True),
            "keep": KEEP,
            "penalty": PENALTIES,
            "class_weights": context.class_weights(),
        }
        phase = Phase(method="head2toe", frozen=cut, options=options)
        return context.plan(cut=cut, head=Head(pooling=pooling, taps=taps), phases=[phase], input=input)
