"""The tests for every provider of weights."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
from safetensors.torch import save_file

from autotl.backbones.catalogue import Catalogue
from autotl.backbones.provided import Offer, names_of, offer_of
from autotl.backbones.weights import Given, file_hash
from autotl.contracts import ProvidedWeights, WeightsProvider
from autotl.errors import AutotlError, PluginError
from autotl.testing.lab import SEED, Lab, well_behaved
from autotl.testing.plugins import PluginTests

BACKBONES = 3
"""How many backbones are built with their weights, unless the test class names some."""


class WeightsTests(PluginTests):
    """`backbones` names those that are built with their weights: by default the first three that the provider names in
    full.

    `files` has published files by backbone, for those that are not on this machine. With `download = True` these are
    downloaded.
    """

    kind = "weights"
    backbones: ClassVar[tuple[str, ...]] = ()
    files: ClassVar[Mapping[str, Path]] = {}
    download: ClassVar[bool] = False

    def test_its_names_are_those_of_backbones_with_weights(self, lab: Lab, name: str) -> None:
        names = names_of(lab.host.weights[name])
        assert names, f"'{name}' lists no names."
        for each in names:
            try:
                found = lab.catalogue.expand([each])
            except PluginError as error:
                raise AssertionError(f"'{name}' lists '{each}', which no installed family has: {error}") from error
            assert any(lab.catalogue.card(one).weights for one in found), f"'{each}', of '{name}', uses no weights."

    def test_it_says_where_they_are_without_the_network(
        self, lab: Lab, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Only `fetch` may use it: every listing asks where weights are."""

        def refuse(*words: object) -> None:
            raise AssertionError(f"'{name}' uses the network to say where weights are: do so in `fetch`.")

        for way in ("getaddrinfo", "socket.connect"):
            monkeypatch.setattr(f"socket.{way}", refuse)
        for each in self._backbones(lab, name):
            with well_behaved(f"'{name}'"):
                _provider(lab, name).source(each)
            assert offer_of(lab.host.weights[name], each), f"'{each}' matches no name or glob of '{name}'."

    def test_its_files_are_weights_of_their_backbones(self, lab: Lab, name: str, tmp_path: Path) -> None:
        """They have the stated hash and every tensor of the backbone; a file that is converted twice is the same.

        In place of a published file that is not on this machine, one of random weights is used if it needs no
        conversion; otherwise the test is skipped.
        """
        for each in self._backbones(lab, name):
            offer = offer_of(lab.host.weights[name], each)
            assert offer
            offer = replace(offer, source=self._here(lab, offer, tmp_path))
            files = []
            for turn in ("one", "two"):
                (tmp_path / turn).mkdir(exist_ok=True)
                with well_behaved(f"'{name}'"):
                    file, _ = offer.write(tmp_path / turn)
                files.append(file)
            one, two = map(file_hash, files)
            assert one == two, f"'{name}' gives other weights for '{each}' every time."
            given = Catalogue(lab.host, tmp_path / "cache", {each: Given(files[0])})
            try:
                given.build(given.network(each, SEED))
            except AutotlError as error:
                raise AssertionError(f"What '{name}' has for '{each}' cannot be used: {error}") from error

    def _here(self, lab: Lab, offer: Offer, folder: Path) -> ProvidedWeights:
        """The source, with a file that can be read here."""
        source = offer.source
        if offer.name in self.files:
            return _with(source, self.files[offer.name])
        if source.file or self.download:
            return source
        if source.convert:
            pytest.skip(f"'{offer.name}' is not on this machine: set files = {{'{offer.name}': PATH}}, or download")
        family, _, rest = offer.name.partition(":")
        state = lab.host.backbones[family].item.build(rest, None).state_dict()
        made = folder / "made.safetensors"
        # Copies: safetensors refuses tensors that share memory.
        save_file({key: value.clone() for key, value in state.items()}, made)
        return replace(_with(source, made), sha256=None)

    def _backbones(self, lab: Lab, name: str) -> tuple[str, ...]:
        full = [each for each in names_of(lab.host.weights[name]) if set(each).isdisjoint("*?[")]
        chosen = self.backbones or tuple(full[:BACKBONES])
        assert chosen, f"'{name}' lists only globs. Name backbones to try: backbones = ('timm:…', …)"
        return chosen


def _provider(lab: Lab, name: str) -> WeightsProvider:
    provider: WeightsProvider = lab.host.weights[name].item
    return provider


def _with(source: ProvidedWeights, file: Path) -> ProvidedWeights:
    return replace(source, file=file, repo=None, url=None, fetch=None)
