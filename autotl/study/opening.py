"""Opening a study: what its settings name, its images, its definition, and its record in Optuna's storage."""

import json
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path

from autotl.backbones.catalogue import Catalogue
from autotl.contracts import BackboneInfo
from autotl.data import index
from autotl.data.dataset import Dataset, changes, read_split
from autotl.data.rows import trim
from autotl.data.shapes import expected
from autotl.data.split import OPEN, Split
from autotl.engine import device as devices
from autotl.engine import latency, metrics
from autotl.engine.bench import Bench
from autotl.engine.precision import Arithmetic
from autotl.errors import PluginError, StudyError, TrainingError, WeightsError, masked, unknown
from autotl.export import bundle
from autotl.files import append_line
from autotl.host import Host
from autotl.plan import HeadKind, Network, Pooling
from autotl.registry import Entry
from autotl.study import controls, estimate, recovery, similarity, start
from autotl.study import pool as pools
from autotl.study.budget import Budget, OutOfTime
from autotl.study.fixed import DRAWS, drawn_by, not_drawn, require_known
from autotl.study.inputs import Inputs
from autotl.study.limits import timed
from autotl.study.owners import absent, missing, owners_of, providers_of, require_weights, used_by
from autotl.study.pool import Pool
from autotl.study.settings import Settings
from autotl.study.space import ALL_UNNAMED, DRAWN, head_kinds, head_name, is_classifier
from autotl.study.storage import SharedStudy, check_url
from autotl.study.suggestions import Suggestions, contexts, limits_of
from autotl.study.watch import Watcher
from autotl.tracking.folder import Definition, StudyFolder, cache_dir, home

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

    def __init__(self, settings: Settings, host: Host, watcher: Watcher, began: float) -> None:
        """`began`: when the user started the search, a value of `time.monotonic()`.

        Raises: AutotlError for anything that cannot be searched; nothing has been written by then.
        """
        self.settings = settings = start.resolved(settings, host)
        self.host = host
        self.watcher = watcher
        self.folder = StudyFolder(home(settings.home) / settings.study_name)
        # A study without any trial is started again.
        before = self.before = recovery.definition_of(self.folder, settings.storage, watcher.note)
        host.recall(before.plugins if before else {})
        for problem in host.problems:
            self.skip(problem)
        self.budget = Budget(settings.budget, began)
        watcher.budget(self.budget.until_the_end)
        self.device = devices.resolve(settings.device)
        self.cache_dir = cache_dir(settings.cache_dir)
        self.catalogue = Catalogue(host, self.cache_dir, bundle.given(settings.weights), watcher.note, self.skip)
        self.columns = settings.columns.or_those(before.columns if before else {}, settings.data)
        # Errors in the data are reported before any hub is asked.
        self._listing = index.find(settings.data, self.columns)
        self.settings = settings = settings.model_copy(update={"classifiers": self._classifiers()})
        if before:
            self.settings = settings = settings.resumed(
                {**before.limits, "minimize": before.minimize},
                techniques=before.techniques,
                heads=before.heads,
                poolings=before.poolings,
                classifiers=before.classifiers,
            )
        self._used, self._libraries = used_by(self.folder.log.records() if before else ())
        self.missing = (
            missing(host, before.owners, before.plugins, self._used, self._asked_for(), watcher.note)
            if before
            else frozenset()
        )
        if before:
            require_weights(self.catalogue, before, self.missing)
        self.strategies = self._chosen("strategies", settings.strategies, before.strategies if before else None)
        self.drawn = {
            kind: self._chosen(kind, getattr(settings, kind), getattr(before, kind) if before else None)
            for kind in DRAWN.values()
        }
        for name, entry in self.drawn["methods"].items():
            if not hasattr(entry.item, "step"):
                raise StudyError(
                    f"--methods: '{name}' fits a head. Name methods that train by gradient descent, or use "
                    "--classifiers."
                )
        self.metric = host.metrics[settings.metric]
        self.scale = metrics.scale_of(self.metric)
        self._named = self._expanded(settings.backbones)
        if before:
            here = [name for name in before.backbones if self._has("backbones", name.partition(":")[0])]
            if self._named:
                _require_same("backbones", set(self._named) - set(before.skipped), here)
            self._named = here
        self._required = self._named if before else settings.backbones
        self.pool = pools.choose(self.catalogue, self._named, self._required, settings.pool, self.device, self.skip)
        for name in settings.weights:
            if name not in self.pool.backbones:
                raise StudyError(f"--weights names '{name}', which is not one of the backbones. Add it to --backbones.")
            # A file that does not fit is reported before any image is read.
            self.catalogue.build(self.catalogue.network(name, settings.seed))
        self.references = self._references()
        classes = len({file.label for file in self._listing.files})
        self.latency = before.latency if before else self._latency()
        self.limits = limits_of(settings, classes, self.catalogue, self.latency)
        if settings.limits and not before:
            self.pool = self._within_limits()

    def open(self) -> Opened:
        """Read the images, and create or resume the study.

        The study's lock must be held.

        Raises: AutotlError.
        """
        self.pool = pools.download(self.catalogue, self.pool, self._required, self.skip)
        bench = self._open_bench()
        usable = self._usable(bench)
        self._try_fixed(bench.dataset, usable)
        study = self._define(bench.dataset, usable)
        append_line(self.folder.searches, json.dumps({"time": time.time(), **self.settings.logged()}))
        suggestions = Suggestions(
            study,
            self.folder,
            self.settings,
            bench,
            backbones=tuple(self.before.backbones) if self.before else usable,
            strategies=self.strategies,
            drawn=self.drawn,
            limits=self.limits,
            watcher=self.watcher,
            budget=self.budget,
        )
        return Opened(
            folder=self.folder,
            settings=self.settings,
            bench=bench,
            study=study,
            suggestions=suggestions,
            networks={name: self._network(name) for name in usable},
            references=self.references,
            inputs=self.inputs,
            strategies={name: each for name, each in self.strategies.items() if self._has("strategies", name)},
            drawn={
                kind: {name: entry for name, entry in entries.items() if self._has(kind, name)}
                for kind, entries in self.drawn.items()
            },
            watcher=self.watcher,
            budget=self.budget,
            skip=self.skip,
        )

    def skip(self, problem: object) -> None:
        """Report a plugin's error and continue without the plugin.

        Raises: PluginError with `strict_plugins`.
        """
        self.settings.tolerate(problem)
        self.watcher.note(f"Warning: {problem}")

    def _expanded(self, patterns: Sequence[str]) -> list[str]:
        """The backbones that match names and globs; families that cannot be listed are skipped for globs.

        Raises: PluginError for a pattern that matches nothing, and if nothing is left.
        """
        found: dict[str, None] = {}
        broken: list[PluginError] = []
        for pattern in patterns:
            try:
                found |= dict.fromkeys(self.catalogue.expand([pattern]))
            except PluginError as error:
                if not error.blamed or set(pattern).isdisjoint("*?["):
                    raise
                broken.append(error)
        if broken and not found:
            raise broken[0]
        for problem in broken:
            self.skip(problem)
        return list(found)

    def _asked_for(self) -> set[str]:
        """The plugins that the user names for a study that is resumed, named as in `Owners`; its metric always."""
        families = [f"backbones {name.partition(':')[0]}" for name in self.settings.backbones]
        kinds = ("strategies", *DRAWN.values())
        named = {f"{kind} {name}" for kind in kinds for name in getattr(self.settings, kind)}
        return {*families, *named, f"metrics {self.settings.metric}"}

    def _chosen(self, kind: str, patterns: Sequence[str], before: Sequence[str] | None) -> dict[str, Entry]:
        """The entries that the user named; if none are named, in a resumed study those it was started with, in a new
        one all, or of some kinds those that say `by_default`.

        An entry that cannot be loaded is skipped, unless its name was written out in full or a trial has used it.
        """
        registry = self.host.registries[kind]
        named = {entry.name: entry for pattern in patterns for entry in registry.match(pattern)}
        here = list(registry) if before is None else [registry[name] for name in before if self._has(kind, name)]
        entries = list(named.values()) or here
        chosen = {}
        for entry in entries:
            try:
                _ = entry.item
            except PluginError as error:
                if entry.name in patterns or f"{kind} {entry.name}" in self._used:
                    raise
                self.skip(error)
                if entry.name in (before or ()):
                    self.missing |= {f"{kind} {entry.name}"}
            else:
                unnamed = not is_classifier(entry) and getattr(entry.item, "by_default", kind in ALL_UNNAMED)
                if entry.name in named or before is not None or unnamed:
                    chosen[entry.name] = entry
        if not chosen:
            raise StudyError(f"No {registry.kind} is left to search. {registry.hint}")
        if self.before is None or before is None:
            return chosen
        _require_same(registry.kind, chosen, [name for name in before if self._has(kind, name)])
        owners = self.before.owners
        return {name: chosen.get(name) or absent(f"{kind} {name}", owners[f"{kind} {name}"]) for name in before}

    def _classifiers(self) -> tuple[str, ...]:
        """The classifiers that the user named, each once.

        Raises: StudyError for a method that strategies cannot draw.
        """
        methods, found = self.host.methods, dict[str, None]()
        known = [entry.name for entry in methods if is_classifier(entry)]
        for pattern in self.settings.classifiers:
            matched = [entry.name for entry in methods if fnmatchcase(entry.name, pattern) and entry.name in known]
            if not matched:
                raise StudyError(f"--classifiers: {unknown('classifier', pattern, known)}")
            found |= dict.fromkeys(matched)
        return tuple(found)

    def _has(self, kind: str, name: str) -> bool:
        """Whether a plugin of the study is installed."""
        return f"{kind} {name}" not in self.missing

    def _references(self) -> list[str]:
        """Raises: PluginError with `strict_plugins` if a plugin that has some fails."""
        if len(self.strategies) < 2 or not any(map(self.catalogue.is_pretrained, self.pool.backbones)):
            return []
        try:
            return similarity.references(self.catalogue)
        except PluginError as error:
            self.skip(error)
            return []

    def _latency(self) -> dict[str, tuple[float, ...]]:
        """The latency of each backbone at each of its input sizes, if the study needs it."""
        if self.settings.max_latency_ms is None and self.settings.minimize != "latency":
            return {}
        found = {}
        sizes = [(name, input) for name in self.pool.backbones for input in self.catalogue.inputs(name)]
        for done, (name, input) in enumerate(sizes, 1):
            with self.catalogue.owner(name).answers_for(f"Backbone '{name}'", "fails on images"):
                where = (self.catalogue, name, input, self.device, self.cache_dir)
                found[timed(name, input)] = latency.milliseconds(*where)
            self.watcher.progress("measuring latency", done, len(sizes))
        return found

    def _within_limits(self) -> Pool:
        """The pool without backbones of which no cut is within the limits.

        Raises: StudyError if none is left.
        """
        inputs = {name: self.catalogue.card(name).input for name in self.pool.backbones}
        kept = tuple(name for name, input in inputs.items() if self.limits.cuts(name, input))
        needs = "; ".join(f"{name} {self.limits.least(name, inputs[name])}" for name in inputs if name not in kept)
        if not kept:
            raise StudyError(
                f"No backbone has a cut within {self.limits}. With its head, the cheapest cut of each has: {needs}. "
                "Raise the limit, or name other --backbones."
            )
        if needs:
            self.watcher.note(f"Skipped, because no cut is within {self.limits}; the cheapest has: {needs}.")
        downloads = {name: size for name, size in self.pool.downloads.items() if name in kept}
        return replace(self.pool, backbones=kept, downloads=downloads)

    def _open_bench(self) -> Bench:
        """The data with its pixels, and the stores that all trials share."""
        compared = controls.baselines(self.catalogue) if self.settings.compare else ()
        names = list(dict.fromkeys((*self.pool.backbones, *self.references, *compared)))
        progress = self.budget.watched(self.watcher, "reading images")
        likely = Inputs(self.catalogue, expected(self._listing)).firsts(names)
        try:
            bench = Bench.open(
                self.settings.data,
                likely,
                self.catalogue,
                self.device,
                seed=self.settings.seed,
                columns=self.columns,
                previous=read_split(self.folder.path) if self.before else None,
                near_copies=self.settings.near_copies,
                metric=self.settings.metric,
                progress=progress,
                note=self.watcher.note,
            )
            self.inputs = Inputs(self.catalogue, bench.dataset.shapes)
            for input in set(self.inputs.firsts(names)).difference(likely):
                bench.decode(input, progress)
        except OutOfTime:
            raise StudyError(
                "Reading the images takes longer than --budget. The images read so far are cached; run the same "
                "command again with a larger --budget."
            ) from None
        self.watcher.dataset(bench.dataset)
        self.watcher.scale(self.scale)
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
        trim(self.cache_dir)  # after the stores of this search are open, because open stores are kept
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
                if info.name in self._required:
                    raise
                self.skip(error)
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
            drawn=self.drawn,
            limits=self.limits,
            arithmetic=lambda backbone: Arithmetic(),  # the test plans are not trained
        )
        strategies = [entry for name, entry in self.strategies.items() if self._has("strategies", name)]
        drawn = drawn_by(strategies, self.settings.set, self.host, context)
        if not self.before:
            require_known(self.settings.set, drawn, self.host)
        for problem in not_drawn(self.settings.set, drawn):
            self.watcher.note(f"Warning: --set: {problem} No strategy drew it for {DRAWS} test plans.")

    def _define(self, dataset: Dataset, backbones: Sequence[str]) -> SharedStudy:
        """Write the definition of a new study, or compare a resumed one with its definition.

        Raises: StudyError for any difference except in the images, which may change.
        """
        before, storage = self.before, self.settings.storage
        if storage:
            check_url(storage)
        weights = {name: self._network(name).weights for name in backbones}
        theirs, providers = {}, providers_of(self.catalogue, backbones)
        if before:  # plugins that are missing now are unused so far, and may be installed again later
            providers = {**before.providers, **providers}
            weights = {name: weights.get(name, known) for name, known in before.backbones.items()}
            theirs = {what: before.owners[what] for what in self.missing}
        classifiers = {name: self.host.methods[name] for name in self.settings.classifiers}
        used = {**self.drawn, "methods": {**self.drawn["methods"], **classifiers}}
        definition = Definition(
            name=self.folder.name,
            data=str(self.settings.data.resolve()),
            columns=self.columns.said(),
            optuna=before.optuna if before else f"{self.folder.name}-{uuid.uuid4().hex[:8]}",
            storage=masked(storage) if storage else None,
            fingerprint=dataset.fingerprint,
            classes=dataset.classes,
            backbones=weights,
            providers=providers,
            skipped=before.skipped if before else tuple(sorted({*self._named, *self.pool.backbones} - set(backbones))),
            strategies=tuple(self.strategies),
            augmentations=tuple(self.drawn["augmentations"]),
            optimizers=tuple(self.drawn["optimizers"]),
            objectives=tuple(self.drawn["objectives"]),
            adapters=tuple(self.drawn["adapters"]),
            methods=tuple(self.drawn["methods"]),
            classifiers=self.settings.classifiers,
            heads=self.settings.head_kinds,
            poolings=tuple(dict.fromkeys(self.settings.poolings)),
            techniques=tuple(sorted(set(self.settings.techniques))),
            limits=self.settings.limits,
            minimize=self.settings.minimize,
            latency=self.latency,
            owners=owners_of(self.catalogue, backbones, self.strategies, used, self.metric) | theirs,
            plugins=self._plugins(),
            set=self.settings.set,
            metric=self.settings.metric,
            scale=self.scale,
            seed=self.settings.seed,
            near_copies=self.settings.near_copies,
            device=devices.kind(self.device),
            versions={name: version(name) for name in ("autotl", "optuna", "torch", "torchvision", "timm")},
        )
        differences = before.differences(definition) if before else {}
        # Plugins and libraries that no trial used may have another version now.
        unused = [key for key in differences if key.startswith("owners ")]
        unused += [f"versions {name}" for name in definition.versions if name not in self._libraries]
        differences = {key: change for key, change in differences.items() if key not in unused}
        if differences.keys() - {"fingerprint"}:
            raise StudyError(
                f"Study '{self.folder.name}' was started with other settings: "
                f"{'; '.join(f'{key} {change}' for key, change in differences.items())}. "
                "Use the same settings, or start another study: --study NAME"
            )
        if not before:
            self._forget()
        study, made_again = recovery.opened(self.folder, definition, storage, self.missing, self.watcher.note)
        if differences:
            what = changes(self.folder.path, dataset)
            self.watcher.note(f"The images have changed since the study was started ({what}). Only new trials count.")
        if differences or not before:
            self.folder.probe.unlink(missing_ok=True)
            self.folder.advice.unlink(missing_ok=True)
            dataset.write(self.folder.path)
        self.folder.define(definition)
        split = {image.sha: image.split for image in dataset.images} if differences or made_again else None
        terms = {
            "definition": definition.to_json(),
            "seed": definition.seed,
            "prune": self.settings.prune,
            "strict_plugins": self.settings.strict_plugins,
            "missing": sorted(self.missing),
        }
        study.agree(terms, split)
        return study

    def _plugins(self) -> dict[str, str]:
        """The plugins that are not installed, with those that an earlier run had and this one does not find."""
        here = {Path(path).name for path in self.host.given}
        before = self.before.plugins if self.before else {}
        return {**{path: sha for path, sha in before.items() if Path(path).name not in here}, **self.host.given}

    def _forget(self) -> None:
        """Delete an earlier study of this name without trials from Optuna's storage."""
        with suppress(StudyError):  # it is damaged, and will be replaced
            if begun := self.folder.definition:
                SharedStudy.forget(self.settings.storage or self.folder.storage_of(begun), begun.optuna)


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


def _require_same(what: str, named: Collection[str], before: Collection[str]) -> None:
    if set(named) != set(before):
        raise StudyError(
            f"The study was started with {what} {', '.join(before)}, not {', '.join(named)}. "
            "Resume it without naming them, or start another study: --study NAME"
        )
