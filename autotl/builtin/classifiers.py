"""Other linear classifiers on frozen features than the logistic regression: `ridge`, `svm`, `nearest-class-mean`.

Their scores are no log-probabilities. So they are divided by their standard deviation over the training images and by a
temperature (Guo et al. 2017, arXiv 1706.04599), which is chosen with the penalty, by the log-loss on held-out images.
"""

from typing import ClassVar

from autotl import FittedHead, hookimpl
from autotl.builtin.logistic import one_weighting, penalised, positive

TEMPERATURES = tuple(2.0 ** (power / 2) for power in range(-8, 3))
"""From nearly certain to nearly uniform probabilities. Between two of them the log-loss changes by a few percent."""
BIAS_SCALE = 10.0
"""liblinear also penalises the bias; at this scale its penalty is a hundredth of that of a weight."""


@hookimpl
def register_methods(register):
    register("ridge", Ridge, summary="Least squares on the classes as targets, with one or several L2 penalties")
    register("svm", Svm, summary="Linear support vector machine, one class against the rest, squared hinge loss")
    register("nearest-class-mean", NearestClassMean, summary="The class whose mean feature is nearest")


class Penalised:
    """`penalty` is relative to the mean loss over images; `class_weights` is as in `logistic`."""

    name: str
    options = ("penalty", "temperature")
    defaults: ClassVar = {"class_weights": "none"}

    def suggest(self, trial, context):
        return {**penalised(context.class_weights()), "temperature": list(TEMPERATURES)}

    def fit(self, features, labels, classes, options, step):
        from autotl import Scaling, weights_of

        penalties, temperatures = (positive(self.name, option, options) for option in self.options)
        scaling = Scaling.of(features)
        scaled = scaling.apply(features)
        weights = weights_of(one_weighting(self.name, options), labels, classes)[labels]
        heads = []
        for penalty, line in zip(penalties, self.path(scaled, labels, classes, weights, penalties), strict=True):
            step()
            heads += [
                FittedHead(head.weight, head.bias, {"penalty": penalty, "temperature": temperature})
                for temperature, head in _tempered(line, scaled, scaling, temperatures)
            ]
        return heads

    def path(self, features, labels, classes, weights, penalties):
        """Yields weight and bias, on standardised features, for each penalty. weights: of each image."""
        raise NotImplementedError


class Ridge(Penalised):
    """Minimises the mean of ‖y - Wx - b‖² plus penalty · ‖W‖², with y one-hot: one linear system for each penalty."""

    name = "ridge"

    def path(self, features, labels, classes, weights, penalties):
        import torch
        from torch.nn.functional import one_hot

        precise = torch.float32 if features.device.type == "mps" else torch.float64
        weights, count = weights.to(precise)[:, None], len(features)
        features, targets = features.to(precise), one_hot(labels, classes).to(precise)
        centre, mean = ((weights * value).sum(0) / weights.sum() for value in (features, targets))
        rooted = weights.sqrt()
        features, targets = rooted * (features - centre), rooted * (targets - mean)
        wide = features.shape[1] > count  # then the equivalent system of images is smaller
        gram = (features @ features.T if wide else features.T @ features) / count
        right = (targets if wide else features.T @ targets) / count
        identity = torch.eye(len(gram), dtype=precise, device=features.device)
        for penalty in penalties:
            solution = torch.cholesky_solve(right, torch.linalg.cholesky(gram + penalty * identity))
            weight = (features.T @ solution if wide else solution).T
            yield weight.float(), (mean - weight @ centre).float()


class Svm(Penalised):
    """Minimises, for each class against the rest, the mean squared hinge loss plus penalty / 2 · ‖w‖²; with liblinear
    (Fan et al. 2008)."""

    name = "svm"

    def path(self, features, labels, classes, weights, penalties):
        import torch
        from sklearn.svm import LinearSVC

        inputs = [value.double().cpu().numpy() for value in (features, weights)]
        for penalty in penalties:
            strength = 1 / (penalty * len(features))
            machine = LinearSVC(C=strength, dual=False, intercept_scaling=BIAS_SCALE, random_state=0).fit(
                inputs[0], labels.cpu().numpy(), sample_weight=inputs[1]
            )
            weight, bias = (torch.from_numpy(found).to(features) for found in (machine.coef_, machine.intercept_))
            # Of two classes, it returns the score of the second.
            yield (torch.cat([-weight, weight]), torch.cat([-bias, bias])) if classes == 2 else (weight, bias)


class NearestClassMean:
    """By Euclidean distance on standardised features (Mensink et al. 2013): |x - m|² is smallest where x·m - |m|²/2 is
    largest, which is linear. It has no penalty, so it shows what fitting one is worth."""

    options = ("temperature",)

    def suggest(self, trial, context):
        return {"temperature": list(TEMPERATURES)}

    def fit(self, features, labels, classes, options, step):
        from torch.nn.functional import one_hot

        from autotl import Scaling

        step()
        scaling = Scaling.of(features)
        scaled = scaling.apply(features)
        member = one_hot(labels, classes).to(scaled.dtype)
        means = member.T @ scaled / member.sum(0).clamp(min=1)[:, None]
        line = means, -means.square().sum(1) / 2
        return [
            FittedHead(head.weight, head.bias, {"temperature": temperature})
            for temperature, head in _tempered(
                line, scaled, scaling, positive("nearest-class-mean", "temperature", options)
            )
        ]


def _tempered(line, scaled, scaling, temperatures):
    """For each temperature, it and the head on raw features whose logits are the scores of a line, (weight, bias), on
    scaled features, divided by their standard deviation and the temperature."""
    from autotl import LinearHead

    weight, bias = line
    scores = scaled @ weight.T + bias
    spread = (scores - scores.mean(1, keepdim=True)).square().mean().sqrt().clamp(min=1e-12)
    for temperature in temperatures:
        yield temperature, scaling.fold(LinearHead(weight / (spread * temperature), bias / (spread * temperature)))
