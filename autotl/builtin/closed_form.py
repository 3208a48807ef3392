"""The method `closed-form`: a multinomial logistic regression, fitted to its minimum."""

from autotl import FittedHead, PlanError, hookimpl


@hookimpl
def register_methods(register):
    register("closed-form", ClosedForm, summary="Logistic regression to its minimum, at one L2 penalty or several")


class ClosedForm:
    """`penalty` is that of `autotl.logistic_path`: of several, all are fitted in one go."""

    options = ("penalty",)

    def fit(self, features, labels, classes, options, step):
        from autotl import logistic_path

        penalties = options["penalty"]
        if not all(isinstance(penalty, int | float) and penalty > 0 for penalty in penalties):
            raise PlanError(f"closed-form needs a penalty above zero, or a list of such, not {penalties}.")
        heads = logistic_path(features, labels, classes, penalties, step)
        return [
            FittedHead(head.weight, head.bias, {"penalty": penalty})
            for head, penalty in zip(heads, penalties, strict=True)
        ]
