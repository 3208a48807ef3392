"""The search space: the parameters that all strategies share, and the context through which they ask for them."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from autotl.backbones.catalogue import Catalogue
from autotl.contracts import UNEQUAL, BackboneInfo, DataFacts, Optimization, StageInfo
from autotl.engine.fit import requires
from autotl.engine.head_kinds import is_possible
from autotl.engine.precision import Arithmetic
from autotl.errors import PluginError
from autotl.host import Host
from autotl.plan import (
    MODES,
    NO_AUGMENTATION,
    WIDE,
    ClassWeights,
    Component,
    DataRef,
    Head,
    HeadKind,
    Input,
    Phase,
    Pooling,
    Sampling,
    Teacher,
    Technique,
    TransferPlan,
)
from autotl.registry import Entry
from autotl.study.inputs import Inputs
from autotl.study.limits import Limits

if TYPE_CHECKING:
    import optuna

T = TypeVar("T")

DRAWN = {
    "augmentation": "augmentations",
    "optimizer": "optimizers",
    "objective": "objectives",
    "adapter": "adapters",
    "method": "methods",
}
"""The parameters by which a trial draws what plugins registered, with the kind of each."""
ALL_UNNAMED = ("strategies", "augmentations")
"""The kinds of which a new study considers all that is installed if none is named; of others those that say
`by_default`."""
HEAD_NAMES = ("head", "token_head")
"""The parameters by which a trial draws the kind of its head: `token_head` for cuts that end in tokens."""
SHARED = (
    "strategy",
    "backbone",
    "cut",
    "frozen",
    "pooling",
    "token_pooling",
    "head_pooling",
    *HEAD_NAMES,
    "head_width_log2",
    "input_mode",
    "input_size",
    *DRAWN,
    "classifier",
    "teacher",
    "class_weights",
    "sampling",
)
"""Parameters that all strategies share."""
HEAD_WIDTHS_LOG2 = (6, 9)
"""The base-2 logarithms of the fewest and the most units or channels of a head's new layer."""
RECIPE = "recipe"
"""The prefix of the parameters that autotl's own strategies share."""


def at(share: float, options: Sequence[T]) -> T:
    """The option at a share in [0, 1] of a sequence; all options have intervals of the same length."""
    return options[min(len(options) - 1, math.floor(share * len(options)))]


def share_of(index: int, count: int) -> float:
    """A share that `at` maps to the option with this index: the middle of its interval."""
    return (index + 0.5) / count


class OwnTrial:
    """Optuna's trial as a plugin sees it; see `autotl.contracts.Trial`.

    A plugin can draw only its own parameters: shared ones must have the same range and choices in all trials.
    """

    def __init__(self, trial: "optuna.Trial", entry: Entry, what: str, host: Host) -> None:
        """`what`: how messages name the plugin's object, such as `Strategy 'full'`."""
        self._trial, self._entry, self._what, self._host = trial, entry, what, host

    @property
    def number(self) -> int:
        return self._trial.number

    @property
    def params(self) -> dict[str, Any]:
        return self._trial.params

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        return self._trial.suggest_float(self._own(name), low, high, step=step, log=log)

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        return self._trial.suggest_int(self._own(name), low, high, step=step, log=log)

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        return self._trial.suggest_categorical(self._own(name), choices)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"a plugin's trial has no '{name}': it has suggest_float, suggest_int, suggest_categorical, params, number"
        )

    def _own(self, name: str) -> str:
        """The name itself. Raises: PluginError if it does not belong to the plugin."""
        owner, prefix, dot, rest = self._entry.owner, *str(name).partition(".")
        if name in SHARED:
            why, rest = "which all strategies share (ask the context for it)", prefix
        elif not dot or not rest:
            why, rest = "a name that another plugin may use, too", prefix
        else:
            named = [each[prefix].owner for each in self._host.registries.values() if prefix in each]
            if any(each.plugin == owner.plugin for each in named):
                return name
            if not named and (prefix != RECIPE or owner.distribution == "autotl"):
                return name
            why = f"a name of {named[0]}" if named else "a name of autotl's own strategies"
        raise owner.fault(self._what, f"asks for '{name}', {why}: call it '{self._entry.name}.{rest}'.")


class SearchContext:
    """The context of one trial's strategy; see `autotl.contracts.Context`."""

    def __init__(
        self,
        trial: "optuna.Trial",
        *,
        catalogue: Catalogue,
        backbones: Sequence[str],
        drawn: Mapping[str, Mapping[str, Entry]],
        data: DataFacts,
        data_ref: DataRef,
        seed: int,
        arithmetic: Callable[[str], Arithmetic],
        techniques: Sequence[Technique] = (),
        heads: Sequence[HeadKind] = ("linear",),
        limits: Limits | None = None,
        classifiers: Sequence[str] = (),
        poolings: Sequence[Pooling] = (),
    ) -> None:
        """`drawn`: the entries to draw from, by kind and name; `heads`: the kinds of heads; `classifiers`: by default
        those that say `by_default`; `poolings`: of heads, by default those of stored features."""
        self.data = data
        self.seed = seed
        self.techniques = frozenset(techniques)
        self._trial = trial
        self._catalogue = catalogue
        self._inputs = Inputs(catalogue, data)
        self._backbones = backbones
        self._drawn = drawn
        self._heads, self._poolings = heads, tuple(dict.fromkeys(poolings))
        self._limits = limits or Limits(catalogue, data.classes)
        self._place: tuple[str, Head | None] = ("", None)
        """The cut that the strategy asked for, with the head; "": none yet."""
        self._input: Input | None = None
        self._sampling: Sampling | None = None
        self._classifiers = classifiers or by_default(catalogue.host)
        self._data_ref = data_ref
        self._arithmetic = arithmetic

    def backbone(self) -> BackboneInfo:
        return self._backbone

    def cut(self) -> str:
        if not self._place[0]:
            self._place = self._cut, None
        return self._cut

    def frozen(self, cut: str) -> str | None:
        share = self._trial.suggest_float("frozen", 0.0, 1.0)
        kept = [stage.name for stage in self._backbone.upto(cut)]
        return at(share, [None, *kept])

    def pooling(self, cut: str) -> Pooling:
        poolings = self._backbone.stage(cut).poolings
        chosen: Pooling = self._trial.suggest_categorical(pooling_name(poolings), poolings)  # type: ignore[assignment]
        return chosen

    def head(self, cut: str) -> Head:
        name = head_name(self._backbone.stage(cut))
        kinds = head_kinds(name, self._heads)
        drawn = self._trial.suggest_categorical(name, kinds) if len(kinds) > 1 else kinds[0]
        kind: HeadKind = drawn  # type: ignore[assignment]
        width = 2 ** self._trial.suggest_int("head_width_log2", *HEAD_WIDTHS_LOG2) if kind in WIDE else None
        head = Head(pooling="avg", kind=kind, width=width)
        head = head.model_copy(update={"pooling": self._head_pooling(head, cut)})
        least, backbone = 2 ** HEAD_WIDTHS_LOG2[0], self._backbone.name
        while head.width and head.width > least and self._limits.excess(backbone, self._seen, cut, head):
            head = head.model_copy(update={"width": head.width // 2})
        self._place = cut, head
        return head

    def _head_pooling(self, head: Head, cut: str) -> Pooling:
        """One of the study's poolings that the cut allows for a head, at any input size of the study."""
        if not self._poolings:
            return self.pooling(cut)
        info = self._backbone
        if "flatten" in self._poolings:  # which a larger map may not allow
            info = self._catalogue.info(info.name, self._inputs.sizes(info.name, "squash")[-1])
        heads = [head.model_copy(update={"pooling": pooling}) for pooling in self._poolings]
        allowed = [each.pooling for each in heads if is_possible(each, info.stage(cut))]
        if len(self._poolings) == 1:
            return allowed[0]
        return at(self._trial.suggest_float("head_pooling", 0.0, 1.0), allowed)

    def input(self) -> Input:
        name = self._backbone.name
        mode = self._inputs.first(name).mode
        if self._inputs.searched:
            mode = self._trial.suggest_categorical("input_mode", MODES)  # type: ignore[assignment]
        sizes = self._inputs.sizes(name, mode)
        options = [input for input in sizes if self._is_allowed(input)] or sizes[:1]
        if len(options) > 1:
            self._input = at(self._trial.suggest_float("input_size", 0.0, 1.0), options)
        else:
            self._input = options[0]
        return self._input

    def augmentation(self) -> Component:
        return self._component("augmentation")

    def optimizer(self, *, pretrained: bool = True) -> Optimization:
        entry, asked = self._choice("optimizer")
        what = f"Optimizer '{entry.name}'"
        with entry.owner.answers_for(what):
            found = entry.item.suggest(asked, self, pretrained)
            if not isinstance(found, Optimization):
                raise TypeError(f"its suggest returned {type(found).__name__}, not Optimization")
            return replace(found, optimizer=Component(name=entry.name, params=dict(found.params)))

    def objective(self) -> Component:
        return self._component("objective")

    def adapter(self) -> Component:
        return self._component("adapter")

    def method(self) -> Component:
        return self._component("method")

    def classifier(self) -> Component:
        return self._component("classifier", {name: self._catalogue.host.methods[name] for name in self._classifiers})

    def teacher(self, *, share: float, temperature: float) -> Teacher:
        name = self._trial.suggest_categorical("teacher", list(self._backbones))
        network = self._inputs.network(name, self.seed)
        return Teacher(
            backbone=network.backbone,
            weights=network.weights,
            input=network.input,
            cut=self._catalogue.info(network.backbone, network.input).names[-1],
            pooling="avg",
            share=share,
            temperature=temperature,
        )

    def class_weights(self) -> ClassWeights:
        if self.data.imbalance <= UNEQUAL:
            return "none"
        if self._sampling == "balanced":
            return "balanced"
        chosen: ClassWeights = self._trial.suggest_categorical("class_weights", get_args(ClassWeights))
        return chosen

    def sampling(self) -> Sampling:
        if self._sampling is None:
            wanted = "balanced-sampling" in self.techniques and self.data.imbalance > UNEQUAL
            self._sampling = "shuffled"
            if wanted and self.class_weights() == "none":
                self._sampling = self._trial.suggest_categorical("sampling", get_args(Sampling))
        return self._sampling

    def plan(
        self,
        *,
        cut: str,
        head: Head,
        phases: Sequence[Phase],
        input: Input | None = None,
        augmentation: Component | None = None,
        pretrained: bool = True,
    ) -> TransferPlan:
        name = self._backbone.name
        network = self._catalogue.network(name, self.seed, input or self._inputs.first(name))
        if not pretrained:
            network = self._catalogue.at_random(network, self.seed)
        augmentation = augmentation or NO_AUGMENTATION
        # The arithmetic matters only if something is trained by gradient descent.
        trained = any(phase.training for phase in phases)
        arithmetic = self._arithmetic(self._backbone.name) if trained else Arithmetic()
        return TransferPlan(
            backbone=network.backbone,
            weights=network.weights,
            input=network.input,
            compute_dtype=arithmetic.compute_dtype,
            boundary_dtype=arithmetic.compute_dtype,
            memory_format=arithmetic.memory_format,
            cut=cut,
            head=head,
            augmentation=augmentation,
            data=self._data_ref,
            seed=self.seed,
            requires=requires(self._catalogue, network.backbone, phases, augmentation.name),
            phases=tuple(phases),
        )

    def _component(self, name: str, entries: Mapping[str, Entry] | None = None) -> Component:
        """What the parameter `name` draws, by default from `drawn`, with its parameters."""
        entry, asked = self._choice(name, entries)
        with entry.owner.answers_for(f"{name.capitalize()} '{entry.name}'"):
            return Component(name=entry.name, params=entry.item.suggest(asked, self))

    def _choice(self, name: str, entries: Mapping[str, Entry] | None = None) -> tuple[Entry, OwnTrial]:
        """The entry that the parameter `name` draws, if there is a choice, and the trial as its plugin sees it."""
        entries = self._drawn[DRAWN[name]] if entries is None else entries
        chosen = next(iter(entries)) if len(entries) == 1 else self._trial.suggest_categorical(name, list(entries))
        entry = entries[chosen]
        return entry, OwnTrial(self._trial, entry, f"{name.capitalize()} '{entry.name}'", self._catalogue.host)

    @cached_property
    def _backbone(self) -> BackboneInfo:
        """The backbone up to its last cut within the limits."""
        info = self._catalogue.info(self._trial.suggest_categorical("backbone", list(self._backbones)))
        cuts = self._limits.cuts(info.name, self._inputs.first(info.name))
        return info.model_copy(update={"stages": info.upto(cuts[-1])})

    @cached_property
    def _cut(self) -> str:
        name = self._backbone.name
        return at(self._trial.suggest_float("cut", 0.0, 1.0), self._limits.cuts(name, self._seen))

    @property
    def _seen(self) -> Input:
        """The input that was drawn, else the smallest."""
        return self._input or self._inputs.first(self._backbone.name)

    def _is_allowed(self, input: Input) -> bool:
        """Whether an input is within the limits with the cut and the head of this trial, as far as they are known."""
        cut, head = self._place
        name = self._backbone.name
        if head:
            return not self._limits.excess(name, input, cut, head)
        return (cut or self._backbone.names[-1]) in self._limits.cuts(name, input)


def is_classifier(entry: Entry) -> bool:
    """Whether strategies can draw a method to fit a linear head. One that cannot be loaded is none."""
    with suppress(PluginError):
        return hasattr(entry.item, "fit") and hasattr(entry.item, "suggest")
    return False


def by_default(host: Host) -> tuple[str, ...]:
    """The classifiers that are used if the user names none."""
    known = filter(is_classifier, host.methods)
    return tuple(entry.name for entry in known if getattr(entry.item, "by_default", False))


def head_kinds(name: str, heads: Sequence[HeadKind]) -> list[HeadKind]:
    """The kinds of heads that one of `HEAD_NAMES` draws from: a convolution needs height and width."""
    return [kind for kind in heads if kind != "conv" or name != "token_head"]


def smallest_heads(kinds: Sequence[HeadKind], poolings: Sequence[Pooling] = (), fixed: object = None) -> list[Head]:
    """A head of each kind with each pooling that changes its cost, of the least width that is drawn.

    `fixed`: what the user fixed `head_width_log2` to.
    """
    low, high = HEAD_WIDTHS_LOG2
    least = 2 ** next((power for power in range(low, high + 1) if power == fixed), low)
    found: list[Pooling] = ["avg", *(["flatten"] if "flatten" in poolings else [])]  # type: ignore[list-item]
    return [
        Head(pooling=pooling, kind=kind, width=least if kind in WIDE else None) for kind in kinds for pooling in found
    ]


def head_name(stage: StageInfo) -> str:
    """The one of `HEAD_NAMES` for a cut after this stage."""
    return "token_head" if stage.layout == "tokens" else "head"


def pooling_name(poolings: Sequence[Pooling]) -> str:
    """Networks with a class token have one more pooling, so they need a parameter of their own."""
    return "token_pooling" if "token" in poolings else "pooling"
