"""The interface of observers, which follow a training and may end it."""

from collections.abc import Mapping
from typing import Protocol


class Enough(Exception):
    """Raised by an observer to end a training and keep the best epoch of the current phase.

    It propagates if no epoch of that phase has been evaluated yet.
    """


class Observer(Protocol):
    """Called by the engine during training. An exception from a method ends the training; `Enough` keeps its result."""

    may_have_enough: bool
    """Whether it may raise `Enough`: only then are the weights kept after each epoch."""

    def step(self) -> None:
        """Called after every batch and every iteration of a solver; must be quick."""

    def epoch(self, phase: int, epoch: int, facts: Mapping[str, float]) -> None:
        """Called after every epoch; phases and epochs count from 1, epoch 0 is the state before a phase."""

    def note(self, text: str) -> None:
        """One line that the user should read."""


class Nobody:
    """An observer that does nothing."""

    may_have_enough = False

    def step(self) -> None: ...
    def epoch(self, phase: int, epoch: int, facts: Mapping[str, float]) -> None: ...
    def note(self, text: str) -> None: ...
