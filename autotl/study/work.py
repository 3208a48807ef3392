"""The work of a study: passes through its backbones, the probe, first guesses, and trials."""

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial

from autotl.contracts import BatchTransform
from autotl.data.split import OPEN
from autotl.engine import metrics, operations
from autotl.engine.operations import Effect
from autotl.engine.sample import Sample
from autotl.engine.stage_times import StageTimes, by_flops
from autotl.errors import AutotlError, PluginError, StudyError
from autotl.plan import Network
from autotl.study import advice, affordable, estimate, probing, select, similarity
from autotl.study.budget import OutOfTime
from autotl.study.crew import Crew
from autotl.study.guesses import Guess, Guesses
from autotl.study.opening import Opened
from autotl.study.pace import Pace
from autotl.study.storage import GUESS
from autotl.study.suggestions import OPERATIONS
from autotl.study.worker import Pass
from autotl.tracking.advice import Advice, Similarity, read_advice, write_advice
from autotl.tracking.probe import ProbeRow, read_probe, write_probe

ADVICE_SECONDS, ADVICE_SHARE = 20.0, 0.03
"""The most seconds, and the largest share of a budget, for comparing a backbone with itself at random."""
FIRST_TRAININGS = 0.6
"""The largest share of the remaining time for the first guesses of all strategies together."""
TINY = 1e-9
"""Seconds, instead of 0, of passes that have not been measured because all features are stored."""
OPERATIONS_SHARE = 0.05
"""The largest share of the remaining time for measuring which operations the images allow."""


class Work:
    """The work of an opened study up to its last trial, done by a crew."""

    def __init__(self, opened: Opened, crew: Crew) -> None:
        self.opened, self.crew = opened, crew
        self.bench, self.study, self.settings = opened.bench, opened.study, opened.settings
        self.watcher, self.budget = opened.watcher, opened.budget

    def run(self) -> None:
        """The probe and the trials, as far as the budget allows.

        The cheapest backbone comes first and a linear probe on it is the first trial, so a usable model exists early.

        Raises: AutotlError.
        """
        if self.study.done < self.settings.trials:
            self.watcher.estimate(estimate.estimate(list(self.opened.networks.values()), self.bench))
        else:
            self.watcher.note(
                f"Study '{self.opened.folder.name}' already has {self.study.done} trials of --trials "
                f"{self.settings.trials}; a larger --trials adds more. Reruns, refit and comparisons that an earlier "
                "run skipped are done now, as far as there is time."
            )
        known = self._guesses()
        fingerprint = self.bench.dataset.fingerprint
        rows: list[ProbeRow] = []
        try:
            for name in self._seen():
                rows += self._probed(name)
                if name == rows[0].backbone:
                    first = known.linear_probes(rows)[:1]
                    self._enqueue(f"{fingerprint} first", dict(enumerate(first)))
                    self.crew.run(min(len(first), self.settings.trials))
            if not rows:
                raise StudyError("No backbone is left to search. Name some with --backbones.")
            self.watcher.probed(rows)
            self._measure_operations(rows)
            advised = self._advised(rows)
            suggested = advised.suggested if advised else ()
            others = known.other_probes(rows)
            self._enqueue(fingerprint, dict(enumerate(others)))
            self._enqueue(fingerprint, self._first_guesses(known, rows, suggested, len(others)))
            self.study.open(self.settings.trials)
            self.crew.run(self.settings.trials)
        except OutOfTime:
            self.crew.catch_up()  # the winner is chosen from the trials that have ended
        except BaseException:
            self.crew.hands.end()  # so that nobody runs a trial any more
            raise
        finally:
            self.study.open(0)
            self.crew.let_go()

    def _guesses(self) -> Guesses:
        opened = self.opened
        return Guesses(
            self.bench.catalogue,
            opened.inputs,
            opened.strategies,
            opened.drawn,
            opened.skip,
            class_weights=metrics.class_weights_of(self.bench.metrics[0]),
            heads=self.settings.head_kinds,
            cuts=self._cuts,
            classifiers=self.settings.classifiers,
        )

    def _cuts(self, name: str) -> Sequence[str]:
        """The cuts of a backbone that are within the limits."""
        return self.opened.suggestions.limits.cuts(name, self.opened.inputs.first(name))

    def _seen(self) -> Iterator[str]:
        """The backbones in order, each when the images have been through it, without those that fail.

        Raises: PluginError if one fails that the user named; OutOfTime.
        """
        parts = {name: list(self._parts(name)) for name in self.opened.networks}
        failed: set[str] = set()

        def jobs() -> Iterator[Pass]:
            for name, each in parts.items():
                yield from (part for part in tuple(each) if name not in failed)

        order = list(parts)
        for job, outcome in self.crew.carry_out(jobs()):
            assert isinstance(job, Pass)
            name = job.network.backbone
            parts[name].remove(job)
            if isinstance(outcome, PluginError):  # only some of the images have been tried before
                if name in self.settings.backbones:
                    raise outcome
                if name not in failed:
                    self.opened.skip(outcome)
                failed.add(name)
            elif isinstance(outcome, Exception):
                raise outcome
            while order and (order[0] in failed or not parts[order[0]]):
                if (seen := order.pop(0)) not in failed:
                    yield seen

    def _parts(self, name: str) -> Iterator[Pass]:
        """The passes through a backbone that are done at the same time: at least one, which checks stored features.

        Test images are left out: at the end only the winner and what it is compared with have to see them.
        """
        network, every = self.opened.networks[name], self.bench.shas(*OPEN)
        shas = self.bench.features.missing(network, every) or every
        most = math.ceil(len(shas) / self.crew.size)
        for start in range(0, len(shas), most):
            yield Pass(network, tuple(shas[start : start + most]), of=len(shas))

    def _probed(self, name: str) -> list[ProbeRow]:
        """The probe of a backbone, stored in the study's folder."""
        stored = read_probe(self.opened.folder)
        rows = [row for row in stored if row.backbone == name]
        if not rows:
            rows = self._probe(name)
            write_probe(self.opened.folder, [*stored, *rows])
        return rows

    def _probe(self, name: str) -> list[ProbeRow]:
        """The accuracy of a linear classifier at every cut of a backbone that is within the limits."""
        progress = self.budget.watched(self.watcher, f"probing cuts and poolings of {name}")
        sample = Sample.of(self.bench, self.settings.seed)
        return probing.rows(self.bench, self.opened.networks[name], sample, progress, self._cuts(name))

    def _advised(self, rows: Sequence[ProbeRow]) -> Advice | None:
        """The advice for these images, stored in the study's folder; None if there is no time or nothing to choose."""
        stored = read_advice(self.opened.folder)
        if stored or not self.opened.references:
            return stored
        found = self._similarity(select.starting_cuts(rows)[0].backbone)
        if found is None:
            return None
        bench = self.bench
        per_class = len(bench.shas(*OPEN)) / len(bench.dataset.classes)
        advised = advice.advise(per_class, found, self.opened.strategies.values())
        write_advice(self.opened.folder, advised)
        self.watcher.advised(advised)
        return advised

    def _similarity(self, backbone: str) -> Similarity | None:
        """How similar the images are to those of a backbone's pretraining; None if that cannot be measured in time."""
        bench, network, seed = self.bench, self.opened.networks[backbone], self.settings.seed
        sample = Sample.of(bench, seed, similarity.images_needed(len(bench.dataset.classes)))
        allowed = min(ADVICE_SECONDS, ADVICE_SHARE * self.budget.seconds)
        if not bench.catalogue.is_pretrained(backbone):
            return None
        if estimate.image_seconds(network, bench) * len(sample.shas) > allowed:
            return None

        def see(network: Network, shas: Sequence[str]) -> None:
            missing = bench.features.missing(network, shas)
            jobs = [Pass(network, tuple(missing), of=len(missing))] if missing else []
            for _, outcome in self.crew.carry_out(jobs):
                if isinstance(outcome, Exception):
                    raise outcome

        watched = partial(self.budget.watched, self.watcher)
        try:
            see(network, sample.shas)
            rows = probing.rows(bench, network, sample, watched(f"comparing with {backbone}"))
            return similarity.measure(
                bench,
                network,
                rows,
                self.opened.references,
                sample=sample,
                seed=seed,
                see=see,
                watched=watched,
            )
        except PluginError as error:
            self.opened.skip(error)
            return None

    def _measure_operations(self, rows: Sequence[ProbeRow]) -> None:
        """Measure once, on the cheapest backbone, which operations of the augmentations are harmful.

        Raises: OutOfTime.
        """
        try:
            wanted = operations.operations_of(self.opened.drawn["augmentations"].values())
            if wanted:
                self.study.settled(OPERATIONS, lambda: {"measured": list(map(asdict, self._effects(wanted, rows)))})
        except PluginError as error:
            self.opened.skip(error)

    def _effects(self, wanted: Mapping[str, BatchTransform], rows: Sequence[ProbeRow]) -> list[Effect]:
        bench, network = self.bench, self.opened.networks[rows[0].backbone]
        best = max((row for row in rows if row.backbone == network.backbone), key=lambda row: row.accuracy)
        needed = len(wanted) * operations.MOST * bench.pass_seconds.get(network, 0.0)
        if needed > OPERATIONS_SHARE * self.budget.left_to_search():
            self.watcher.note(f"No time to measure whether the images allow {', '.join(wanted)}: all are searched.")
            return []
        progress = self.budget.watched(self.watcher, "measuring which operations the images allow")
        found = operations.measured(bench, network, best.cut, best.pooling, wanted, self.settings.seed, progress)
        self.watcher.note(operations.said(found))
        return found

    def _enqueue(self, what: str, trials: Mapping[int, Guess]) -> None:
        """Enqueue trials with known parameters by their numbers, each once in a study, even after interruptions."""
        there = self._enqueued()
        for at, guess in trials.items():
            if f"{what} {at}" not in there:
                known = {name: value for name, value in guess.items() if name not in self.settings.set}
                self.study.optuna.enqueue_trial(known, user_attrs={GUESS: f"{what} {at}"})

    def _enqueued(self) -> set[str]:
        """What has been enqueued in the study."""
        return {str(trial.user_attrs.get(GUESS)) for trial in self.study.trials()}

    def _first_guesses(
        self, known: Guesses, rows: Sequence[ProbeRow], suggested: Container[str], start: int
    ) -> dict[int, Guess]:
        """The first guesses of strategies that are not in the study yet, by their numbers, which begin with `start`.

        They are on the best backbone of the probe; with a budget, on the best one that there is time to train, and as
        `affordable` adapts them.
        """
        best, there, fingerprint = select.starting_cuts(rows), self._enqueued(), self.bench.dataset.fingerprint

        def new(row: ProbeRow) -> dict[int, Guess]:
            numbered = enumerate(known.of_strategies(rows, row, suggested), start)
            return {at: guess for at, guess in numbered if f"{fingerprint} {at}" not in there}

        usual = new(best[0])
        if not self.budget.limited or not usual:
            return usual
        seconds = FIRST_TRAININGS * self.crew.size * self.budget.left()
        most = min(seconds, self.crew.trials.longest())
        places = map(new, best)
        found = affordable.first_affordable(places, seconds, most, self._seconds, self._least_seconds)
        self._say_what_fits(usual, found, [row.backbone for row in best])
        return found

    def _seconds(self, guess: Guess) -> float:
        """Seconds to train a first guess, from those of each stage, which takes seconds to measure."""
        return self.crew.trials.seconds(self.opened.suggestions.likely(guess))

    def _least_seconds(self, guess: Guess) -> float:
        """Those of its passes alone; 0 if it trains nothing, or cannot be tried, which its trial reports."""
        try:
            plan = self.opened.suggestions.likely(guess)
        except AutotlError:
            return 0.0
        return max(Pace(self.bench, self._pass_times).seconds(plan), TINY) if plan.trainings else 0.0

    def _pass_times(self, backbone: str) -> StageTimes:
        """Less than the stages take in training: as long as in the first pass of the images."""
        network = self.opened.networks.get(backbone)
        seconds = self.bench.pass_seconds.get(network, 0.0) if network else 0.0
        return by_flops(self.bench.catalogue.info(backbone), seconds)

    def _say_what_fits(self, usual: Mapping[int, Guess], found: Mapping[int, Guess], backbones: Sequence[str]) -> None:
        """Report what the budget has changed of the first guesses; `backbones`: best first."""
        places = {str(guess["backbone"]): str(usual[at]["backbone"]) for at, guess in found.items()}
        if moved := [chosen for chosen, best in places.items() if chosen != best]:
            better = ", ".join(backbones[: backbones.index(moved[0])])
            self.watcher.note(f"Training starts with {moved[0]}: --budget is too short for {better}.")
        if changed := [guess for at, guess in found.items() if affordable.is_cheaper(guess, usual[at])]:
            how = "; ".join(map(self._said, changed))
            self.watcher.note(f"To fit --budget, first guesses freeze more stages or train for fewer epochs: {how}.")
        if dropped := [str(guess["strategy"]) for at, guess in usual.items() if at not in found]:
            self.watcher.note(f"No time in --budget for the first guess of {', '.join(dropped)}.")

    def _said(self, guess: Guess) -> str:
        """The strategy of a first guess, its epochs and what it freezes."""
        plan = self.opened.suggestions.likely(guess)
        frozen = plan.phases[-1].frozen
        return f"{guess['strategy']} for {plan.epochs()} epochs{f' after {frozen}' if frozen else ''}"
