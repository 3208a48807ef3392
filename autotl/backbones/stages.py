"""A backbone as an ordered list of stages; `splitting` makes it from a network."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from autotl.contracts import Boundary
from autotl.errors import PlanError, PluginError, reason, unknown


@dataclass(frozen=True)
class Piece:
    """The computation from one boundary to the next, as functions of a module that has what they use."""

    evaluate: Callable[[nn.Module, Tensor], Any]
    train: Callable[[nn.Module, Tensor], Any]
    uses: tuple[str, ...]
    """Modules, parameters and buffers, by their names in the original network."""
    code: str
    """Its graphs as Python code."""

    def has(self, tensor: str) -> bool:
        """Whether it uses a parameter or buffer, by itself or as part of a module."""
        return any(tensor == used or tensor.startswith(f"{used}.") for used in self.uses)


class Stages(nn.Module):
    """A backbone as an ordered list of stages, without what followed the last boundary.

    Its state dict is the remaining part of the original network's, under the original names.
    """

    def __init__(self, source: nn.Module, boundaries: Sequence[Boundary], pieces: Sequence[Piece]) -> None:
        """Shares with `source` the modules and tensors that the pieces use."""
        super().__init__()
        self.boundaries = tuple(boundaries)
        self.pieces = tuple(pieces)
        self._frozen = 0
        self.training = source.training
        for piece in pieces:
            _share(source, self, piece.uses)
        self._owned = _share_out(self.state_dict(keep_vars=True), pieces)
        self._undecayed = _undecayed(source)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(boundary.name for boundary in self.boundaries)

    @property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of the stage list: each stage's name, and the names and shapes of its state."""
        state = self.state_dict()
        listing = [
            [name, [[key, list(state[key].shape)] for key in owned]]
            for name, owned in zip(self.names, self._owned, strict=True)
        ]
        return hashlib.sha256(json.dumps(listing).encode()).hexdigest()

    @property
    def graph(self) -> str:
        """SHA-256, in hex, of the traced graph: which modules and functions are called, on what, and in which order."""
        return hashlib.sha256(json.dumps([piece.code for piece in self.pieces]).encode()).hexdigest()

    def forward(self, images: Tensor, to: str | None = None, *, start: str | None = None) -> Tensor:
        """images: [N, 3, S, S] float → the value at the boundary `to`, by default the last.

        With `start`, `images` is the value at that boundary, and computation starts there.

        Raises: PlanError for an unknown boundary; ValueError if `to` comes before `start`.
        """
        done, goal = self._count(start), self._count(self.names[-1] if to is None else to)
        if goal < done:
            raise ValueError(f"The boundary '{to}' comes before '{start}'.")
        for index in range(done, goal):
            images = self._run(index, images)
        return images

    def walk(self, images: Tensor) -> Iterator[tuple[Boundary, Tensor]]:
        """images: [N, 3, S, S] float → the value at every boundary in turn, in one pass."""
        for index, boundary in enumerate(self.boundaries):
            images = self._run(index, images)
            yield boundary, images

    def cut(self, name: str) -> "Stages":
        """The stages up to and including `name`, which stay shared with these.

        Raises: PlanError for an unknown boundary.
        """
        count = self._count(name)
        kept = Stages(self, self.boundaries[:count], self.pieces[:count])
        kept._frozen = min(self._frozen, count)
        return kept

    def freeze(self, name: str | None) -> None:
        """Freezes the stages up to and including `name`, none if it is None, and trains the others.

        A frozen stage keeps its parameters, always runs in evaluation mode, and builds no autograd graph.

        Raises: PlanError for an unknown boundary.
        """
        self._frozen = self._count(name)
        for index, stage in enumerate(self.names):
            for parameter in self.stage_parameters(stage).values():
                parameter.requires_grad_(index >= self._frozen)
        self.train(self.training)

    def train(self, mode: bool = True) -> "Stages":
        super().train(mode)
        for piece in self.pieces[: self._frozen]:
            for used in map(self._find, piece.uses):
                if isinstance(used, nn.Module):
                    used.eval()
        return self

    def after(self, name: str | None) -> tuple[str, ...]:
        """The names of the stages after `name`, all if it is None.

        Raises: PlanError for an unknown boundary.
        """
        return self.names[self._count(name) :]

    def stage_parameters(self, name: str) -> dict[str, nn.Parameter]:
        """The parameters that are first used in a stage, by their names in the state dict.

        Raises: PlanError for an unknown boundary.
        """
        owned = {key: self._find(key) for key in self._owned[self._count(name) - 1]}
        return {key: tensor for key, tensor in owned.items() if isinstance(tensor, nn.Parameter)}

    def no_weight_decay(self) -> frozenset[str]:
        """The parameters that the network exempts from weight decay, by their names in its state dict."""
        return self._undecayed

    def uses(self, name: str) -> bool:
        """Whether a tensor of this name is or would be in a stage: its name is inside a module that a stage uses."""
        return any(piece.has(name) for piece in self.pieces)

    def trained_state(self) -> dict[str, Tensor]:
        """Parameters and buffers of the stages that are not frozen, by their names in the state dict; not copied."""
        return {key: self._find(key) for owned in self._owned[self._frozen :] for key in owned}

    def _run(self, index: int, value: Tensor) -> Tensor:
        piece = self.pieces[index]
        if index < self._frozen:
            with torch.no_grad():
                return piece.evaluate(self, value)
        return (piece.train if self.training else piece.evaluate)(self, value)

    def _count(self, name: str | None) -> int:
        """How many stages there are up to and including `name`."""
        if name is None:
            return 0
        if name not in self.names:
            raise PlanError(unknown("stage", name, self.names))
        return self.names.index(name) + 1

    def _find(self, name: str) -> Any:
        return attrgetter(name)(self)


class Tail(nn.Module):
    """The part of the network after the last boundary: the value there → the network's output."""

    def __init__(self, source: nn.Module, piece: Piece) -> None:
        super().__init__()
        self._piece = piece
        self.training = source.training
        _share(source, self, piece.uses)

    def forward(self, value: Tensor) -> Any:
        return (self._piece.train if self.training else self._piece.evaluate)(self, value)


def _share(source: nn.Module, target: nn.Module, names: Iterable[str]) -> None:
    """Registers in `target` the modules and tensors of `source` with these dotted names."""
    for name in names:
        *path, last = name.split(".")
        giver, taker = source, target
        for part in path:
            if part not in taker._modules:
                taker.add_module(part, nn.Module())
            giver, taker = giver.get_submodule(part), taker.get_submodule(part)
        given = getattr(giver, last)
        if isinstance(given, nn.Module):
            taker.add_module(last, given)
        elif isinstance(given, nn.Parameter):
            taker.register_parameter(last, given)
        else:
            saved = last in giver._buffers and last not in giver._non_persistent_buffers_set
            taker.register_buffer(last, given, persistent=saved)


def _undecayed(source: nn.Module) -> frozenset[str]:
    """The names from a network's `no_weight_decay()`, as in timm; empty if it has no such method.

    Raises: PluginError if that method fails.
    """
    try:
        return frozenset(getattr(source, "no_weight_decay", frozenset)())
    except Exception as error:
        raise PluginError(f"no_weight_decay() of {type(source).__name__} fails: {reason(error)}") from error


def _share_out(state: Mapping[str, Any], pieces: Iterable[Piece]) -> tuple[tuple[str, ...], ...]:
    """The names in the state that belong to each piece; a tensor that several use belongs to the first."""
    shares = []
    given: set[int] = set()
    for piece in pieces:
        share = {name: id(tensor) for name, tensor in state.items() if piece.has(name)}
        shares.append(tuple(name for name, tensor in share.items() if tensor not in given))
        given.update(share.values())
    return tuple(shares)
