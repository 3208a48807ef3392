"""The strategy `linear-probe`: the backbone as a fixed feature extractor with a linear classifier.

It suits small data sets. Late features are best if the images resemble those that the backbone was trained on,
earlier ones if they do not (Yosinski et al. 2014, arXiv 1411.1792), so the cut is searched.
"""

from autotl import Head, Phase, hookimpl


@hookimpl
def register_strategies(register):
    register("linear-probe", LinearProbe, summary="Frozen backbone, linear classifier on the cut's features")


class LinearProbe:
    is_probe = True
    suits = ("few-similar", "few-different")
    baselines = ("reference:pixels",)

    def suggest(self, trial, context):
        cut = context.cut()
        pooling, classifier = context.pooling(cut), context.classifier()
        return context.plan(
            cut=cut,
            head=Head(pooling=pooling),
            phases=[Phase(method=classifier.name, frozen=cut, options=classifier.params)],
            input=context.input(),
        )
