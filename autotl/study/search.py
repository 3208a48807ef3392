"""The study: from the images to the tested bundle, and on from wherever an earlier run stopped."""

import json
import time
import uuid
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version

from autotl.backbones.catalogue import Catalogue
from autotl.data import index
from autotl.data.dataset import Dataset, changes, read_split
from autotl.data.rows import trim
from autotl.data.shapes import expected
from autotl.data.split import SPLITS
from autotl.engine import device as devices
from autotl.engine import probe
from autotl.engine.bench import Bench
from autotl.engine.exact import exact
from autotl.errors import PluginError, StudyError, TrainingError, WeightsError, masked
from autotl.export import bundle
from autotl.files import append_line, settle
from autotl.host import Host
from autotl.plan import Network
from autotl.registry import Entry
from autotl.study import controls, estimate, guesses, recovery, select, start
from autotl.study import pool as pools
from autotl.study.budget import Budget, OutOfTime
from autotl.study.crew import Crew
from autotl.study.finish import finish
from autotl.study.inputs import Inputs
from autotl.study.machine import one_line_each
from autotl.study.owners import absent, missing, owners_of, used_by
from autotl.study.settings import Settings
from autotl.study.storage import GUESS, SharedStudy, check_url
from autotl.study.suggestions import Suggestions
from autotl.study.trials import Trials
from autotl.study.watch import Watcher
from autotl.tracking.folder import Definition, StudyFolder, cache_dir, home
from autotl.tracking.probe import ProbeRow, read_probe, write_probe
from autotl.tracking.result import Result
from autotl.tracking.shipping import PATIENCE, Shipping, tracking_option, tracking_uri

FIRST_PASSES = 0.35
"""The share of a budget that may go into the first pass of the images through the backbones."""
FIRST_TRAININGS = 0.6
"""The share of what is left after it that may go into the first guesses of all strategies together."""


class Search:
    """One search in one study folder."""

    def __init__(self, settings: Settings, host: Host, watcher: Watcher, began: float) -> None:
        """`began`: when the user began to wait, a value of `time.monotonic()`.

        Raises: AutotlError for anything that cannot be searched; nothing has been written then.
        """
        self.settings = settings = start.resolved(settings)
        self.host = host
        self.watcher = watcher
        for problem in host.problems:
            self._leave_out(problem)
        self.budget = Budget(settings.budget, began)
        watcher.budget(self.budget.until_the_end)
        self.device = devices.resolve(settings.device)
        self.cache_dir = cache_dir(settings.cache_dir)
        self.catalogue = Catalogue(host, self.cache_dir, bundle.given(settings.weights), watcher.note)
        self.folder = StudyFolder(home(settings.home) / settings.study_name)
        self._shipping: Shipping | None = None
        # A study without a single trial has decided nothing yet: it is begun anew.
        before = self.before = recovery.definition_of(self.folder, settings.storage, watcher.note)
        self.columns = settings.columns.or_those(before.columns if before else {}, settings.data)
        # What is wrong there is said before anybody asks a hub.
        self._listing = index.find(settings.data, self.columns)
        self._used, self._libraries = used_by(self.folder.log.records() if before else ())
        self.missing = (
            missing(host, before.owners, self._used | self._asked_for(), watcher.note) if before else frozenset()
        )
        self.strategies = self._chosen("strategies", settings.strategies, before.strategies if before else None)
        self.augmentations = self._chosen(
            "augmentations", settings.augmentations, before.augmentations if before else None
        )
        self._named = self._expanded(settings.backbones)
        if before:
            here = [name for name in before.backbones if self._has("backbones", name.partition(":")[0])]
            if self._named:
                _require_same("backbones", set(self._named) - set(before.left_out), here)
            self._named = here
        self._required = self._named if before else settings.backbones
        self.pool = pools.choose(
            self.catalogue, self._named, self._required, settings.pool, self.device, self._leave_out
        )
        for name in settings.weights:
            if name not in self.pool.backbones:
                raise StudyError(
                    f"--weights names '{name}', which is not among the backbones: name it in --backbones too."
                )
            # A file that does not fit is found before any image is read.
            self.catalogue.build(self.catalogue.network(name, settings.seed))

    def run(self) -> Result:
        """From the images to the tested bundle; goes on where an earlier run of the study stopped.

        Raises: StudyError, among others for a disk or a database that fails; what was done is kept.
        """
        pools.announce(self.pool, self.watcher, self.settings.yes)
        try:
            with one_line_each(self.folder.name), self.folder.lock(), exact(self.device):
                settle(self.folder.bundle)
                self.pool = pools.download(self.catalogue, self.pool, self._required, self._leave_out)
                bench = self._open()
                backbones = self._usable(bench)
                study = self._define(bench.dataset, backbones)
                append_line(self.folder.searches, json.dumps({"time": time.time(), **self.settings.told()}))
                self._begin_logging()
                suggestions = Suggestions(
                    study,
                    self.folder,
                    self.settings,
                    bench,
                    backbones=tuple(self.before.backbones) if self.before else backbones,
                    strategies=self.strategies,
                    augmentations=self.augmentations,
                    watcher=self.watcher,
                    budget=self.budget,
                )
                self._try_out(bench, backbones, study, Trials(suggestions, keep=True))
                return finish(self.folder, self.settings, bench, self.watcher, self.budget)
        finally:
            if self._shipping:
                self._shipping.leave()

    def end_logging(self) -> None:
        """Wait, within reason, until MLflow has all of it."""
        if not self._shipping:
            return
        uri = self.settings.tracking_uri
        again = f"{self.folder.words}{tracking_option(uri)}"
        at_once = self._shipping.wait(1)
        if not at_once:
            self.watcher.note("Telling MLflow the rest …")
        if not self._shipping.wait(PATIENCE):
            self.watcher.note(f"It takes long, and goes on by itself. To make sure: autotl log {again}")
        elif self._shipping.failed:
            self.watcher.note(f"MLflow does not have all of it. Tell it later: autotl log {again}")
        elif not at_once:
            self.watcher.note(f"Done. See it: autotl ui {again}")

    def _leave_out(self, problem: object) -> None:
        """Go on without what a plugin got wrong, and say so.

        Raises: PluginError where plugins are strict.
        """
        self.settings.tolerate(problem)
        self.watcher.note(f"Warning: {problem}")

    def _expanded(self, patterns: Sequence[str]) -> list[str]:
        """The backbones that names and globs fit; of globs without those of a family that cannot be listed.

        Raises: PluginError for what fits nothing, and where nothing is left.
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
            self._leave_out(problem)
        return list(found)

    def _asked_for(self) -> set[str]:
        """What the user names for a study that goes on, as in `Owners`."""
        families = [f"backbones {name.partition(':')[0]}" for name in self.settings.backbones]
        strategies = [f"strategies {name}" for name in self.settings.strategies]
        return {*families, *strategies, *(f"augmentations {name}" for name in self.settings.augmentations)}

    def _chosen(self, kind: str, patterns: Sequence[str], before: Sequence[str] | None) -> dict[str, Entry]:
        """The entries that the user named, all where none are named; those it was begun with when it goes on.

        One that cannot be loaded is left out, unless its name was written out in full or a trial has used it.
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
                self._leave_out(error)
                if entry.name in (before or ()):
                    self.missing |= {f"{kind} {entry.name}"}
            else:
                chosen[entry.name] = entry
        if not chosen:
            raise StudyError(f"No {registry.kind} is left to search. {registry.hint}")
        if self.before is None or before is None:
            return chosen
        _require_same(registry.kind, chosen, [name for name in before if self._has(kind, name)])
        owners = self.before.owners
        return {name: chosen.get(name) or absent(f"{kind} {name}", owners[f"{kind} {name}"]) for name in before}

    def _has(self, kind: str, name: str) -> bool:
        """Whether the study need not go on without this."""
        return f"{kind} {name}" not in self.missing

    def _begin_logging(self) -> None:
        if self.settings.mlflow:
            uri = tracking_uri(self.settings.tracking_uri, self.folder.path.parent)
            self._shipping = Shipping(self.folder, uri, self.cache_dir, self.watcher.note)

    def _open(self) -> Bench:
        """The data with its pixels, and the stores that all trials share."""
        compared = self.settings.compare and "reference" in self.host.backbones
        names = [*self.pool.backbones, *([controls.PIXELS] if compared else [])]
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
                progress=progress,
                note=self.watcher.note,
            )
            self.inputs = Inputs(self.catalogue, bench.dataset.shapes)
            for input in set(self.inputs.firsts(names)).difference(likely):
                bench.decode(input, progress)
        except OutOfTime:
            raise StudyError("The images alone take longer to read than --budget. What was read is kept.") from None
        self.watcher.dataset(bench.dataset)
        if not self.before:
            start.require_unseen(bench.dataset, self.settings.weights.values())
        for note in self.inputs.notes():
            self.watcher.note(note)
        for name in self.pool.backbones:
            bench.features.open(self._network(name))
        trim(self.cache_dir)  # not before the stores of this search are open, for those are kept
        return bench

    def _network(self, name: str) -> Network:
        return self.inputs.network(name, self.settings.seed)

    def _usable(self, bench: Bench) -> tuple[str, ...]:
        """The backbones of the study, the cheapest first; without those that fail, or that a budget has no time for."""
        if self.before:
            return self.pool.backbones
        infos = map(self.catalogue.info, self.pool.backbones)
        allowed = FIRST_PASSES * self.budget.seconds
        kept: list[str] = []
        for info in sorted(infos, key=lambda info: info.flops(info.names[-1])):
            try:
                network = self._network(info.name)
                bench.features.try_out(network, bench.shas(*SPLITS))
                seconds = estimate.pass_seconds(network, bench) if self.budget.limited else 0.0
            except (PluginError, WeightsError, TrainingError) as error:
                if info.name in self._required:
                    raise
                self._leave_out(error)
                continue
            if seconds > allowed and kept:
                self.watcher.note(f"Left out, for there is no time in --budget for its first pass: {info.name}")
            else:
                kept.append(info.name)
                allowed -= seconds
        if not kept:
            raise StudyError("No backbone is left to search. Name some: --backbones")
        return tuple(kept)

    def _define(self, dataset: Dataset, backbones: Sequence[str]) -> SharedStudy:
        """Write what the study is before its first trial, or make sure that it still is that.

        Raises: StudyError for any difference but in the images, which may grow.
        """
        before, storage = self.before, self.settings.storage
        if storage:
            check_url(storage)
        weights = {name: self._network(name).weights for name in backbones}
        theirs = {}
        if before:  # of what is not here no trial makes any use, and there it may be again
            weights = {name: weights.get(name, known) for name, known in before.backbones.items()}
            theirs = {what: before.owners[what] for what in self.missing}
        definition = Definition(
            name=self.folder.name,
            data=str(self.settings.data.resolve()),
            columns=self.columns.said(),
            optuna=before.optuna if before else f"{self.folder.name}-{uuid.uuid4().hex[:8]}",
            storage=masked(storage) if storage else None,
            fingerprint=dataset.fingerprint,
            classes=dataset.classes,
            backbones=weights,
            left_out=before.left_out
            if before
            else tuple(sorted({*self._named, *self.pool.backbones} - set(backbones))),
            strategies=tuple(self.strategies),
            augmentations=tuple(self.augmentations),
            owners=owners_of(self.catalogue, backbones, self.strategies, self.augmentations) | theirs,
            metric=self.settings.metric,
            seed=self.settings.seed,
            near_copies=self.settings.near_copies,
            device=devices.kind(self.device),
            versions={name: version(name) for name in ("autotl", "optuna", "torch", "torchvision", "timm")},
        )
        differences = before.differences(definition) if before else {}
        # What no trial used may be of another version by now.
        unused = [key for key in differences if key.startswith("owners ")]
        unused += [f"versions {name}" for name in definition.versions if name not in self._libraries]
        differences = {key: change for key, change in differences.items() if key not in unused}
        if differences.keys() - {"fingerprint"}:
            raise StudyError(
                f"Study '{self.folder.name}' was begun otherwise "
                f"({'; '.join(f'{key}: {change}' for key, change in differences.items())}). "
                "Go on with what it was begun with, or start another: --study NAME"
            )
        if not before:
            self._forget()
        study, made_again = recovery.opened(self.folder, definition, storage, self.missing, self.watcher.note)
        if differences:
            what = changes(self.folder.path, dataset)
            self.watcher.note(f"The images have changed since the study was begun ({what}): only new trials count.")
        if differences or not before:
            self.folder.probe.unlink(missing_ok=True)
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

    def _forget(self) -> None:
        """Delete from Optuna's storage what was begun under this name and came to nothing."""
        with suppress(StudyError):  # damaged, and in nobody's way
            if begun := self.folder.definition:
                SharedStudy.forget(self.settings.storage or self.folder.storage_of(begun), begun.optuna)

    def _try_out(self, bench: Bench, backbones: Sequence[str], study: SharedStudy, trials: Trials) -> None:
        """The probe and the trials, as far as the budget goes.

        The cheapest backbone comes first, and its best cut is the first trial: so a usable model is there early.
        """
        crew = Crew(study, self.folder, trials)
        strategies = {name: each for name, each in self.strategies.items() if self._has("strategies", name)}
        augmentations = {name: each for name, each in self.augmentations.items() if self._has("augmentations", name)}
        known = guesses.Guesses(
            self.catalogue, self.inputs, strategies, augmentations, self._leave_out, metric=self.settings.metric
        )
        if study.done < self.settings.trials:
            self.watcher.estimate(estimate.estimate(list(map(self._network, backbones)), bench))
        else:
            self.watcher.note(
                f"Study '{self.folder.name}' has {study.done} trials, and {self.settings.trials} are asked for: a "
                "larger --trials adds some. What an earlier run had no time for after them is made up for."
            )
        try:
            rows = [row for row in read_probe(self.folder) if row.backbone in backbones]
            for name in backbones:
                progress = self.budget.watched(self.watcher, f"features of {name}")
                try:
                    bench.features.fill(self._network(name), bench.shas(*SPLITS), progress)
                except PluginError as error:  # on images that it was not tried out on
                    if name in self.settings.backbones:
                        raise
                    self._leave_out(error)
                    continue
                if name not in {row.backbone for row in rows}:
                    fresh = self._probe(name, bench)
                    write_probe(self.folder, [*read_probe(self.folder), *fresh])
                    rows += fresh
                if name == rows[0].backbone:
                    first = known.linear_probes(rows)[:1]
                    self._enqueue(study, f"{bench.dataset.fingerprint} first", first)
                    crew.run(min(len(first), self.settings.trials))
            if not rows:
                raise StudyError("No backbone is left to search. Name some: --backbones")
            self.watcher.probed(rows)
            self._enqueue(
                study, bench.dataset.fingerprint, known.before_sampling(rows, self._first_trained(rows, trials))
            )
            study.open(self.settings.trials)
            crew.run(self.settings.trials)
        except OutOfTime:
            crew.catch_up()  # what there is by now is what there is to choose from
        finally:
            study.open(0)
            crew.let_go()

    def _probe(self, name: str, bench: Bench) -> list[ProbeRow]:
        """What every cut of a backbone tells about the images."""
        shas, labels = bench.shas("train", "early_stop"), bench.labels("train", "early_stop")
        seen = probe.subset(labels, self.settings.seed)
        units = bench.units("train", "early_stop")[seen]
        shas, labels = [shas[i] for i in seen], labels.cpu()[seen]
        cells = [(stage.name, pooling) for stage in self.catalogue.info(name).stages for pooling in stage.poolings]
        progress = self.budget.watched(self.watcher, f"probing cuts of {name}")
        rows = []
        for done, (cut, pooling) in enumerate(cells, 1):
            features = bench.features.read(self._network(name), cut, pooling, shas)
            accuracy = probe.ridge_accuracy(features, labels, len(bench.dataset.classes), units)
            rows.append(ProbeRow(name, cut, pooling, accuracy))
            progress(done, len(cells))
        return rows

    def _enqueue(self, study: SharedStudy, what: str, trials: Sequence[Mapping[str, object]]) -> None:
        """Trials with parameters that are known beforehand; once in a study, however often it is interrupted."""
        waiting = {trial.user_attrs.get(GUESS) for trial in study.trials()}
        for at, guess in enumerate(trials):
            if f"{what} {at}" not in waiting:
                study.optuna.enqueue_trial(dict(guess), user_attrs={GUESS: f"{what} {at}"})

    def _first_trained(self, rows: Sequence[ProbeRow], trials: Trials) -> ProbeRow:
        """Where the strategies begin: the backbone that looks best, of those that a budget has time to train."""
        best = select.best_cuts(rows)
        if not self.budget.limited or set(self.strategies) == {"linear-probe"}:
            return best[0]
        for_each = FIRST_TRAININGS * self.budget.left() / len(self.strategies)
        chosen = guesses.affordable(best, trials.epoch_seconds, for_each)
        if chosen != best[0]:
            what = f"Trainings begin with {chosen.backbone}"
            self.watcher.note(f"{what}: --budget has little time for {best[0].backbone}.")
        return chosen


def _require_same(what: str, named: Collection[str], before: Collection[str]) -> None:
    if set(named) != set(before):
        raise StudyError(
            f"The study was begun with {what} {', '.join(before)}, not {', '.join(named)}. "
            "Go on without naming them, or start another study: --study NAME"
        )
