"""Shortening a plan's epochs to the time that a budget has left."""

from collections.abc import Callable

from autotl.plan import Phase, TransferPlan

SHORTEST = 0.2
"""The smallest share of its epochs with which a training is started; fewer say little about a plan."""


def longest(plan: TransferPlan, fits: Callable[[TransferPlan], bool], least: float) -> TransferPlan | None:
    """The plan with as many of its epochs as `fits` allows; None if that is less than a share `least`."""
    most = max((training.epochs for training in plan.trainings), default=1)
    shorter = (shortened(plan, epochs / most) for epochs in range(most, 0, -1) if epochs >= least * most)
    return next(filter(fits, shorter), None)


def shortened(plan: TransferPlan, share: float) -> TransferPlan:
    """The plan with a share of the epochs of each phase, at least one; the learning rates decay faster accordingly."""

    def short(phase: Phase) -> Phase:
        if phase.training is None:
            return phase
        epochs = max(1, round(share * phase.training.epochs))
        stop = phase.training.stop
        if stop and stop.at_epoch is not None:
            stop = stop.model_copy(update={"at_epoch": min(stop.at_epoch, epochs)})
        return phase.trained_by(epochs=epochs, stop=stop)

    return plan.model_copy(update={"phases": tuple(map(short, plan.phases))})
