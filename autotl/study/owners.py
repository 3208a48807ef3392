"""Which plugins a study depends on: noted when it is begun, required wherever it goes on."""

from collections.abc import Iterable, Mapping

from autotl.backbones.catalogue import Catalogue
from autotl.errors import StudyError
from autotl.host import Host
from autotl.registry import Entry, to_install

Owners = dict[str, dict[str, str]]
"""By kind and name, as in `strategies fine-tune`: the distribution that provides it, with its version."""


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


def require_installed(host: Host, owners: Owners) -> None:
    """Raises: StudyError, with what to install, for what is not here."""
    for what, owner in owners.items():
        kind, _, name = what.partition(" ")
        if name not in host.registries[kind]:
            ((distribution, version),) = owner.items()
            raise StudyError(
                f"The study uses '{name}' of {distribution} {version}, which is not here or is broken. "
                f"Install it{to_install(owner)}, and see: autotl doctor"
            )


def require_same(theirs: Owners, ours: Owners) -> None:
    """Raises: StudyError where a search has something from another distribution, or another version of it."""
    for what, owner in theirs.items():
        if ours.get(what) != owner:
            ((distribution, version),) = owner.items()
            here = " ".join(" ".join(each) for each in ours.get(what, {}).items()) or "nothing"
            raise StudyError(
                f"The search has {what} of {distribution} {version}, here it is of {here}. Install the same version."
            )
