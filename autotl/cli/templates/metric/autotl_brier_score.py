from autotl import hookimpl


class BrierScore:
    greater_is_better = False

    def __call__(self, labels, probabilities):
        wrong = probabilities.copy()
        wrong[range(len(labels)), labels] -= 1
        return (wrong**2).sum(1).mean()


@hookimpl
def register_metrics(register):
    register("brier-score", BrierScore, summary="Mean squared error of the probabilities; smaller is better")
