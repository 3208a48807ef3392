"""The strategies that train stages: `fine-tune`, `lp-ft`, `gradual-unfreeze`, `work-backwards`, `full`, and the control
`scratch`.

Freezing keeps pretrained features, fine-tuning adapts them to the images, and a learning rate per stage is the
trade-off between the two. The first stages have the most general features (Yosinski et al. 2014, arXiv 1411.1792), so
their learning rates are the lowest.
"""

from autotl import Phase, hookimpl
from autotl.builtin import recipe

DEPTH_RATIO = (1e-2, 1.0)
"""The learning rate of a backbone's first stage divided by that of its last. timm's fine-tuning of ViTs uses a
layer-wise decay of 0.7 to 1 per block (after BEiT, arXiv 2106.08254), which is 0.014 to 1 over twelve blocks."""
GROUPS = ("low", "middle", "high")
GROUP_FACTOR = (1e-2, 3.0)
"""The factor of a third of the depth on the recipe's learning rate: from nearly frozen to faster than the rest."""


@hookimpl
def register_strategies(register):
    register("fine-tune", FineTune, summary="Cut, freeze the first stages, train the others with a learning rate each")
    register(
        "lp-ft", LinearProbeThenFineTune, summary="First the head by logistic regression, then head and stages together"
    )
    register("gradual-unfreeze", GradualUnfreeze, summary="First the head, then stages from the top, step by step")
    register("work-backwards", WorkBackwards, summary="The same, as long as it lowers the loss on early_stop")
    register("full", Full, summary="The whole network from pretrained weights, with one learning rate")
    register("scratch", Scratch, summary="The whole network from random weights: shows what pretraining is worth")


class FineTune:
    suits = ("few-similar", "few-different", "many-similar", "many-different")
    first_guess = {
        **recipe.BOLD,
        "cut": 1.0,
        "frozen": 0.0,
        "fine-tune.lr_scheme": "decay",
        "fine-tune.depth_ratio": 0.1,
    }

    def suggest(self, trial, context):
        setup = _Setup(trial, context)
        kind = trial.suggest_categorical("fine-tune.lr_scheme", ["decay", "groups"])
        if kind == "decay":
            stage_lr = setup.falling(trial.suggest_float("fine-tune.depth_ratio", *DEPTH_RATIO, log=True))
        else:
            factors = [trial.suggest_float(f"fine-tune.{group}", *GROUP_FACTOR, log=True) for group in GROUPS]
            stage_lr = setup.by_group(factors)
        return setup.plan([setup.phase(setup.frozen, stage_lr)])


class LinearProbeThenFineTune:
    """An untrained head would distort good features (Kumar et al. 2022, arXiv 2202.10054)."""

    suits = ("many-similar",)
    first_guess = {**recipe.FIRST_GUESS, "frozen": 0.0, "lp-ft.depth_ratio": 0.1}

    def suggest(self, trial, context):
        setup = _Setup(trial, context)
        stage_lr = setup.falling(trial.suggest_float("lp-ft.depth_ratio", *DEPTH_RATIO, log=True))
        return setup.plan([*setup.head_first(), setup.phase(setup.frozen, stage_lr)])


class GradualUnfreeze:
    """As in ULMFiT (Howard and Ruder 2018, arXiv 1801.06146): the top is unfrozen first, the bottom last."""

    suits = ("many-similar",)
    first_guess = {
        **recipe.FIRST_GUESS,
        "cut": 1.0,
        "frozen": 0.0,
        "gradual-unfreeze.depth_ratio": 0.1,
        "gradual-unfreeze.steps": 3,
    }

    def suggest(self, trial, context):
        setup = _Setup(trial, context)
        stage_lr = setup.falling(trial.suggest_float("gradual-unfreeze.depth_ratio", *DEPTH_RATIO, log=True))
        wanted = trial.suggest_int("gradual-unfreeze.steps", 2, 6)
        return setup.plan([*setup.head_first(), *setup.from_the_top(stage_lr, wanted)])


class WorkBackwards:
    """More stages are trained, from the top, only while that lowers the loss on `early_stop`; without that split all
    are."""

    by_default = False
    first_guess = {
        **recipe.FIRST_GUESS,
        "cut": 1.0,
        "frozen": 0.0,
        "work-backwards.depth_ratio": 0.1,
        "work-backwards.steps": 4,
    }

    def suggest(self, trial, context):
        setup = _Setup(trial, context)
        stage_lr = setup.falling(trial.suggest_float("work-backwards.depth_ratio", *DEPTH_RATIO, log=True))
        wanted = trial.suggest_int("work-backwards.steps", 2, 8)
        return setup.plan([*setup.head_first(), *setup.from_the_top(stage_lr, wanted, ends_plan=True)])


class Full:
    suits = ("many-different",)
    first_guess = recipe.BOLD

    def suggest(self, trial, context):
        setup = _Setup(trial, context, whole=True)
        return setup.plan([setup.phase(None, setup.falling(1.0))])


class Scratch:
    first_guess = {
        name: value for name, value in recipe.FIRST_GUESS.items() if name not in ("adamw.lr", "recipe.batch_norm")
    } | {"adamw.scratch_lr": 2e-3}

    def suggest(self, trial, context):
        setup = _Setup(trial, context, whole=True, from_scratch=True)
        return setup.plan([setup.phase(None, setup.falling(1.0))], pretrained=False)


class _Setup:
    """The common parts of these strategies: the network, its frozen stages, and the recipe."""

    def __init__(self, trial, context, *, whole=False, from_scratch=False):
        self.context = context
        self.names = context.backbone().names
        self.cut = self.names[-1] if whole else context.cut()
        self.frozen = None if whole else context.frozen(self.cut)
        self.head = context.head(self.cut)
        self.input = context.input()
        self.augmentation = context.augmentation()
        self.recipe = recipe.suggest(trial, context, pretrained=not from_scratch)

    @property
    def trained(self):
        """The stages after the frozen ones, up to the cut."""
        first = self.names.index(self.frozen) + 1 if self.frozen else 0
        return self.names[first : self.names.index(self.cut) + 1]

    def before(self, stage):
        """The stage before this one, None for the first."""
        at = self.names.index(stage)
        return self.names[at - 1] if at else None

    def falling(self, ratio):
        """A learning rate per trained stage, falling geometrically to `ratio` over the whole depth of the backbone."""
        top, depth = self.names.index(self.cut), max(1, len(self.names) - 1)
        return {name: self.recipe.lr * ratio ** ((top - self.names.index(name)) / depth) for name in self.trained}

    def by_group(self, factors):
        """A learning rate per trained stage, by the third of the backbone's depth that the stage is in."""
        third = {name: len(GROUPS) * at // len(self.names) for at, name in enumerate(self.names)}
        return {name: self.recipe.lr * factors[third[name]] for name in self.trained}

    def from_the_top(self, stage_lr, wanted, ends_plan=False):
        """Phases that each train more stages from the top; the last one trains all that are not permanently frozen."""
        trained = self.trained
        if not trained:
            return [self.phase(self.frozen, {})]
        steps = min(wanted, len(trained))
        tops = [trained[len(trained) * (steps - step) // steps :] for step in range(1, steps + 1)]
        return [
            self.phase(
                self.before(top[0]), {name: stage_lr[name] for name in top}, share=1 / steps, ends_plan=ends_plan
            )
            for top in tops
        ]

    def head_first(self):
        """The phase that trains the head before any stage: a classifier is fitted, unless the head is not linear.

        Without any stage to train, a head that is not linear needs no such phase, because the next one is the same.
        """
        if self.head.kind == "linear":
            classifier = self.context.classifier()
            return [Phase(method=classifier.name, frozen=self.cut, options=classifier.params)]
        return [self.phase(self.cut, {})] if self.trained else []

    def phase(self, frozen, stage_lr, share=1.0, ends_plan=False):
        """A phase with this share of the recipe's epochs."""
        return self.recipe.phase(
            frozen,
            stage_lr,
            epochs=max(1, round(share * self.recipe.epochs)),
            stop=self.context.data.has_early_stop,
            augmented=self.augmentation.name != "none",
            ends_plan=ends_plan,
        )

    def plan(self, phases, pretrained=True):
        return self.context.plan(
            cut=self.cut,
            head=self.head,
            phases=phases,
            input=self.input,
            augmentation=self.augmentation,
            pretrained=pretrained,
        )
