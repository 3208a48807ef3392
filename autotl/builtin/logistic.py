"""The method `logistic`: a multinomial logistic regression, fitted to its minimum."""

from typing import ClassVar

from autotl import FittedHead, PlanError, hookimpl


@hookimpl
def register_methods(register):
    register("logistic", Logistic, summary="Logistic regression to its minimum, at one L2 penalty or several")


class Logistic:
    """`penalty` and `class_weights` are those of `autotl.logistic_path`: all penalties are fitted in one go."""

    options = ("penalty",)
    defaults: ClassVar = {"class_weights": "none"}

    def fit(self, features, labels, classes, options, step):
        from autotl import logistic_path

        penalties, (class_weights, *others) = options["penalty"], options["class_weights"]
        if others or class_weights not in ("none", "balanced"):
            raise PlanError(f"logistic takes class_weights none or balanced, not {[class_weights, *others]}.")
        if not all(isinstance(penalty, int | float) and penalty > 0 for penalty in penalties):
            raise PlanError(f"logistic needs a penalty above zero, or a list of such, not {penalties}.")
        heads = logistic_path(features, labels, classes, penalties, step, class_weights)
        return [
            FittedHead(head.weight, head.bias, {"penalty": penalty})
            for head, penalty in zip(heads, penalties, strict=True)
        ]
