"""The objectives `cross-entropy` and `focal`."""

from autotl import PlanError, hookimpl


@hookimpl
def register_objectives(register):
    register("cross-entropy", CrossEntropy, summary="The usual loss of a classifier")
    register("focal", Focal, summary="Cross-entropy with less weight on easy images (Lin et al. 2017)")


class CrossEntropy:
    by_default = True

    def suggest(self, trial, context):
        return {}

    def build(self, params):
        from torch.nn.functional import cross_entropy

        return lambda logits, targets, weights: cross_entropy(logits, targets, weights)


class Focal:
    """Each image counts by (1 - p)^gamma, with the probability p of its class (Lin et al. 2017, arXiv 1708.02002).

    gamma 0 is cross-entropy. The paper finds 0.5 to 5 useful, and 2 best.
    """

    def suggest(self, trial, context):
        return {"gamma": trial.suggest_float("focal.gamma", 0.5, 5)}

    def build(self, params):
        gamma = params.get("gamma", 2.0)
        if set(params) - {"gamma"} or not isinstance(gamma, int | float) or gamma < 0:
            raise PlanError(f"focal has one parameter, gamma, of 0 or more, not {params}.")

        def loss(logits, targets, weights):
            log_shares = logits.log_softmax(1)
            easy = (1 - log_shares.exp()).clamp(min=0) ** gamma
            return -(weights * targets * easy * log_shares).sum(1).mean()

        return loss
