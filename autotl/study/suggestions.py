"""Asking a strategy for the plan of a trial, with the arithmetic that the study uses for its backbone."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import optuna
from pydantic import TypeAdapter

from autotl.backbones.catalogue import RANDOM, Catalogue
from autotl.contracts import DataFacts
from autotl.data.dataset import Dataset
from autotl.engine import precision, stage_times
from autotl.engine.bench import Bench
from autotl.engine.operations import Effect
from autotl.engine.precision import Arithmetic
from autotl.engine.stage_times import StageTimes
from autotl.errors import PlanError, unknown
from autotl.plan import DataRef, TransferPlan
from autotl.registry import Entry
from autotl.study import patience
from autotl.study.budget import Budget
from autotl.study.fixed import Fixed
from autotl.study.limits import Limits
from autotl.study.settings import Settings
from autotl.study.space import DRAWN, HEAD_NAMES, OwnTrial, SearchContext, smallest_heads
from autotl.study.storage import GUESS, SharedStudy
from autotl.study.watch import Watcher
from autotl.tracking.folder import StudyFolder

OPERATIONS = "operations"
"""What the study settles about the operations of its augmentations: `measured`, a list of `Effect`."""
EFFECTS = TypeAdapter(list[Effect])


class Suggestions:
    """The strategies of a study, asked for one plan after another."""

    def __init__(
        self,
        study: SharedStudy,
        folder: StudyFolder,
        settings: Settings,
        bench: Bench,
        *,
        backbones: Sequence[str],
        strategies: Mapping[str, Entry],
        drawn: Mapping[str, Mapping[str, Entry]],
        limits: Limits,
        watcher: Watcher,
        budget: Budget,
    ) -> None:
        self.study, self.folder, self.settings, self.bench = study, folder, settings, bench
        self.backbones, self.strategies, self.drawn = backbones, strategies, drawn
        self.limits, self.watcher, self.budget = limits, watcher, budget
        self._stage_times: dict[str, StageTimes] = {}

    def suggest(self, trial: optuna.Trial) -> TransferPlan:
        """The plan of a trial.

        Raises: PluginError, naming the plugin that failed.
        """
        with self.answerable(trial):
            plan = self._suggest(trial, self._context)
        self._check_guess(trial)
        return plan

    def likely(self, guess: Mapping[str, object]) -> TransferPlan:
        """The plan of a trial with these parameters, in any arithmetic; what they do not name is drawn at random.

        Raises: PluginError; PlanError for a plan that is not valid.
        """
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        study.enqueue_trial(dict(guess))
        return self._suggest(study.ask(), partial(self._context, arithmetic=lambda backbone: Arithmetic()))

    def _suggest(self, trial: optuna.Trial, context_of: Callable[[Any], SearchContext]) -> TransferPlan:
        entry = self.strategies[trial.suggest_categorical("strategy", list(self.strategies))]
        fixed: Any = Fixed(trial, self.settings.set)
        context = context_of(fixed)
        context.data = replace(context.data, harmful=self._harmful())
        what, host = f"Strategy '{entry.name}'", self.bench.catalogue.host
        limit = min(patience.ANSWER, max(patience.LEAST, self.budget.left_to_search()))
        with entry.owner.answers_for(what), patience.within(limit), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Fixed parameter")  # `_check_guess` reports it
            plan = entry.item.suggest(OwnTrial(fixed, entry, what, host), context)
        if not isinstance(plan, TransferPlan):
            raise entry.owner.fault(what, f"suggested {type(plan).__name__}, not a plan.")
        with entry.owner.answers_for(what, "suggested a plan that cannot be written as JSON"):
            written = plan.model_dump_json(warnings="error")
        plan = TransferPlan.from_json(written, name="The plan")  # exactly the plan that is logged is trained
        if plan.backbone.removesuffix(RANDOM) not in {name.removesuffix(RANDOM) for name in self.backbones}:
            raise PlanError(unknown("backbone of the study", plan.backbone, self.backbones))
        return plan

    def _harmful(self) -> frozenset[str]:
        """The harmful operations, as far as they have been measured."""
        found = self.study.known(OPERATIONS)
        effects = EFFECTS.validate_python(found["measured"] if found else ())
        return frozenset(each.operation for each in effects if each.harmful)

    def _check_guess(self, trial: optuna.Trial) -> None:
        """Report parameters of a first guess that its strategy does not ask for, or values that it cannot draw.

        Raises: PluginError with `strict_plugins`.
        """
        entry = self.strategies[trial.params["strategy"]]
        first = getattr(entry.item, "first_guess", None) if GUESS in trial.user_attrs else None
        for name, value in (first or {}).items():
            distribution = trial.distributions.get(name)
            choices = self.settings.head_kinds if name in HEAD_NAMES else self.drawn.get(DRAWN.get(name, ""), ())
            without_choice = len(choices) == 1
            if name == "backbone" or without_choice:
                continue  # already reported and replaced, or without a choice
            if distribution is None:
                how = f"names '{name}', which its suggest does not ask for."
            elif not distribution._contains(distribution.to_internal_repr(trial.params[name])):
                how = f"sets '{name}' to {value!r}, which is not in {distribution}."
            else:
                continue
            problem = entry.owner.fault(f"Strategy '{entry.name}'", f"has a first guess that {how}")
            self.settings.tolerate(problem)
            self.watcher.note(f"Warning: {problem}")

    @contextmanager
    def answerable(self, trial: optuna.Trial) -> Iterator[None]:
        """Blames the strategy for an invalid plan while it is suggested or trained.

        Raises: PluginError instead of PlanError.
        """
        try:
            yield
        except PlanError as error:
            entry = self.strategies[trial.params["strategy"]]
            how = f"suggested a plan that cannot be trained: {error}"
            raise entry.owner.fault(f"Strategy '{entry.name}'", how) from error

    def _arithmetic(self, backbone: str) -> Arithmetic:
        """The arithmetic for training a backbone in this study: the fastest on the machine that trains it first."""

        def choose() -> dict[str, Any]:
            bench = self.bench
            owner = bench.catalogue.owner(backbone)
            with patience.paused(), owner.answers_for(f"Backbone '{backbone}'", "fails in training"):
                where = (bench.catalogue, backbone, bench.memory, bench.features.cache_dir)
                chosen = precision.stored(*where)
                if chosen is None:
                    chosen = precision.choose(*where)
            if earlier := self._trained_on(backbone):
                chosen = replace(chosen, compute_dtype=earlier.compute_dtype, memory_format=earlier.memory_format)
            self.watcher.note(
                f"{backbone} is trained in {chosen.compute_dtype}, {chosen.memory_format.replace('_', ' ')}: "
                f"{chosen.image_seconds * len(bench.shas('train')):.1f} s for an epoch of the whole network."
            )
            return asdict(chosen)

        return Arithmetic(**self.study.settled(f"arithmetic of {backbone}", choose))

    def _trained_on(self, backbone: str) -> TransferPlan | None:
        """A plan of this study that trained a backbone; it has the arithmetic if the storage was lost."""
        plans = (record.plan for record in self.folder.log.records() if record.plan)
        trained = (plan for plan in plans if plan.trainings)
        return next((plan for plan in trained if plan.backbone.removesuffix(RANDOM) == backbone), None)

    def stage_times(self, backbone: str) -> StageTimes:
        """How long each stage takes, measured once in each run, because the machine may be busier at another time."""
        if backbone not in self._stage_times:
            catalogue, arithmetic, memory = self.bench.catalogue, self._arithmetic(backbone), self.bench.memory
            input = catalogue.card(backbone).input
            with catalogue.owner(backbone).answers_for(f"Backbone '{backbone}'", "fails in training"):
                stages = catalogue.structure(backbone, input)
                self._stage_times[backbone] = stage_times.measured(stages, input, arithmetic, memory)
        return self._stage_times[backbone]

    @cached_property
    def _context(self) -> Callable[..., SearchContext]:
        return contexts(
            self.settings,
            self.bench.dataset,
            catalogue=self.bench.catalogue,
            backbones=self.backbones,
            drawn=self.drawn,
            limits=self.limits,
            arithmetic=self._arithmetic,
        )


def contexts(
    settings: Settings,
    dataset: Dataset,
    *,
    catalogue: Catalogue,
    backbones: Sequence[str],
    drawn: Mapping[str, Mapping[str, Entry]],
    limits: Limits,
    arithmetic: Callable[[str], Arithmetic],
) -> Callable[..., SearchContext]:
    """The context of a study's strategies, as a function of the trial."""
    return partial(
        SearchContext,
        catalogue=catalogue,
        backbones=backbones,
        drawn=drawn,
        data=facts_of(dataset),
        data_ref=DataRef(fingerprint=dataset.fingerprint, split_seed=settings.seed, near_copies=settings.near_copies),
        seed=settings.seed,
        arithmetic=arithmetic,
        techniques=settings.techniques,
        heads=settings.head_kinds,
        limits=limits,
        classifiers=settings.classifiers,
        poolings=settings.poolings,
    )


def limits_of(settings: Settings, classes: int, catalogue: Catalogue, latency: Mapping[str, Sequence[float]]) -> Limits:
    """The limits of a study on what a network may cost; `latency` is that of its definition."""
    heads = smallest_heads(settings.head_kinds, settings.poolings, settings.set.get("head_width_log2"))
    return Limits(catalogue, classes, settings.limits, heads, latency)


def facts_of(dataset: Dataset) -> DataFacts:
    """What plugins may know of the data."""
    labels = dataset.labels("train")
    counts = np.bincount(labels, minlength=len(dataset.classes))
    return DataFacts(
        **vars(dataset.shapes),
        classes=len(dataset.classes),
        train_images=len(labels),
        smallest_class=int(counts.min()),
        largest_class=int(counts.max()),
        has_early_stop=bool(dataset.shas("early_stop")),
    )
