"""The method `logistic`: a multinomial logistic regression, fitted to convergence."""

from typing import ClassVar

from autotl import PENALTIES, FittedHead, Phase, PlanError, hookimpl

CLASS_WEIGHTS = ("none", "balanced", "effective")


@hookimpl
def register_methods(register):
    register("logistic", Logistic, summary="Logistic regression by L-BFGS, with one or several L2 penalties")


def probe(cut, class_weights="none"):
    """A phase that fits the head by this method; the penalty with the lowest loss on held-out images is kept."""
    return Phase(method="logistic", frozen=cut, options=penalised(class_weights))


def penalised(class_weights):
    """The options of a classifier with a penalty and class weights."""
    return {"penalty": list(PENALTIES), **({} if class_weights == "none" else {"class_weights": class_weights})}


class Logistic:
    """`penalty` and `class_weights` are those of `autotl.logistic_path`: one fit covers all penalties."""

    by_default = True
    options = ("penalty",)
    defaults: ClassVar = {"class_weights": "none"}

    def suggest(self, trial, context):
        return penalised(context.class_weights())

    def fit(self, features, labels, classes, options, step):
        from autotl import logistic_path

        penalties, class_weights = positive("logistic", "penalty", options), one_weighting("logistic", options)
        heads = logistic_path(features, labels, classes, penalties, step, class_weights)
        return [
            FittedHead(head.weight, head.bias, {"penalty": penalty})
            for head, penalty in zip(heads, penalties, strict=True)
        ]


def positive(method, name, options):
    """The values of a method's option. Raises: PlanError unless all are above zero."""
    values = options[name]
    if not all(isinstance(value, int | float) and value > 0 for value in values):
        raise PlanError(f"{name} of {method} must be above zero, or a list of values above zero, not {values}.")
    return values


def one_weighting(method, options):
    """The value of a method's option `class_weights`. Raises: PlanError unless it is a single valid one."""
    given = options["class_weights"]
    if len(given) != 1 or given[0] not in CLASS_WEIGHTS:
        raise PlanError(f"class_weights of {method} must be one of {', '.join(CLASS_WEIGHTS)}, not {given}.")
    return given[0]
