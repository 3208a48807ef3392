"""The tests for every family of backbones."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from autotl.backbones.catalogue import Catalogue
from autotl.backbones.splitting import split, split_with_tail
from autotl.backbones.weights import Given
from autotl.contracts import Family, ModelCard, WeightsSource
from autotl.errors import PluginError, WeightsError
from autotl.testing.lab import SEED, Lab, assert_only_trained_moves, assert_same, linear_probe, sgd, stir, well_behaved
from autotl.testing.plugins import PluginTests

NETWORKS = 3
"""How many networks of a family are built, unless the test class names some."""


class BackboneTests(PluginTests):
    """`networks` names those that are built and trained, without the family's prefix: by default the first three.

    `files` has published weights files by network, for those that neither the package nor a cache has.
    """

    kind = "backbones"
    networks: ClassVar[tuple[str, ...]] = ()
    files: ClassVar[Mapping[str, Path]] = {}

    def test_every_name_has_a_card(self, lab: Lab, name: str) -> None:
        family = _family(lab, name)
        listed = list(family.names())
        assert listed, f"The family '{name}' lists no names."
        for each in listed:
            card = family.card(each)
            assert isinstance(card, ModelCard), f"The card of '{name}:{each}' is a {type(card).__name__}."
            assert card.source and card.license, f"The card of '{name}:{each}' lacks its source or its licence."

    def test_an_unknown_name_is_a_key_error(self, lab: Lab, name: str) -> None:
        try:
            _family(lab, name).card("no-such-network")
        except KeyError:
            return
        raise AssertionError(f"The family '{name}' has a card for 'no-such-network': raise KeyError.")

    def test_random_weights_come_from_torchs_generator(self, lab: Lab, name: str) -> None:
        for each in self._networks(lab, name):
            one, two = (_built(lab, name, each, seed=1) for _ in range(2))
            assert _same(one, two), f"'{name}:{each}' without weights differs although torch has the same seed."

    def test_it_prints_nothing_and_leaves_global_generators_alone(self, lab: Lab, name: str) -> None:
        """Except torch's, from which random weights come."""
        for each in self._networks(lab, name):
            with well_behaved(f"'{name}:{each}'", draws=("torch",)):
                size = _family(lab, name).card(each).input.size
                network = _built(lab, name, each, seed=SEED).eval()
                with torch.no_grad():
                    network(torch.zeros(1, 3, size, size))

    def test_a_weights_file_is_loaded_whole_or_not_at_all(self, lab: Lab, name: str, tmp_path: Path) -> None:
        """Loading a file is deterministic; a file that lacks a tensor of a stage is refused.

        The file is the published one, because only that has the names and the layout that the family must read. If it
        is not on this machine, the network's own state dict is used, or the test is skipped if that cannot be read.
        """
        for each in self._networks(lab, name):
            weights = _family(lab, name).card(each).weights
            if weights is None:
                continue
            file = self._file(lab, name, each)
            made = tmp_path / f"made{_suffix(weights)}"
            if file is None:
                state = _built(lab, name, each, seed=1).state_dict()
                # Copies: safetensors refuses tensors that share memory.
                _save({key: value.clone() for key, value in state.items()}, made)
            try:
                one, two = (_built(lab, name, each, seed=seed, weights=file or made) for seed in (1, 2))
            except Exception as error:
                if file is None:
                    pytest.skip(f"'{name}:{each}' reads another layout: set files = {{'{each}': PATH}} to a real file")
                raise AssertionError(f"'{name}:{each}' cannot read its own weights file {file}: {error}") from error
            stages = split(one, _family(lab, name).card(each).input.size)
            wrong = [key for key, value in stages.state_dict().items() if not torch.equal(value, two.state_dict()[key])]
            assert not wrong, f"'{name}:{each}' does not load {wrong[0]} from its weights file."
            part = tmp_path / f"part{made.suffix}"
            if not _without_one(file or made, stages, part):
                continue
            backbone = f"{name}:{each}"
            catalogue = Catalogue(lab.host, tmp_path / "cache", {backbone: Given(part)})
            try:
                catalogue.build(catalogue.network(backbone, SEED))
            except Exception:
                continue
            raise AssertionError(f"'{name}:{each}' accepts a weights file that lacks a tensor: it must raise.")

    def test_shipped_weights_exist(self, lab: Lab, name: str) -> None:
        for each in _family(lab, name).names():
            weights = _family(lab, name).card(each).weights
            if weights and weights.file:
                try:
                    lab.catalogue.build(lab.catalogue.network(f"{name}:{each}", SEED))
                except WeightsError as error:
                    raise AssertionError(str(error)) from error

    def test_its_stages_are_the_network(self, lab: Lab, name: str) -> None:
        for each in self._networks(lab, name):
            size = _family(lab, name).card(each).input.size
            network = _built(lab, name, each, seed=SEED).eval()
            stages, tail = split_with_tail(network, size)
            assert stages.names, f"'{name}:{each}' has no stages."
            images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(SEED))
            with torch.no_grad():
                torch.testing.assert_close(tail.eval()(stages.eval()(images)), network(images), rtol=1e-4, atol=1e-4)

    def test_it_works_at_every_size_on_its_card(self, lab: Lab, name: str) -> None:
        for each in self._networks(lab, name):
            for each_input in lab.catalogue.inputs(f"{name}:{each}"):
                try:
                    lab.catalogue.info(f"{name}:{each}", each_input)
                except PluginError as error:
                    raise AssertionError(f"'{name}:{each}' does not work with {each_input.size} px: {error}") from error

    def test_frozen_stages_stay_and_stages_with_a_learning_rate_change(self, lab: Lab, name: str) -> None:
        for each in self._networks(lab, name):
            backbone = f"{name}:{each}@random"
            names = lab.catalogue.info(backbone).names
            middle = len(names) // 2
            frozen = names[middle - 1] if middle else None
            plan = lab.plan(sgd(frozen, _trainable(lab, backbone, names[middle:])), backbone=backbone)
            stir(1)
            fitted = lab.fit(plan)
            assert_only_trained_moves(lab, fitted, f"'{backbone}'")
            stir(2)
            assert_same(fitted, lab.fit(plan), f"'{backbone}'")

    def test_a_stage_changes_in_proportion_to_its_learning_rate(self, lab: Lab, name: str) -> None:
        """One step of plain gradient descent is twice as long at twice the learning rate."""
        for each in self._networks(lab, name):
            backbone = f"{name}:{each}@random"
            names = lab.catalogue.info(backbone).names
            trained = _trainable(lab, backbone, names)
            if not trained:
                continue
            lengths = []
            for lr in (1e-4, 2e-4):
                phase = sgd(None, trained, lr=lr, epochs=1)
                batch = len(lab.bench.shas("train"))
                phase = phase.trained_by(batch_size=batch)
                # A head of zeros passes no gradient, so the head is fitted before the only step.
                fitted = lab.fit(lab.plan(linear_probe(names[-1]), phase, backbone=backbone))
                before = lab.catalogue.build(fitted.plan.network).state_dict()
                after = fitted.model.stages.state_dict()
                keys = fitted.model.stages.stage_parameters(trained[-1])
                lengths.append(sum((after[key] - before[key]).double().square().sum().item() for key in keys) ** 0.5)
            assert lengths[0] > 0 and lengths[1] / lengths[0] == pytest.approx(2, rel=0.1), (
                f"'{backbone}': at twice the learning rate '{trained[-1]}' changes by {lengths[1]:.3g} instead of "
                f"{lengths[0]:.3g}: its learning rate does not reach the optimizer."
            )

    def _file(self, lab: Lab, name: str, network: str) -> Path | None:
        """The published weights file, None if it is not on this machine."""
        if network in self.files:
            return self.files[network]
        try:
            found = lab.catalogue.file(f"{name}:{network}")
        except WeightsError as error:
            raise AssertionError(str(error)) from error
        return found.path if found else None

    def _networks(self, lab: Lab, name: str) -> tuple[str, ...]:
        return self.networks or tuple(_family(lab, name).names())[:NETWORKS]


def _family(lab: Lab, name: str) -> Family:
    family: Family = lab.host.backbones[name].item
    return family


def _built(lab: Lab, name: str, network: str, *, seed: int, weights: Path | None = None) -> nn.Module:
    torch.manual_seed(seed)
    return _family(lab, name).build(network, weights)


def _suffix(weights: WeightsSource) -> str:
    """The suffix of the family's own files."""
    return Path(weights.filename or weights.url or weights.file or "").suffix or ".safetensors"


def _save(state: dict[str, Any], file: Path) -> None:
    if file.suffix == ".safetensors":
        save_file(state, file)
    else:
        torch.save(state, file)


def _without_one(file: Path, stages: nn.Module, target: Path) -> bool:
    """Write the weights file without the tensor of a matrix in the middle of the stages; False if none is found."""
    state = load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True)
    matrices = [value for value in stages.parameters() if value.ndim > 1]
    for value in matrices[len(matrices) // 2 :]:
        if _dropped(state, value):
            _save(state, target)
            return True
    return False


def _dropped(state: dict[str, Any], wanted: Tensor) -> bool:
    """Drop a tensor with these values from a nested state; returns whether there was one."""
    for key, value in state.items():
        if isinstance(value, dict) and _dropped(value, wanted):
            return True
        if isinstance(value, Tensor) and value.shape == wanted.shape and torch.equal(value.to(wanted.dtype), wanted):
            del state[key]
            return True
    return False


def _same(one: nn.Module, two: nn.Module) -> bool:
    state = two.state_dict()
    return all(torch.equal(value, state[key]) for key, value in one.state_dict().items())


def _trainable(lab: Lab, backbone: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """The stages that have parameters."""
    return tuple(name for name in names if lab.catalogue.info(backbone).stage(name).parameters)
