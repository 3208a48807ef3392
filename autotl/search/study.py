"""The study: Optuna searches, the engine trains, the study folder remembers."""

import json
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from importlib.metadata import version

import numpy as np
import optuna
import sqlalchemy

from autotl.backbones.catalogue import Catalogue
from autotl.contracts import DataFacts
from autotl.data.dataset import Dataset, open_dataset, read_split
from autotl.data.pixels import PixelStore
from autotl.data.rows import StoreError, trim
from autotl.engine import device as devices
from autotl.engine import probe
from autotl.engine.features import FeatureStore
from autotl.engine.fit import Bench, fit
from autotl.errors import PluginError, StudyError, one_line
from autotl.files import write
from autotl.host import Host
from autotl.plan import DataRef, TransferPlan
from autotl.registry import Entry, Registry
from autotl.search import pool as pools
from autotl.search import select
from autotl.search.estimate import estimate
from autotl.search.finish import finish
from autotl.search.result import Result
from autotl.search.sampler import NumberedSampler
from autotl.search.settings import Settings
from autotl.search.space import SearchContext, pooling_name, share_of
from autotl.search.watch import ProbeRow, Watcher
from autotl.tracking.folder import Definition, StudyFolder, cache_dir, home
from autotl.tracking.log import ENDED

FIRST_GUESSES = 5
"""How many of the probe's best cuts, each of another backbone, are tried before the sampler chooses."""


class _TrialFailed(Exception):
    """What a plugin or a training got wrong in one trial: the search goes on."""


class Search:
    """One search in one study folder."""

    def __init__(self, settings: Settings, host: Host, watcher: Watcher) -> None:
        """Raises: AutotlError for anything that cannot be searched; nothing has been written then."""
        self.settings = settings
        self.host = host
        self.watcher = watcher
        self.done = 0
        """How many trials of the study have ended."""
        self.device = devices.resolve(settings.device)
        self.cache_dir = cache_dir(settings.cache_dir)
        self.catalogue = Catalogue(host, self.cache_dir, settings.weights)
        self.folder = StudyFolder(home(settings.home) / settings.study_name)
        # A study without a single trial has decided nothing yet: it is begun anew.
        before = self.before = self.folder.definition if any(self.folder.log.records()) else None
        self.strategies = _chosen(host.strategies, settings.strategies, before.strategies if before else None)
        self.augmentations = _chosen(
            host.augmentations, settings.augmentations, before.augmentations if before else None
        )
        named = self.catalogue.expand(settings.backbones)
        if before:
            _require_same("backbones", named, tuple(before.backbones))
            named = list(before.backbones)
        self.pool = pools.choose(self.catalogue, named, settings.pool, self.device)
        for name in settings.weights:
            if name not in self.pool.backbones:
                raise StudyError(
                    f"--weights names '{name}', which is not among the backbones: name it in --backbones too."
                )

    def run(self) -> Result:
        """From the images to the tested bundle; goes on where an earlier run of the study stopped."""
        began = time.perf_counter()
        with self.folder.lock():
            pools.download(self.catalogue, self.pool)
            bench = self._open()
            study = self._define(bench.dataset)
            self._close_interrupted(study)
            self.done = sum(record.state in ENDED for record in self.folder.log.records())
            missing = max(0, self.settings.trials - self.done)
            rows = self._prepare(bench, missing)
            self._optimize(study, bench, rows, missing)
            return finish(self.folder, self.settings, bench, self.watcher, began)

    def _open(self) -> Bench:
        """The data with its pixels, and the stores that all trials share."""
        pixels = PixelStore(self.cache_dir)
        names = [*self.pool.backbones, *([select.PIXELS] if "reference" in self.host.backbones else [])]
        inputs = list(dict.fromkeys(self.catalogue.card(name).input for name in names))
        dataset = open_dataset(
            self.settings.data,
            seed=self.settings.seed,
            inputs=inputs,
            pixels=pixels,
            previous=read_split(self.folder.path) if self.before else None,
            progress=partial(self.watcher.progress, "reading images"),
        )
        self.watcher.dataset(dataset)
        bench = Bench(dataset, FeatureStore(self.cache_dir, self.catalogue, pixels, self.device))
        for name in self.pool.backbones:
            bench.features.missing(name, self.catalogue.weights(name, self.settings.seed), [])
        trim(self.cache_dir)  # not before the stores of this search are open, for those are kept
        return bench

    def _define(self, dataset: Dataset) -> optuna.Study:
        """Write what the study is before its first trial, or make sure that it still is that.

        Raises: StudyError for any difference but in the images, which may grow.
        """
        before, storage = self.before, self.settings.storage
        definition = Definition(
            name=self.folder.name,
            optuna=before.optuna if before else f"{self.folder.name}-{uuid.uuid4().hex[:8]}",
            storage=_without_password(storage) if storage else None,
            fingerprint=dataset.fingerprint,
            classes=dataset.classes,
            backbones={name: self.catalogue.weights(name, self.settings.seed) for name in self.pool.backbones},
            strategies=tuple(self.strategies),
            augmentations=tuple(self.augmentations),
            metric=self.settings.metric,
            seed=self.settings.seed,
            device=self.device,
            versions={name: version(name) for name in ("autotl", "optuna", "torch", "torchvision", "timm")},
        )
        differences = before.differences(definition) if before else {}
        if differences.keys() - {"fingerprint"}:
            raise StudyError(
                f"Study '{self.folder.name}' was begun otherwise "
                f"({'; '.join(f'{key}: {change}' for key, change in differences.items())}). "
                "Go on with what it was begun with, or start another: --study NAME"
            )
        study = self._optuna_study(definition.optuna)
        if differences:
            self.watcher.note("The images have changed since the study was begun: only new trials count for them.")
            self.folder.probe.unlink(missing_ok=True)
        if differences or not before:
            dataset.write(self.folder.path)
            self.folder.define(definition)
        return study

    def _optuna_study(self, name: str) -> optuna.Study:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        url = self.settings.storage or f"sqlite:///{self.folder.path.resolve() / 'optuna.db'}"
        try:
            return optuna.create_study(
                study_name=name,
                storage=url,
                sampler=NumberedSampler(self.settings.seed),
                direction="maximize",
                load_if_exists=True,
            )
        except Exception as error:  # whatever the database's driver raises
            reason = one_line(error, 300)
            raise StudyError(f"Optuna cannot use the storage {self.settings.storage or url}: {reason}") from error

    def _close_interrupted(self, study: optuna.Study) -> None:
        """End what a killed process left running: this process holds the study, so nobody else works on it."""
        for trial in study.get_trials(states=[optuna.trial.TrialState.RUNNING], deepcopy=False):
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        for record in self.folder.log.records():
            if record.state == "running":
                self.folder.log.end(record.number, "interrupted", reason="its process was killed")

    def _prepare(self, bench: Bench, missing: int) -> list[ProbeRow]:
        """Features of every backbone, and the probe's look at every cut."""
        if missing:
            self.watcher.estimate(estimate(self.pool.backbones, bench, self.settings.seed, missing), missing)
        else:
            self.watcher.note(
                f"Study '{self.folder.name}' has its {self.settings.trials} trials; a larger --trials adds some."
            )
        shas = bench.shas("train", "stop", "rank", "test")
        for name in self.pool.backbones:
            weights = self.catalogue.weights(name, self.settings.seed)
            bench.features.fill(name, weights, shas, partial(self.watcher.progress, f"features of {name}"))
        if self.folder.probe.exists():
            rows = [ProbeRow(**row) for row in json.loads(self.folder.probe.read_text())]
        else:
            rows = self._probe(bench)
            write(self.folder.probe, json.dumps([asdict(row) for row in rows], indent=1) + "\n")
        self.watcher.probed(rows)
        return rows

    def _probe(self, bench: Bench) -> list[ProbeRow]:
        shas, labels = bench.shas("train", "stop"), bench.labels("train", "stop")
        seen = probe.subset(labels, self.settings.seed)
        shas, labels = [shas[i] for i in seen], labels.cpu()[seen]
        cells = [
            (info, stage.name, pooling)
            for info in map(self.catalogue.info, self.pool.backbones)
            for stage in info.stages
            for pooling in stage.poolings
        ]
        rows = []
        for done, (info, cut, pooling) in enumerate(cells, 1):
            weights = self.catalogue.weights(info.name, self.settings.seed)
            features = bench.features.read(info.name, weights, cut, pooling, shas)
            accuracy = probe.ridge_accuracy(features, labels, len(bench.dataset.classes))
            rows.append(ProbeRow(info.name, cut, pooling, accuracy))
            self.watcher.progress("probing cuts", done, len(cells))
        return rows

    def _optimize(self, study: optuna.Study, bench: Bench, rows: Sequence[ProbeRow], missing: int) -> None:
        """Run the trials that the study still lacks."""
        if not study.trials:
            for params in self._first_guesses(rows):
                study.enqueue_trial(params)
        if missing:
            study.optimize(self._objective(bench), n_trials=missing, catch=(_TrialFailed,))

    def _first_guesses(self, rows: Sequence[ProbeRow]) -> list[dict[str, object]]:
        guesses = []
        for row in rows:
            info = self.catalogue.info(row.backbone)
            params: dict[str, object] = {
                "backbone": row.backbone,
                "cut": share_of(info.names.index(row.cut), len(info.names)),
                pooling_name(info.stage(row.cut).poolings): row.pooling,
            }
            guesses.append((row.backbone, row.accuracy, params))
        return select.first_guesses(guesses, most=FIRST_GUESSES)

    def _objective(self, bench: Bench) -> Callable[[optuna.Trial], float]:
        log = self.folder.log
        known = {record.plan.hash: record.metrics for record in log.records() if record.plan and record.metrics}

        facts = _facts(bench.dataset)
        reference = DataRef(fingerprint=bench.dataset.fingerprint, split_seed=self.settings.seed)

        def objective(trial: optuna.Trial) -> float:
            began = time.perf_counter()
            log.begin(trial.number)
            try:
                plan = self._suggest(trial, facts, reference)
                log.planned(trial.number, trial.params, plan)
                self.watcher.trial_planned(trial.number, plan.backbone, plan.cut, trial.params["strategy"])
                # The same plan gives the same numbers, so it is not trained twice.
                if plan.hash not in known:
                    known[plan.hash] = fit(plan, bench).metrics
                measured = known[plan.hash]
                value = measured[f"rank.{self.settings.metric}"]
            except (KeyboardInterrupt, OSError, StoreError, MemoryError) as error:
                # What is wrong with this machine would be wrong in every trial.
                log.end(trial.number, "interrupted", reason=type(error).__name__)
                raise
            except Exception as error:
                kind = "" if isinstance(error, PluginError) else f"{type(error).__name__}: "
                reason = one_line(f"{kind}{error}")
                log.end(trial.number, "failed", seconds=time.perf_counter() - began, reason=reason)
                self._ended(trial.number)
                raise _TrialFailed(reason) from error
            log.end(trial.number, "complete", value=value, metrics=measured, seconds=time.perf_counter() - began)
            self._ended(trial.number)
            return value

        return objective

    def _ended(self, number: int) -> None:
        self.done += 1
        self.watcher.trial_ended(self.folder.log.read(number), self.done, self.settings.trials)

    def _suggest(self, trial: optuna.Trial, facts: DataFacts, reference: DataRef) -> TransferPlan:
        entry = self.strategies[trial.suggest_categorical("strategy", list(self.strategies))]
        context = SearchContext(
            trial,
            catalogue=self.catalogue,
            backbones=self.pool.backbones,
            augmentations=self.augmentations,
            data=facts,
            data_ref=reference,
            seed=self.settings.seed,
        )
        plan = entry.item.suggest(trial, context)
        if not isinstance(plan, TransferPlan):
            raise PluginError(
                f"Strategy '{entry.name}' of {entry.owner.distribution} {entry.owner.version} suggested "
                f"{type(plan).__name__}, not a plan."
            )
        return plan


def _without_password(url: str) -> str:
    try:
        return sqlalchemy.engine.make_url(url).render_as_string(hide_password=True)
    except sqlalchemy.exc.ArgumentError:
        raise StudyError(f"--storage '{url}' is no database URL, such as postgresql://user@host/name.") from None


def _facts(dataset: Dataset) -> DataFacts:
    labels = dataset.labels("train")
    return DataFacts(
        classes=len(dataset.classes),
        train_images=len(labels),
        smallest_class=int(np.bincount(labels, minlength=len(dataset.classes)).min()),
        has_stop=bool(dataset.shas("stop")),
    )


def _chosen(registry: Registry, patterns: Sequence[str], before: Sequence[str] | None) -> dict[str, Entry]:
    """The entries that the user named, all of them where none are named; those it was begun with when it goes on."""
    named = [entry.name for pattern in patterns for entry in registry.match(pattern)]
    if before is not None:
        _require_same(registry.kind, named, before)
    return {name: registry[name] for name in before or named or [entry.name for entry in registry]}


def _require_same(what: str, named: Sequence[str], before: Sequence[str]) -> None:
    if named and set(named) != set(before):
        raise StudyError(
            f"The study was begun with {what} {', '.join(before)}, not {', '.join(named)}. "
            "Go on without naming them, or start another study: --study NAME"
        )
