"""How the probabilities of a model were calibrated, as plain data; see `engine.temperature`."""

from autotl.plan import Record


class Calibration(Record):
    """The temperature of a model's probabilities; 1 if another one did not lower the log-loss in cross-validation."""

    temperature: float
    images: int
    """How many predictions it was chosen by, of images that those models had not been trained on."""
    before: float
    """The log-loss of these predictions."""
    after: float
    """The same with the temperature, in cross-validation."""
