"""How the images of a study are prepared, from a backbone's card and the shapes of the images."""

from collections.abc import Iterable, Iterator

from autotl.backbones.catalogue import Catalogue
from autotl.contracts import Shapes
from autotl.plan import BITS, Input, Mode, Network

MUCH = 0.35
"""The modes are searched if a crop cuts away more than this share of the median image. It is 0.25 for photos of 4:3,
0.33 for 3:2, 0.44 for 16:9, 0.67 for 3:1."""
WHOLE: Mode = "squash"
"""The first mode that shows the whole image to a backbone trained on crops; unlike padding it uses the whole input."""


class Inputs:
    """The ways to prepare the images of a study for its backbones."""

    def __init__(self, catalogue: Catalogue, shapes: Shapes) -> None:
        self._catalogue, self._shapes = catalogue, shapes

    @property
    def searched(self) -> bool:
        """Whether the search tries several modes."""
        return self._shapes.cut_away > MUCH

    def first(self, name: str) -> Input:
        """The input that the probe, the first guesses and the controls use."""
        return self.sizes(name, self._first_mode(name))[0]

    def firsts(self, names: Iterable[str]) -> list[Input]:
        """Their `first` inputs without duplicates."""
        return list(dict.fromkeys(map(self.first, names)))

    def network(self, name: str, seed: int) -> Network:
        """A backbone with its weights and its `first` input."""
        return self._catalogue.network(name, seed, self.first(name))

    def guess(self, name: str) -> dict[str, object]:
        """The parameters of a trial that lead to the `first` input."""
        return {"input_size": 0.0, **({"input_mode": self._first_mode(name)} if self.searched else {})}

    def sizes(self, name: str, mode: Mode) -> list[Input]:
        """Every size in a mode, the backbone's own first; if modes are not searched, in the backbone's own mode."""
        own, *others = self._catalogue.inputs(name)
        # Inputs larger than the images show nothing more; for whole images their long side counts.
        shorter = self._shapes.image_size
        seen = shorter / (1 - self._shapes.cut_away) if self.searched and mode != "crop" else shorter
        options = [own, *(input for input in others if own.size < input.size <= seen)]
        depth = {"bits": self._shapes.bits}
        return [(input.by(mode) if self.searched else input).model_copy(update=depth) for input in options]

    def notes(self) -> Iterator[str]:
        """What a user should know of how images are prepared."""
        if self.searched:
            yield (
                f"A square crop would remove {self._shapes.cut_away:.0%} of an image. The first trials use the whole "
                "image, and the search tries crop, squash and pad."
            )
        if self._shapes.bits < BITS:
            yield (
                f"Integer images use {self._shapes.bits} of {BITS} bits: values from 0 to "
                f"{2**self._shapes.bits - 1:,} are scaled to 0 to 255, and larger ones become 255."
            )

    def _first_mode(self, name: str) -> Mode:
        own = self._catalogue.card(name).input.mode
        return WHOLE if self.searched and own == "crop" else own
