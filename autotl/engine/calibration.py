"""How the probabilities of a model were calibrated, as plain data; see `engine.temperature`."""

from autotl.plan import Record

ENOUGH = 30
"""The fewest predictions that can show how often such predictions are right."""


class Calibration(Record):
    """The temperature of a model's probabilities; 1 if another one did not lower the log-loss in cross-validation."""

    temperature: float
    images: int
    """How many predictions it was chosen by, of images that those models had not been trained on."""
    before: float
    """The log-loss of these predictions."""
    after: float
    """The same with the temperature, in cross-validation."""
    own: bool = False
    """Whether the model's classifier has chosen a temperature itself; then none is chosen here."""
    sure_from: float | None = None
    """The lowest probability of the predicted class at which nine predictions of ten were right; None if there is none
    with `ENOUGH` predictions from there on."""

    def certainty(self, probability: float) -> str:
        """`sure` or `unsure`; empty if there were too few predictions to tell."""
        if self.images < ENOUGH:
            return ""
        return "sure" if self.sure_from is not None and probability >= self.sure_from else "unsure"
