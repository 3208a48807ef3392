"""Joining a study that a search has started, as a worker in another process, here or on another machine."""

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from autotl.backbones.catalogue import Catalogue
from autotl.data import index
from autotl.data.listing import BY_NAME, Columns
from autotl.data.shapes import expected
from autotl.engine import device as devices
from autotl.engine.bench import Bench
from autotl.engine.exact import exact
from autotl.errors import StudyError
from autotl.export import bundle
from autotl.host import Host
from autotl.registry import Entry
from autotl.study.budget import Budget, OutOfTime
from autotl.study.inputs import Inputs
from autotl.study.machine import one_line_each
from autotl.study.owners import absent, require_reachable, require_same, require_weights
from autotl.study.settings import Settings
from autotl.study.space import DRAWN
from autotl.study.storage import SharedStudy
from autotl.study.suggestions import Suggestions, limits_of
from autotl.study.trials import Trials
from autotl.study.watch import Watcher
from autotl.study.worker import Worker
from autotl.tracking.folder import Definition, StudyFolder

LOOK = 1.0
"""Seconds between two checks whether the search has started its trials."""


@dataclass(frozen=True)
class Shared:
    """What a search shares with the workers that it has started, besides the storage."""

    folder: StudyFolder
    settings: Settings
    budget: Budget


class Joining:
    """A study that a search has started, as another process sees it.

    A worker on another machine needs only Optuna's storage and the images. It writes the events of its trials to the
    storage, and the search copies them into the study's folder. A worker that the search has started writes them there
    itself.
    """

    def __init__(
        self,
        study: SharedStudy,
        host: Host,
        watcher: Watcher,
        *,
        data: Path | None,
        columns: Columns = BY_NAME,
        device: str,
        cache_dir: Path,
        weights: Mapping[str, Path],
        shared: Shared | None = None,
    ) -> None:
        """Raises: AutotlError if this machine cannot reproduce the numbers of the search's machine."""
        self.study, self.watcher, self.shared = study, watcher, shared
        self._joined: str = study.terms["definition"]
        self.definition = definition = Definition.from_json(self._joined)
        host.recall(definition.plugins)
        require_reachable(host, definition.plugins)
        for problem in host.problems:
            watcher.note(f"Warning: {problem}")
        self.data = data or Path(definition.data)
        self.columns = columns.or_those(definition.columns, self.data)
        self.device = devices.resolve(device)
        self.budget = shared.budget if shared else Budget(None, time.monotonic())
        given = bundle.given(weights)
        self.catalogue = Catalogue(
            host, cache_dir, given, watcher.note, lambda error: watcher.note(f"Warning: {error}")
        )
        kind, wanted = devices.kind(self.device), definition.device
        if kind != wanted:
            raise StudyError(f"The search runs on {wanted}, this worker on {kind}. Use --device {wanted}.")
        for name, theirs in definition.versions.items():
            if version(name) != theirs:
                raise StudyError(
                    f"The search uses {name} {theirs}, this worker {version(name)}. Install the same version."
                )
        self.missing: list[str] = study.terms["missing"]
        require_same(host, definition.owners, definition.plugins, self.missing)
        require_weights(self.catalogue, definition, self.missing)
        there = definition.backbones
        self._backbones = [name for name in there if f"backbones {name.partition(':')[0]}" not in self.missing]
        for name in self._backbones:
            if self.catalogue.network(name, definition.seed).weights != there[name]:
                raise StudyError(
                    f"The search uses other weights for '{name}'. Use the same: --weights {name}=FILE, or =BUNDLE"
                )
        self.strategies = self._entries("strategies", definition.strategies)
        self.drawn = {kind: self._entries(kind, getattr(definition, kind)) for kind in DRAWN.values()}

    def run(self) -> int:
        """Run trials until none is left to claim; returns how many.

        Raises: AutotlError.
        """
        with (
            one_line_each(self.definition.name),
            exact(self.device),
            tempfile.TemporaryDirectory(prefix="autotl-worker-") as place,
        ):
            worker, done = self.worker(StudyFolder(Path(place) / self.definition.name)), 0
            try:
                while worker.trials.run_one(self._total()):
                    done += 1
            except OutOfTime:
                self.watcher.note(
                    "The search has stopped or has other images. Its next run resumes the trial that was started here."
                )
            return done

    def worker(self, folder: StudyFolder) -> Worker:
        """A worker that logs its trials in `folder`.

        Raises: AutotlError.
        """
        definition, bench = self.definition, self._open()
        settings = self.shared.settings if self.shared else self._settings()
        suggestions = Suggestions(
            self.study,
            folder,
            settings,
            bench,
            backbones=tuple(definition.backbones),
            strategies=self.strategies,
            drawn=self.drawn,
            limits=limits_of(settings, len(bench.dataset.classes), self.catalogue, definition.latency),
            watcher=self.watcher,
            budget=self.budget,
        )
        trials = Trials(suggestions, folder, saves=self.shared is not None)
        return Worker(bench, trials, self.watcher, self.budget)

    def _settings(self) -> Settings:
        """Those of the search that a worker on another machine needs."""
        definition = self.definition
        return Settings.of(
            {
                "data": self.data,
                "trials": max(1, self._total()),
                "metric": definition.metric,
                "seed": definition.seed,
                "near_copies": definition.near_copies,
                "heads": definition.heads,
                "classifiers": definition.classifiers,
                "poolings": definition.poolings,
                "techniques": definition.techniques,
                "set": definition.set,
                **definition.limits,
                "minimize": definition.minimize,
                "prune": self.study.terms["prune"],
                "strict_plugins": self.study.terms["strict_plugins"],
            }
        )

    def _open(self) -> Bench:
        """The images, which must be the same as those of the search, in the same splits."""
        definition = self.definition
        bench = Bench.open(
            self.data,
            Inputs(self.catalogue, expected(index.find(self.data, self.columns))).firsts(self._backbones),
            self.catalogue,
            self.device,
            seed=definition.seed,
            columns=self.columns,
            previous=self.study.split,
            near_copies=definition.near_copies,
            metric=definition.metric,
            progress=self.budget.watched(self.watcher, "reading images"),
            note=self.watcher.note,
        )
        self.watcher.dataset(bench.dataset)
        self.watcher.scale(bench.scale)
        if bench.dataset.fingerprint != definition.fingerprint:
            raise StudyError(f"The images in {self.data} are not those of the search. Name their folder: --data PATH")
        return bench

    def _total(self) -> int:
        """How many trials the search wants, 0 if it is over; waits until the search starts its trials."""
        terms = self.study.terms
        if terms["total"] is None:
            self.watcher.note("Waiting for the search to start its trials …")
        while terms["total"] is None:
            time.sleep(LOOK)
            terms = self.study.terms
        total: int = terms["total"]
        return total if terms["definition"] == self._joined else 0

    def _entries(self, kind: str, names: Sequence[str]) -> dict[str, Entry]:
        """The search's entries of a kind; placeholders for those that it continues without."""
        registry, owners = self.catalogue.host.registries[kind], self.definition.owners
        entries = {}
        for name in names:
            what = f"{kind} {name}"
            if what in self.missing:
                entries[name] = absent(what, owners[what])
            else:
                entries[name] = registry[name]
        return entries
