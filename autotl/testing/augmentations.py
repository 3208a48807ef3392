"""The tests for every augmentation."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna
import torch
from torch import Tensor

from autotl.contracts import BatchTransform, DataFacts, Draw, Mixed
from autotl.engine.draws import Draws
from autotl.plan import Component
from autotl.testing.lab import FACTS, FEWER, SEED, Lab, assert_same, sgd, stir, well_behaved
from autotl.testing.parameters import DRAWS, assert_one_study, own_names, unused_parameters
from autotl.testing.plugins import PluginTests

SIDES = (24, 33)
"""Sizes of the images, in px: an even and an odd one."""


class AugmentationTests(PluginTests):
    kind = "augmentations"

    def test_every_parameter_that_it_draws_is_used(self, lab: Lab, name: str) -> None:
        def changed(known: Mapping[str, Any], seed: int) -> tuple[Tensor, optuna.Trial]:
            params, trial = _suggested(lab, name, known, seed)
            return _build(lab, name, params)(_images(32), _draw(view=seed)), trial

        unused = unused_parameters(changed, torch.equal)
        assert not unused, f"'{name}' draws {unused} but never uses it: the images do not depend on its value."

    def test_its_own_parameters_have_a_prefix(self, lab: Lab, name: str) -> None:
        with own_names():
            for seed in range(DRAWS):
                _suggested(lab, name, {}, seed)

    def test_one_study_can_hold_its_trials(self, lab: Lab, name: str) -> None:
        """For every backbone, and when images are added to the data."""
        drawn = [_suggested(lab, name, {}, seed, facts)[1] for seed in range(DRAWS) for facts in (FACTS, FEWER)]
        assert_one_study(drawn, name)

    def test_it_prints_nothing_and_leaves_global_generators_alone(self, lab: Lab, name: str) -> None:
        images = _images(32)
        for seed in range(DRAWS):
            with well_behaved(f"'{name}'"):
                params, _ = _suggested(lab, name, {}, seed)
                _build(lab, name, params)(images.clone(), _draw())

    def test_equal_draws_give_equal_parameters(self, lab: Lab, name: str) -> None:
        for seed in range(DRAWS):
            stir(2 * seed)
            params, trial = _suggested(lab, name, {}, seed)
            stir(2 * seed + 1)
            again, _ = _suggested(lab, name, trial.params, seed + 1)
            assert again == params, f"'{name}' gives {params} and {again} for the same draws: {trial.params}."

    def test_its_parameters_survive_json(self, lab: Lab, name: str) -> None:
        params, _ = _suggested(lab, name, {}, 0)
        again = json.loads(json.dumps(params))
        assert again == params, f"The parameters of '{name}' are {params}, but {again} after conversion to JSON."

    def test_it_keeps_shape_and_type(self, lab: Lab, name: str) -> None:
        """uint8 in and out: intermediate values must be clamped to 0 to 255 and rounded."""
        for side in SIDES:
            images = _images(side)
            changed = _transform(lab, name)(images.clone(), _draw())
            assert (changed.shape, changed.dtype, changed.device) == (images.shape, images.dtype, images.device), (
                f"'{name}' returns {tuple(changed.shape)} {changed.dtype} for {tuple(images.shape)} {images.dtype}."
            )

    def test_it_does_not_change_its_input(self, lab: Lab, name: str) -> None:
        """The images belong to the pixel store; changes in them would also affect validation."""
        images = _images(32)
        kept = images.clone()
        _transform(lab, name)(images, _draw())
        assert torch.equal(images, kept), f"'{name}' changes its input images in place: change a copy."

    def test_the_draw_is_the_only_source_of_randomness(self, lab: Lab, name: str) -> None:
        images, (params, _) = _images(32), _suggested(lab, name, {}, 0)
        results = []
        for seed in range(8):  # two seeds might draw the same of two choices
            stir(seed)
            results.append(_build(lab, name, params)(images.clone(), _draw()))
        same = all(torch.equal(each, results[0]) for each in results)
        assert same, f"'{name}' draws from a global generator: the same draw gives different results."

    def test_an_image_does_not_depend_on_the_batch(self, lab: Lab, name: str) -> None:
        """Unless the augmentation mixes images; then each has a partner in the batch, and a share of itself."""
        if getattr(lab.host.augmentations[name].item, "mixes", False):
            found = lab.host.augmentations[name].item.build(_suggested(lab, name, {}, 0)[0])(_images(32), _draw())
            assert isinstance(found, Mixed), f"'{name}' has mixes = True, but returns {type(found).__name__}."
            in_batch = ((found.partners >= 0) & (found.partners < len(found.images))).all()
            assert in_batch, f"'{name}' names partners that are not positions in the batch."
            shares = ((found.shares >= 0) & (found.shares <= 1)).all()
            assert shares, f"'{name}' returns shares that are not between 0 and 1."
            return
        images, transform = _images(32), _transform(lab, name)
        together = transform(images.clone(), _draw())
        for row in range(len(images)):
            alone = transform(images[row : row + 1].clone(), _draw([row]))
            off = (alone[0].int() - together[row].int()).abs().max().item()
            assert off <= 1, f"'{name}' changes an image depending on others in the batch: use each image's own draw."

    def test_its_operations_keep_shape_and_type_and_do_not_depend_on_the_batch(self, lab: Lab, name: str) -> None:
        """Those that are measured first, see `contracts.Augmentation`."""
        for operation, change in getattr(lab.host.augmentations[name].item, "operations", dict)().items():
            images = _images(32)
            together = change(images.clone(), _draw())
            same = isinstance(together, Tensor) and (together.shape, together.dtype) == (images.shape, images.dtype)
            assert same, f"Operation '{operation}' of '{name}' must return images of the same shape and type."
            for row in range(len(images)):
                alone = change(images[row : row + 1].clone(), _draw([row]))
                assert (alone[0].int() - together[row].int()).abs().max() <= 1, (
                    f"Operation '{operation}' of '{name}' changes an image depending on others in the batch."
                )

    def test_training_twice_gives_equal_weights(self, lab: Lab, name: str) -> None:
        params, _ = _suggested(lab, name, {}, 0)
        info = lab.catalogue.info("tiny:net")
        plan = lab.plan(sgd(None, info.names), augmentation=Component(name=name, params=params))
        stir(1)
        first = lab.fit(plan)
        stir(2)
        assert_same(first, lab.fit(plan), f"'{name}'")


def _suggested(
    lab: Lab, name: str, known: Mapping[str, Any], seed: int, facts: DataFacts = FACTS
) -> tuple[dict[str, Any], optuna.Trial]:
    trial = lab.trial(known, seed)
    asked = lab.asked("augmentations", name, trial)
    return lab.host.augmentations[name].item.suggest(asked, lab.context(trial, facts)), trial


def _build(lab: Lab, name: str, params: dict[str, Any]) -> Callable[[Tensor, Draw], Tensor]:
    """The transform as a function of images to images alone."""
    transform: BatchTransform = lab.host.augmentations[name].item.build(params)

    def images(given: Tensor, draw: Draw) -> Tensor:
        found = transform(given, draw)
        return found.images if isinstance(found, Mixed) else found

    return images


def _transform(lab: Lab, name: str) -> Callable[[Tensor, Draw], Tensor]:
    return _build(lab, name, _suggested(lab, name, {}, 0)[0])


def _images(side: int) -> Tensor:
    """[6, 3, side, side] uint8: noise, one on a gradient, and a black and a white image."""
    generator = torch.Generator().manual_seed(SEED)
    images = torch.randint(0, 256, (6, 3, side, side), generator=generator, dtype=torch.uint8)
    images[1] = images[1] // 2 + (torch.arange(side) * 100 // side).to(torch.uint8)
    images[2], images[3] = 0, 255
    return images


def _draw(rows: Sequence[int] = range(6), view: int = 0) -> Draws:
    """The draw of these rows of the images; another one for each view."""
    return Draws(SEED, view, torch.tensor(rows) + 1000)
