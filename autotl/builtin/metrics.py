"""The metrics by which a search selects: accuracy, balanced accuracy, macro F1, log-loss, ROC AUC, top-5 accuracy."""

from importlib import import_module

from autotl import hookimpl

TOP = 5
LEAST = 2.0**-52
"""The smallest probability that log-loss tells from 0."""


@hookimpl
def register_metrics(register):
    register("accuracy", Accuracy, summary="Share of images whose most probable class is the right one")
    register("balanced-accuracy", lambda: _of_classes("balanced_accuracy"), summary="Mean recall of the classes")
    register("macro-f1", lambda: _of_classes("macro_f1"), summary="Mean F1 of the classes")
    register("log-loss", LogLoss, summary="Mean -log of the right class's probability, in nats; smaller is better")
    register("roc-auc", RocAuc, summary="Area under the ROC curve; of several classes the mean, each against the rest")
    register("top-5", TopFive, summary="Share of images whose right class is among the five most probable")


def _of_classes(name):
    return getattr(import_module("autotl.builtin.class_means"), name)()


class Accuracy:
    greater_is_better = True
    percent = True

    def __call__(self, labels, probabilities):
        return self._right(labels, probabilities).mean()

    def interval(self, labels, probabilities, units):
        from autotl import share_interval

        return share_interval(self._right(labels, probabilities), units)

    def _right(self, labels, probabilities):
        """[N] booleans."""
        return probabilities.argmax(1) == labels


class TopFive(Accuracy):
    """Of equally probable classes the first ones count, as in `argmax`."""

    def _right(self, labels, probabilities):
        classes = probabilities.shape[1]
        if classes <= TOP:
            raise ValueError(f"it needs more than {TOP} classes, and there are {classes}")
        first = (-probabilities).argsort(1, kind="stable")[:, :TOP]
        return (first == labels[:, None]).any(1)


class LogLoss:
    """As scikit-learn's `log_loss`, which also counts a probability as at least `LEAST`."""

    greater_is_better = False

    def __call__(self, labels, probabilities):
        import numpy as np

        return -np.log(np.maximum(probabilities[np.arange(len(labels)), labels], LEAST)).mean()


class RocAuc:
    """As scikit-learn's `roc_auc_score`: of two classes that of the second, of several (`multi_class="ovr"`) the mean
    over classes of each against the rest. Classes without an image are skipped."""

    greater_is_better = True
    class_weights = "balanced"

    def __call__(self, labels, probabilities):
        import numpy as np
        from scipy.stats import rankdata

        classes, sizes = np.unique(labels, return_counts=True)
        if len(classes) < 2:
            raise ValueError("it needs images of two classes, and there are only images of one")
        # The area is the share of pairs, of an image of the class and another, that are in the right order (Mann and
        # Whitney 1947). From ranks it takes a tenth of scikit-learn's time.
        shown = classes[-1:] if probabilities.shape[1] == 2 else classes
        ranks, images = rankdata(probabilities[:, shown], axis=0), sizes[-len(shown) :]
        above = (ranks * (labels[:, None] == shown)).sum(0) - images * (images + 1) / 2
        return (above / (images * (len(labels) - images))).mean()
