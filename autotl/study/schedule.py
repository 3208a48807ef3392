"""Which trainings a budget has time for, and with how many of their epochs."""

from collections.abc import Callable

from autotl.plan import Phase, TransferPlan

SHORTEST = 0.2
"""The smallest share of its epochs with which a training is begun: fewer say little of what a plan is worth."""


def longest(plan: TransferPlan, fits: Callable[[TransferPlan], bool], least: float) -> TransferPlan | None:
    """The plan with as many of its epochs as `fits` allows; None where it would be less than a share `least`."""
    most = max(1, *(phase.epochs for phase in plan.phases))
    shorter = (shortened(plan, epochs / most) for epochs in range(most, 0, -1) if epochs >= least * most)
    return next(filter(fits, shorter), None)


def shortened(plan: TransferPlan, share: float) -> TransferPlan:
    """The plan with a share of the epochs of each phase, and one at least; the rates fall as much faster."""

    def short(phase: Phase) -> Phase:
        epochs = max(1, round(share * phase.epochs))
        stop = phase.stop
        if stop and stop.at_epoch is not None:
            stop = stop.model_copy(update={"at_epoch": min(stop.at_epoch, epochs)})
        return phase.model_copy(update={"epochs": epochs, "stop": stop})

    phases = tuple(short(phase) if phase.by_gradient else phase for phase in plan.phases)
    return plan.model_copy(update={"phases": phases})
