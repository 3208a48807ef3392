"""The setups of the textbook that measure.py trains."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Setup(NamedTuple):
    """The first guess of a strategy with some parameters changed."""

    strategy: str
    changed: Mapping[str, Any] = {}
    options: Mapping[str, Any] = {}


def _fine_tune(lr: float, **changed: float) -> Setup:
    return Setup("fine-tune", {"adamw.lr": lr, **changed})


def _adapted(name: str) -> Setup:
    return Setup("fine-tune", {"adapter": name}, {"adapters": (name,)})


SETUPS = {
    "linear probe": Setup("linear-probe"),
    "linear probe, last cut": Setup("linear-probe", {"cut": 1.0}),
    "fine-tune 3e-3": _fine_tune(3e-3),
    "fine-tune 1e-3": _fine_tune(1e-3),
    "fine-tune 3e-4": _fine_tune(3e-4),
    "fine-tune 1e-4": _fine_tune(1e-4),
    "frozen third 1e-3": _fine_tune(1e-3, frozen=0.34),
    "frozen third 3e-4": _fine_tune(3e-4, frozen=0.34),
    "frozen two thirds 1e-3": _fine_tune(1e-3, frozen=0.67),
    "frozen two thirds 3e-4": _fine_tune(3e-4, frozen=0.67),
    "cut at three quarters 1e-3": _fine_tune(1e-3, cut=0.75),
    "cut at three quarters 3e-4": _fine_tune(3e-4, cut=0.75),
    "one learning rate 1e-3": Setup("full", {"adamw.lr": 1e-3}),
    "one learning rate 3e-4": Setup("full", {"adamw.lr": 3e-4}),
    "head first, then 1e-3": Setup("lp-ft", {"adamw.lr": 1e-3}),
    "head first, then 3e-4": Setup("lp-ft", {"adamw.lr": 3e-4}),
    "gradual unfreezing": Setup("gradual-unfreeze"),
    "work backwards": Setup("work-backwards"),
    "norm layers only": _adapted("norm"),
    "lora": _adapted("lora"),
    "scratch": Setup("scratch"),
}
