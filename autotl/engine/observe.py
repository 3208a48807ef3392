"""Who watches a training while it goes on, and may end it."""

from collections.abc import Mapping
from typing import Protocol


class Enough(Exception):
    """Raised by an observer to end a training and keep the best epoch of the phase that runs.

    It comes through where no epoch of that phase has been judged yet.
    """


class Observer(Protocol):
    """Told by the engine what happens. Whatever a method raises ends the training; `Enough` keeps what it made."""

    may_have_enough: bool
    """Whether it may raise `Enough`: only then are the weights kept after each epoch for it."""

    def step(self) -> None:
        """Called after every batch and every iteration of a solver; must be quick."""

    def epoch(self, phase: int, epoch: int, facts: Mapping[str, float]) -> None:
        """Called after every epoch; phases and epochs count from 1, epoch 0 is what a phase begins with."""

    def note(self, text: str) -> None:
        """One line that the user should read."""


class Nobody:
    """An observer that lets everything go its way."""

    may_have_enough = False

    def step(self) -> None: ...
    def epoch(self, phase: int, epoch: int, facts: Mapping[str, float]) -> None: ...
    def note(self, text: str) -> None: ...
