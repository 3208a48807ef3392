"""The tests for every method that fits a head."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from autotl.contracts import FittedHead, HeadMethod
from autotl.testing.lab import SEED, Lab, stir, well_behaved
from autotl.testing.plugins import PluginTests

IMAGES, WIDTH, CLASSES = 90, 24, 3
FEW = 2
"""The smallest number of classes, for which code may have a special case."""


class MethodTests(PluginTests):
    """`options` has the options to test each method with: give two or more values for those that may be lists."""

    kind = "methods"
    options: ClassVar[Mapping[str, Mapping[str, Any]]]

    def test_its_heads_fit_the_features(self, lab: Lab, name: str) -> None:
        for classes in (CLASSES, FEW):
            for head in self.fit(lab, name, classes=classes):
                assert (head.weight.shape, head.bias.shape) == ((classes, WIDTH), (classes,)), (
                    f"'{name}' returns a head of {tuple(head.weight.shape)} and {tuple(head.bias.shape)} for {WIDTH} "
                    f"features and {classes} classes."
                )
                assert head.weight.dtype == head.bias.dtype == torch.float32, f"'{name}' returns {head.weight.dtype}."
                finite = head.weight.isfinite().all() and head.bias.isfinite().all()
                assert finite, f"'{name}' returns values that are not finite."

    def test_it_learns_separable_classes(self, lab: Lab, name: str) -> None:
        for classes in (CLASSES, FEW):
            features, labels = _features(classes)
            heads = self.fit(lab, name, classes=classes)
            best = max((_logits(head, features).argmax(1) == labels).float().mean().item() for head in heads)
            assert best > 0.9, (
                f"The best head of '{name}' is right on {best:.0%} of images whose {classes} classes are far apart."
            )

    def test_it_prints_nothing_and_leaves_global_generators_alone(self, lab: Lab, name: str) -> None:
        with well_behaved(f"'{name}'"):
            self.fit(lab, name)

    def test_it_uses_the_options_that_it_names(self, lab: Lab, name: str) -> None:
        method = _method(lab, name)
        known, given = {*method.options, *getattr(method, "defaults", {})}, set(self.options[name])
        assert known == given, f"'{name}' has the options {sorted(known)}, but the test sets {sorted(given)}."

    def test_every_alternative_gives_another_head(self, lab: Lab, name: str) -> None:
        heads = self.fit(lab, name)
        for option, values in self._alternatives(name).items():
            offered = {head.chosen.get(option) for head in heads}
            plain = all(isinstance(value, int | float | str) for value in offered)
            assert plain, f"'{name}' has {option} {offered} in 'chosen': the values must be numbers or strings."
            assert offered == set(values), (
                f"'{name}' got {option} {values}, but returned heads for {sorted(map(str, offered))}."
            )
            alike = [head for head in heads if _same_but(head, heads[0], option)]
            different = any(not torch.equal(head.weight, heads[0].weight) for head in alike[1:])
            assert different, f"'{name}' never uses the option '{option}': its heads are all the same."

    def test_a_chosen_value_alone_gives_its_head(self, lab: Lab, name: str) -> None:
        features, _ = _features()
        for head in self.fit(lab, name):
            alone = self.fit(lab, name, chosen=head.chosen)
            assert len(alone) == 1, f"'{name}' must return one head for {head.chosen}, but returned {len(alone)}."
            off = (_logits(head, features).softmax(1) - _logits(alone[0], features).softmax(1)).abs().max().item()
            assert off < 0.02, f"'{name}' returns another head for {head.chosen} alone (by {off:.2g})."

    def test_it_is_deterministic(self, lab: Lab, name: str) -> None:
        runs = []
        for seed in range(4):  # two seeds might draw the same of two choices
            stir(seed)
            runs.append(self.fit(lab, name))
        for run in runs[1:]:
            for one, two in zip(runs[0], run, strict=True):
                same = torch.equal(one.weight, two.weight) and torch.equal(one.bias, two.bias)
                assert same, f"'{name}' draws from a global generator: two fits give different heads."

    def test_it_does_not_change_its_input(self, lab: Lab, name: str) -> None:
        data = _features()
        kept = [tensor.clone() for tensor in data]
        self.fit(lab, name, data=data)
        for what, tensor, before in zip(("features", "labels"), data, kept, strict=True):
            assert torch.equal(tensor, before), f"'{name}' changes its input {what} in place."

    def test_it_can_be_stopped(self, lab: Lab, name: str) -> None:
        class Enough(Exception):
            pass

        def step() -> None:
            raise Enough

        try:
            self.fit(lab, name, step=step)
        except Enough:
            return
        raise AssertionError(f"'{name}' never calls step, or continues when it raises: a budget could not end it.")

    def fit(
        self,
        lab: Lab,
        name: str,
        *,
        data: tuple[Tensor, Tensor] | None = None,
        step: Callable[[], None] = lambda: None,
        chosen: Mapping[str, float | str] | None = None,
        classes: int = CLASSES,
    ) -> Sequence[FittedHead]:
        """The heads for easy features, with `options`; those in `chosen` have only the chosen value."""
        features, labels = data or _features(classes)
        given = {**self.options[name], **(chosen or {})}
        options = {key: value if isinstance(value, list) else [value] for key, value in given.items()}
        return list(_method(lab, name).fit(features, labels, classes, options, step))

    def _alternatives(self, name: str) -> dict[str, list[Any]]:
        given = self.options[name].items()
        return {option: value for option, value in given if isinstance(value, list) and len(value) > 1}


def _method(lab: Lab, name: str) -> HeadMethod:
    method: HeadMethod = lab.host.methods[name].item
    return method


def _features(classes: int = CLASSES) -> tuple[Tensor, Tensor]:
    """[IMAGES, WIDTH] float32 and [IMAGES] int64: four features separate the classes, the others are noise."""
    draw = torch.Generator().manual_seed(SEED)
    labels = torch.arange(IMAGES) % classes
    centres = 4 * torch.randn(classes, 4, generator=draw)
    features = torch.randn(IMAGES, WIDTH, generator=draw)
    features[:, :4] += centres[labels]
    return 10 + 3 * features, labels


def _logits(head: FittedHead, features: Tensor) -> Tensor:
    return features @ head.weight.T + head.bias


def _same_but(one: FittedHead, two: FittedHead, option: str) -> bool:
    return {**one.chosen, option: 0} == {**two.chosen, option: 0}
