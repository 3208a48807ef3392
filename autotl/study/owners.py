"""Which plugins a study depends on: noted when it is begun, required where its trials used them."""

from collections.abc import Callable, Collection, Iterable, Mapping

from autotl.backbones.catalogue import Catalogue
from autotl.errors import PluginError, StudyError
from autotl.host import KINDS, Host
from autotl.registry import Entry, Owner, to_install
from autotl.tracking.log import TrialRecord

Owners = dict[str, dict[str, str]]
"""By kind and name, as in `strategies fine-tune`: the distribution that provides it, with its version."""
OF_AUTOTL = ("autotl", "optuna", "torch")
"""The libraries that the numbers of every study depend on."""


def owners_of(
    catalogue: Catalogue,
    backbones: Iterable[str],
    strategies: Mapping[str, Entry],
    augmentations: Mapping[str, Entry],
) -> Owners:
    """Who provides what a study may use; of methods those that come with its strategies."""
    families = {name.partition(":")[0]: catalogue.owner(name) for name in backbones}
    owners = {f"backbones {name}": owner for name, owner in families.items()}
    owners |= {f"strategies {name}": entry.owner for name, entry in strategies.items()}
    owners |= {f"augmentations {name}": entry.owner for name, entry in augmentations.items()}
    distributions = {entry.owner.distribution for entry in strategies.values()}
    methods = [entry for entry in catalogue.host.methods if entry.owner.distribution in distributions]
    owners |= {f"methods {entry.name}": entry.owner for entry in methods}
    return {name: {owner.distribution: owner.version} for name, owner in owners.items()}


def used_by(records: Iterable[TrialRecord]) -> tuple[set[str], set[str]]:
    """What trials of a study have really used, as in `Owners`; and the libraries that their numbers depend on."""
    used, libraries = set[str](), set(OF_AUTOTL)
    for record in records:
        if plan := record.plan:
            used |= {f"strategies {record.params['strategy']}", f"backbones {plan.backbone.partition(':')[0]}"}
            used |= {f"augmentations {plan.augmentation.name}", *(f"methods {phase.method}" for phase in plan.phases)}
            libraries |= set(plan.requires)
    return used, libraries


def missing(host: Host, owners: Owners, needed: Collection[str], say: Callable[[str], None]) -> frozenset[str]:
    """What a study may use and is not here; the search goes on without it, and without a word on what is `needed`.

    Raises: StudyError, with what to install, where something is needed that is not here or of another version.
    """
    lacking = set()
    for what, owner in owners.items():
        here = _here(host, what)
        if here == owner:
            continue
        if what in needed:
            raise StudyError(
                f"The study uses {_words(what, owner)}, which is {_state(here)}. Install that version"
                f"{to_install(owner)}, see autotl doctor, or start another study: --study NAME"
            )
        if here:
            say(f"{_words(what, owner)}, which no trial has used, is {_state(here)}.")
        else:
            lacking.add(what)
            say(f"Warning: the search goes on without {_words(what, owner)}, which is {_state(here)}.")
    return frozenset(lacking)


def absent(what: str, owner: Mapping[str, str]) -> Entry:
    """An entry in the place of one that is not here: Optuna wants the same choices throughout a study."""
    ((distribution, version),) = owner.items()

    def load() -> None:
        raise PluginError(f"{_words(what, owner)} is not here.")

    return Entry(what.partition(" ")[2], "", Owner("", distribution, version, ""), load)


def require_same(theirs: Owners, ours: Owners, lacking: Collection[str]) -> None:
    """Raises: StudyError where a search has something from another distribution, or another version of it.

    `lacking`: what the search itself goes on without.
    """
    for what, owner in theirs.items():
        here = ours.get(what, {})
        if here != owner and what not in lacking:
            raise StudyError(
                f"The search has {_words(what, owner)}, which is {_state(here)}. "
                f"Install that version{to_install(owner)}."
            )


def _here(host: Host, what: str) -> dict[str, str]:
    kind, _, name = what.partition(" ")
    if kind not in KINDS or name not in host.registries[kind]:
        return {}
    owner = host.registries[kind][name].owner
    return {owner.distribution: owner.version}


def _words(what: str, owner: Mapping[str, str]) -> str:
    """`strategies late-probe` → `strategy 'late-probe' of autotl-late-probe 0.1.0`."""
    kind, _, name = what.partition(" ")
    singular = {"strategies": "strategy", "backbones": "backbone family"}.get(kind, kind.removesuffix("s"))
    return f"{singular} '{name}' of {' '.join(*owner.items())}"


def _state(here: Mapping[str, str]) -> str:
    return f"of {' '.join(*here.items())} here" if here else "not here or is broken"
