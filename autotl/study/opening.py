"""Opening a study: its images, the backbones that can be used on them, and its record in Optuna's storage."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from autotl.contracts import BackboneInfo
from autotl.data.dataset import Dataset, read_split
from autotl.data.rows import trim
from autotl.data.split import OPEN, Split
from autotl.engine import metrics
from autotl.engine.bench import Bench
from autotl.engine.precision import Arithmetic
from autotl.errors import PluginError, StudyError, TrainingError, WeightsError
from autotl.files import append_line
from autotl.plan import HeadKind, Network, Pooling
from autotl.registry import Entry
from autotl.study import controls, estimate, start
from autotl.study import pool as pools
from autotl.study.budget import Budget, OutOfTime
from autotl.study.choices import Choices
from autotl.study.defining import recorded
from autotl.study.fixed import DRAWS, drawn_by, not_drawn, require_known
from autotl.study.inputs import Inputs
from autotl.study.reading import read
from autotl.study.settings import Settings
from autotl.study.space import head_kinds, head_name
from autotl.study.storage import SharedStudy
from autotl.study.suggestions import Suggestions, contexts
from autotl.study.watch import Watcher
from autotl.tracking.folder import StudyFolder

HELD_OUT: tuple[Split, ...] = ("early_stop", "val", "test")
"""The splits that metrics are computed for."""
FIRST_PASSES = 0.35
"""The largest share of a budget for the first pass of the images through the backbones."""


@dataclass(frozen=True)
class Opened:
    """A study that is ready for its work."""

    folder: StudyFolder
    settings: Settings
    bench: Bench
    study: SharedStudy
    suggestions: Suggestions
    networks: Mapping[str, Network]
    """The backbones that can be used by name, cheapest first."""
    references: Sequence[str]
    """The backbones that pretrained features are compared with; none if there is no strategy to choose."""
    inputs: Inputs
    strategies: Mapping[str, Entry]
    """The strategies that are installed, by name."""
    drawn: Mapping[str, Mapping[str, Entry]]
    """What else trials draw and is installed: by kind, then by name."""
    watcher: Watcher
    budget: Budget
    skip: Callable[[object], None]
    """Reports a plugin's error, to continue without the plugin; raises PluginError with `strict_plugins`."""


class Opening:
    """A study that is being opened."""

    def __init__(self, choices: Choices, budget: Budget) -> None:
        self.choices, self.budget = choices, budget
        self.settings, self.catalogue = choices.settings, choices.catalogue
        self.before, self.watcher = choices.before, choices.watcher
        self.pool = choices.pool

    def open(self) -> Opened:
        """Read the images, and create or resume the study.

        The study's lock must be held.

        Raises: AutotlError.
        """
        choices = self.choices
        self.pool = pools.download(self.catalogue, self.pool, choices.required, choices.skip)
        bench = self._open_bench()
        usable = self._usable(bench)
        self._try_fixed(bench.dataset, usable)
        networks = {name: self._network(name) for name in usable}
        study = recorded(choices, bench.dataset, networks)
        append_line(choices.folder.searches, json.dumps({"time": time.time(), **self.settings.logged()}))
        suggestions = Suggestions(
            study,
            choices.folder,
            self.settings,
            bench,
            backbones=tuple(self.before.backbones) if self.before else usable,
            strategies=choices.strategies,
            drawn=choices.drawn,
            limits=choices.limits,
            watcher=self.watcher,
            budget=self.budget,
        )
        return Opened(
            folder=choices.folder,
            settings=self.settings,
            bench=bench,
            study=study,
            suggestions=suggestions,
            networks=networks,
            references=choices.references,
            inputs=self.inputs,
            strategies={name: each for name, each in choices.strategies.items() if choices.has("strategies", name)},
            drawn={
                kind: {name: entry for name, entry in entries.items() if choices.has(kind, name)}
                for kind, entries in choices.drawn.items()
            },
            watcher=self.watcher,
            budget=self.budget,
            skip=choices.skip,
        )

    def _open_bench(self) -> Bench:
        """The data with its pixels, and the stores that all trials share."""
        choices = self.choices
        compared = controls.baselines(self.catalogue) if self.settings.compare else ()
        names = list(dict.fromkeys((*self.pool.backbones, *choices.references, *compared)))
        progress = self.budget.watched(self.watcher, "reading images")
        try:
            bench, self.inputs = read(
                self.settings,
                choices.listing,
                choices.columns,
                names,
                self.catalogue,
                choices.device,
                previous=read_split(choices.folder.path) if self.before else None,
                progress=progress,
                note=self.watcher.note,
            )
        except OutOfTime:
            raise StudyError(
                "Reading the images takes longer than --budget. The images read so far are cached; run the same "
                "command again with a larger --budget."
            ) from None
        self.watcher.dataset(bench.dataset)
        self.watcher.scale(choices.scale)
        for split in (split for split in HELD_OUT if bench.shas(split)):
            for metric in bench.metrics:
                metrics.require_defined(metric, split, bench.dataset.counts_in(split))
        if not self.before:
            start.require_unseen(bench.dataset, self.settings.weights.values())
        if self.settings.minimize and self.settings.prune:
            self.watcher.note(f"With --minimize {self.settings.minimize} no trial is pruned.")
        for note in self.inputs.notes():
            self.watcher.note(note)
        for name in self.pool.backbones:
            bench.features.open(self._network(name))
        trim(choices.cache_dir)  # after the stores of this search are open, because open stores are kept
        return bench

    def _network(self, name: str) -> Network:
        return self.inputs.network(name, self.settings.seed)

    def _usable(self, bench: Bench) -> tuple[str, ...]:
        """The backbones of the study, cheapest first, without those that fail or that the budget has no time for."""
        if self.before:
            return self.pool.backbones
        infos = list(map(self.catalogue.info, self.pool.backbones))
        _require_heads(infos, self.settings.head_kinds)
        _require_poolings(infos, self.settings.poolings)
        allowed = FIRST_PASSES * self.budget.seconds
        kept: list[str] = []
        for info in sorted(infos, key=lambda info: info.flops(info.names[-1])):
            try:
                network = self._network(info.name)
                bench.features.try_out(network, bench.shas(*OPEN))
                seconds = estimate.pass_seconds(network, bench) if self.budget.limited else 0.0
            except (PluginError, WeightsError, TrainingError) as error:
                if info.name in self.choices.required:
                    raise
                self.choices.skip(error)
                continue
            if seconds > allowed and kept:
                self.watcher.note(f"Skipped {info.name}: there is no time in --budget for its first pass.")
            else:
                kept.append(info.name)
                allowed -= seconds
        if not kept:
            raise StudyError("No backbone is left to search. Name some with --backbones.")
        return tuple(kept)

    def _try_fixed(self, dataset: Dataset, backbones: Sequence[str]) -> None:
        """Report fixed parameters that no strategy seems to draw, before any time is spent.

        Raises: StudyError in a new study if a parameter cannot exist, NotAllowed if it cannot have its fixed value.
        """
        if not self.settings.set:
            return
        context = contexts(
            self.settings,
            dataset,
            catalogue=self.catalogue,
            backbones=backbones,
            drawn=self.choices.drawn,
            limits=self.choices.limits,
            arithmetic=lambda backbone: Arithmetic(),  # the test plans are not trained
        )
        strategies = [entry for name, entry in self.choices.strategies.items() if self.choices.has("strategies", name)]
        drawn = drawn_by(strategies, self.settings.set, self.choices.host, context)
        if not self.before:
            require_known(self.settings.set, drawn, self.choices.host)
        for problem in not_drawn(self.settings.set, drawn):
            self.watcher.note(f"Warning: --set: {problem} No strategy drew it for {DRAWS} test plans.")


def _require_heads(infos: Sequence[BackboneInfo], heads: Sequence[HeadKind]) -> None:
    """Raises: StudyError unless every possible cut allows one of these kinds of heads."""
    for info in infos:
        if not all(head_kinds(head_name(stage), heads) for stage in info.stages):
            raise StudyError(
                f"--heads conv needs cuts with height and width, but '{info.name}' has some that end in tokens. Name "
                "another kind, too, such as --heads linear,conv, or other --backbones."
            )


def _require_poolings(infos: Sequence[BackboneInfo], poolings: Sequence[Pooling]) -> None:
    """Raises: StudyError unless every possible cut allows one of these poolings, at any size."""
    for info in infos if poolings else ():
        if not all({*stage.poolings, "gem"}.intersection(poolings) for stage in info.stages):
            raise StudyError(
                f"--poolings {','.join(poolings)} is not possible at every cut of '{info.name}': 'token' needs a class "
                "token, 'flatten' a small map. Name another one, too: avg, max or gem."
            )
