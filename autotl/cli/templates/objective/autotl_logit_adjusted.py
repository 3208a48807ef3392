from autotl import hookimpl


@hookimpl
def register_objectives(register):
    register("logit-adjusted", LogitAdjusted, summary="Larger margins for rare classes (Menon et al. 2021)")


class LogitAdjusted:
    def suggest(self, trial, context):
        return {"strength": trial.suggest_float("logit-adjusted.strength", 0.25, 2.0)}

    def build(self, params):
        from torch.nn.functional import cross_entropy

        def loss(logits, targets, weights):
            shares = targets.mean(0).clamp(min=1e-3)  # of the classes in this batch
            return cross_entropy(logits + params["strength"] * shares.log(), targets, weights)

        return loss
