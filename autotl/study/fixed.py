"""Parameters that the user fixes with `--set`, so that they are not searched."""

import difflib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import FloatDistribution, IntDistribution

from autotl.contracts import Context
from autotl.errors import AutotlError, StudyError, unknown
from autotl.host import Host
from autotl.registry import Entry
from autotl.study import patience
from autotl.study.settings import OPTION_OF, said
from autotl.study.space import DRAWN, RECIPE, SHARED, OwnTrial

DRAWS = 24
"""How many plans each strategy is asked for to find which parameters it draws."""
MISSPELLED = 0.9
"""The similarity, by difflib's ratio, from which a name that is not drawn is a misspelling of one that is."""

Values = Mapping[str, Any]
"""The fixed values by the names of their parameters."""


class NotAllowed(StudyError):
    """A parameter cannot have the value that the user fixed."""


class Fixed:
    """Optuna's trial with some parameters fixed.

    Optuna gets a range or a choice of a single value: it records the parameter with the trial and does not sample it.
    """

    def __init__(self, trial: optuna.Trial, values: Values) -> None:
        self._trial, self._values = trial, values

    @property
    def number(self) -> int:
        return self._trial.number

    @property
    def params(self) -> dict[str, Any]:
        return self._trial.params

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """Raises: NotAllowed."""
        if name not in self._values:
            return self._trial.suggest_float(name, low, high, step=step, log=log)
        value = self._number(name, FloatDistribution(low, high, log=log, step=step), "a number")
        return self._trial.suggest_float(name, value, value)

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """Raises: NotAllowed."""
        if name not in self._values:
            return self._trial.suggest_int(name, low, high, step=step, log=log)
        value = self._number(name, IntDistribution(low, high, log=log, step=step), "a whole number")
        return self._trial.suggest_int(name, int(value), int(value))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """Raises: NotAllowed."""
        if name not in self._values:
            return self._trial.suggest_categorical(name, choices)
        value = self._values[name]
        same = [each for each in choices if type(each) is type(value) and each == value]
        found = same or [each for each in choices if str(each) == str(value)]
        if not found:
            raise self._refused(name, f"one of {', '.join(map(said, choices))}")
        return self._trial.suggest_categorical(name, found[:1])

    def _number(self, name: str, allowed: FloatDistribution | IntDistribution, kind: str) -> float:
        value = self._values[name]
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        is_fitting = is_number and (isinstance(allowed, FloatDistribution) or value == int(value))
        if not is_fitting or not allowed._contains(value):
            steps = f" in steps of {allowed.step:g}" if allowed.step not in (None, 1) else ""
            raise self._refused(name, f"{kind} from {allowed.low:g} to {allowed.high:g}{steps}")
        return float(value)

    def _refused(self, name: str, allowed: str) -> NotAllowed:
        return NotAllowed(f"--set {name}={said(self._values[name])}: it must be {allowed}.")


def drawn_by(strategies: Iterable[Entry], values: Values, host: Host, context: Callable[[Any], Context]) -> set[str]:
    """The parameters that strategies draw for some random plans, which are not trained.

    Errors of plugins are ignored here: the trials report them.

    Raises: NotAllowed if a parameter cannot have its fixed value.
    """
    names: set[str] = set()
    for entry in strategies:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        what = f"Strategy '{entry.name}'"
        for _ in range(DRAWS):
            trial: Any = study.ask()
            fixed: Any = Fixed(trial, values)
            asked = context(fixed)
            try:
                with entry.owner.answers_for(what), patience.within(patience.ANSWER):
                    entry.item.suggest(OwnTrial(fixed, entry, what, host), asked)
            except NotAllowed:
                raise
            except AutotlError:
                break
            finally:
                names |= set(trial.params)
    return names


def require_known(values: Values, drawn: Collection[str], host: Host) -> None:
    """Raises: StudyError for a fixed parameter that no plugin can draw, or that is a misspelling of a `drawn` one.

    Other names may belong to parameters that a plugin draws in rare cases.
    """
    entries = (entry.name for kind in ("strategies", *DRAWN.values()) for entry in host.registries[kind])
    owners = {RECIPE, *entries, *(name.partition(".")[0] for name in drawn)}
    for name in values:
        if name in drawn or name in SHARED:
            continue
        owner, dot, _ = name.partition(".")
        if not dot or owner not in owners or difflib.get_close_matches(name, drawn, 1, MISSPELLED):
            raise StudyError(f"--set: {unknown('parameter', name, _settable(drawn), most=len(drawn))}")


def not_drawn(values: Values, drawn: Iterable[str]) -> list[str]:
    """For each fixed parameter that is not among the drawn ones, a text that says so."""
    known = _settable(drawn)
    return [unknown("parameter", name, known) for name in values if name not in known]


def _settable(drawn: Iterable[str]) -> list[str]:
    return sorted(set(drawn) - set(OPTION_OF))
