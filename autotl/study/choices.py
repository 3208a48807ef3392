"""What a study searches: the backbones, strategies and other plugins that its settings or its definition name."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from autotl.backbones.catalogue import Catalogue
from autotl.data import index
from autotl.engine import device as devices
from autotl.engine import latency, metrics
from autotl.errors import PluginError, StudyError, unknown
from autotl.export import bundle
from autotl.host import Host
from autotl.registry import Entry
from autotl.study import pool as pools
from autotl.study import recovery, similarity, start
from autotl.study.limits import timed
from autotl.study.owners import absent, missing, require_weights, used_by
from autotl.study.pool import Pool
from autotl.study.settings import Settings
from autotl.study.space import ALL_UNNAMED, DRAWN, is_classifier
from autotl.study.suggestions import limits_of
from autotl.study.watch import Watcher
from autotl.tracking.folder import StudyFolder, cache_dir, home


class Choices:
    """Everything about a study that is settled before any image is read."""

    def __init__(self, settings: Settings, host: Host, watcher: Watcher) -> None:
        """Raises: AutotlError for anything that cannot be searched; nothing has been written by then."""
        self.settings = settings = start.resolved(settings, host)
        self.host = host
        self.watcher = watcher
        self.folder = StudyFolder(home(settings.home) / settings.study_name)
        # A study without any trial is started again.
        before = self.before = recovery.definition_of(self.folder, settings.storage, watcher.note)
        host.recall(before.plugins if before else {})
        for problem in host.problems:
            self.skip(problem)
        self.device = devices.resolve(settings.device)
        self.cache_dir = cache_dir(settings.cache_dir)
        self.catalogue = Catalogue(host, self.cache_dir, bundle.given(settings.weights), watcher.note, self.skip)
        self.columns = settings.columns.or_those(before.columns if before else {}, settings.data)
        # Errors in the data are reported before any hub is asked.
        self.listing = index.find(settings.data, self.columns)
        self.settings = settings = settings.model_copy(update={"classifiers": self._classifiers()})
        if before:
            self.settings = settings = settings.resumed(
                {**before.limits, "minimize": before.minimize},
                techniques=before.techniques,
                heads=before.heads,
                poolings=before.poolings,
                classifiers=before.classifiers,
            )
        self.used, self.libraries = used_by(self.folder.log.records() if before else ())
        self.missing = (
            missing(host, before.owners, before.plugins, self.used, self._asked_for(), watcher.note)
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
        self.named = self._expanded(settings.backbones)
        if before:
            here = [name for name in before.backbones if self.has("backbones", name.partition(":")[0])]
            if self.named:
                _require_same("backbones", set(self.named) - set(before.skipped), here)
            self.named = here
        self.required = self.named if before else settings.backbones
        self.pool = pools.choose(self.catalogue, self.named, self.required, settings.pool, self.device, self.skip)
        for name in settings.weights:
            if name not in self.pool.backbones:
                raise StudyError(f"--weights names '{name}', which is not one of the backbones. Add it to --backbones.")
            # A file that does not fit is reported before any image is read.
            self.catalogue.build(self.catalogue.network(name, settings.seed))
        self.references = self._references()
        classes = len({file.label for file in self.listing.files})
        self.latency = before.latency if before else self._latency()
        self.limits = limits_of(settings, classes, self.catalogue, self.latency)
        if settings.limits and not before:
            self.pool = self._within_limits()

    def skip(self, problem: object) -> None:
        """Report a plugin's error and continue without the plugin.

        Raises: PluginError with `strict_plugins`.
        """
        self.settings.tolerate(problem)
        self.watcher.note(f"Warning: {problem}")

    def has(self, kind: str, name: str) -> bool:
        """Whether a plugin of the study is installed."""
        return f"{kind} {name}" not in self.missing

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
        here = list(registry) if before is None else [registry[name] for name in before if self.has(kind, name)]
        entries = list(named.values()) or here
        chosen = {}
        for entry in entries:
            try:
                _ = entry.item
            except PluginError as error:
                if entry.name in patterns or f"{kind} {entry.name}" in self.used:
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
        _require_same(registry.kind, chosen, [name for name in before if self.has(kind, name)])
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


def _require_same(what: str, named: Collection[str], before: Collection[str]) -> None:
    if set(named) != set(before):
        raise StudyError(
            f"The study was started with {what} {', '.join(before)}, not {', '.join(named)}. "
            "Resume it without naming them, or start another study: --study NAME"
        )
