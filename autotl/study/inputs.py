"""How the images of a study are prepared: decided here alone, from a backbone's card and the shapes of the images."""

from collections.abc import Iterable, Iterator

from autotl.backbones.catalogue import Catalogue
from autotl.contracts import Shapes
from autotl.plan import BITS, Input, Mode, Network

MUCH = 0.35
"""The share of the median image that may be cut away before there is a choice of modes: it is 0.25 of photos of 4:3,
0.33 of 3:2, 0.44 of 16:9, 0.67 of 3:1."""
WHOLE: Mode = "squash"
"""How the whole image is seen for a backbone that was trained on crops, before anything is drawn: unlike padding it
leaves nothing of the input unused."""


class Inputs:
    """The ways to prepare the images of a study for its backbones."""

    def __init__(self, catalogue: Catalogue, shapes: Shapes) -> None:
        self._catalogue, self._shapes = catalogue, shapes

    @property
    def searched(self) -> bool:
        """Whether the shapes call for a choice of the mode."""
        return self._shapes.cut_away > MUCH

    def first(self, name: str) -> Input:
        """How the probe, the first guesses and the controls see the images."""
        return self.sizes(name, self._first_mode(name))[0]

    def firsts(self, names: Iterable[str]) -> list[Input]:
        """Each of their `first` inputs once."""
        return list(dict.fromkeys(map(self.first, names)))

    def network(self, name: str, seed: int) -> Network:
        """A backbone with its weights at its `first` input."""
        return self._catalogue.network(name, seed, self.first(name))

    def guess(self, name: str) -> dict[str, object]:
        """The parameters of a trial that lead to the `first` input."""
        return {"input_size": 0.0, **({"input_mode": self._first_mode(name)} if self.searched else {})}

    def sizes(self, name: str, mode: Mode) -> list[Input]:
        """Every size in a mode, the backbone's own first; where none is searched, the mode is the backbone's own."""
        own, *others = self._catalogue.inputs(name)
        # Beyond the size of the images themselves there is nothing more to see: of whole ones that is the long side.
        shorter = self._shapes.image_size
        seen = shorter / (1 - self._shapes.cut_away) if self.searched and mode != "crop" else shorter
        options = [own, *(input for input in others if own.size < input.size <= seen)]
        depth = {"bits": self._shapes.bits}
        return [(input.by(mode) if self.searched else input).model_copy(update=depth) for input in options]

    def notes(self) -> Iterator[str]:
        """What a user should know of how images are prepared."""
        if self.searched:
            yield (
                f"A crop would cut away {self._shapes.cut_away:.0%} of an image. So the whole image is used at first, "
                "and the search tries crop, squash and pad."
            )
        if self._shapes.bits < BITS:
            yield (
                f"Integer images use {self._shapes.bits} of {BITS} bits: values from 0 to "
                f"{2**self._shapes.bits - 1:,} are scaled to 0 to 255, and larger ones become 255."
            )

    def _first_mode(self, name: str) -> Mode:
        own = self._catalogue.card(name).input.mode
        return WHOLE if self.searched and own == "crop" else own
