"""The method `logistic`: a multinomial logistic regression, fitted to convergence."""

from typing import ClassVar

from autotl import PENALTIES, FittedHead, Phase, PlanError, hookimpl

CLASS_WEIGHTS = ("none", "balanced", "effective")


@hookimpl
def register_methods(register):
    register("logistic", Logistic, summary="Logistic regression by L-BFGS, with one or several L2 penalties")


def probe(cut, class_weights="none"):
    """A phase that fits the head by this method; the penalty with the lowest loss on held-out images is kept."""
    weighted = {} if class_weights == "none" else {"class_weights": class_weights}
    return Phase(method="logistic", frozen=cut, options={"penalty": list(PENALTIES), **weighted})


class Logistic:
    """`penalty` and `class_weights` are those of `autotl.logistic_path`: one fit covers all penalties."""

    options = ("penalty",)
    defaults: ClassVar = {"class_weights": "none"}

    def fit(self, features, labels, classes, options, step):
        from autotl import logistic_path

        penalties, (class_weights, *others) = options["penalty"], options["class_weights"]
        if others or class_weights not in CLASS_WEIGHTS:
            given = [class_weights, *others]
            raise PlanError(f"class_weights of logistic must be one of {', '.join(CLASS_WEIGHTS)}, not {given}.")
        if not all(isinstance(penalty, int | float) and penalty > 0 for penalty in penalties):
            raise PlanError(f"penalty of logistic must be above zero, or a list of values above zero, not {penalties}.")
        heads = logistic_path(features, labels, classes, penalties, step, class_weights)
        return [
            FittedHead(head.weight, head.bias, {"penalty": penalty})
            for head, penalty in zip(heads, penalties, strict=True)
        ]
