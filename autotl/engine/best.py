"""The best epoch of a phase: which one it is, and a copy of its weights."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor


class Best:
    """Keeps the epoch with the lowest loss on `early_stop`, to restore it; without patience, the last epoch."""

    def __init__(self, state: Mapping[str, Tensor], patience: int | None, *, started: bool, kept: bool) -> None:
        """`state` has the tensors that training changes, by name. `started`: whether an earlier phase has left a model,
        which then counts as epoch 0.

        `kept`: whether an epoch other than the last may be restored; if not, no weights are copied.
        """
        self._live = state
        self._patience = patience
        self._kept = kept
        self.epoch = 0
        self._facts: dict[str, float] = {}
        self._state: dict[str, Tensor] = {}
        self._loss = math.inf
        if started:
            self._copy()

    @property
    def seen(self) -> bool:
        """Whether there is anything to restore."""
        return bool(self._state)

    def see(self, epoch: int, facts: dict[str, float]) -> bool:
        """Whether to stop after this epoch."""
        if self._patience is None or facts["early_stop.loss"] < self._loss:
            self.epoch, self._facts, self._loss = epoch, facts, facts.get("early_stop.loss", math.inf)
            self._copy()
        return self._patience is not None and epoch - self.epoch >= self._patience

    @torch.no_grad()
    def _copy(self) -> None:
        """Into the same memory each time."""
        for name, tensor in self._live.items() if self._kept else ():
            if name in self._state:
                self._state[name].copy_(tensor)
            else:
                self._state[name] = tensor.clone()

    @torch.no_grad()
    def restore(self) -> dict[str, float]:
        """Restore the best epoch; returns its number and its metrics."""
        for name, kept in self._state.items():
            self._live[name].copy_(kept)
        measured = {name: value for name, value in self._facts.items() if "." in name}
        return {"best_epoch": self.epoch, **measured}
