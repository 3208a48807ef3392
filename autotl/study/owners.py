"""Which plugins a study depends on: recorded at its start, required if its trials used them."""

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

from autotl.backbones.catalogue import Catalogue
from autotl.engine.fit import components
from autotl.errors import PluginError, StudyError
from autotl.host import KINDS, Host
from autotl.registry import CONTENT, Entry, Owner, to_install
from autotl.tracking.folder import Definition
from autotl.tracking.log import TrialRecord

Owners = dict[str, dict[str, str]]
"""The distribution that provides a plugin, with its version, by kind and name such as `strategies fine-tune`."""
OF_AUTOTL = ("autotl", "optuna", "torch")
"""The libraries that the numbers of every study depend on."""


def owners_of(
    catalogue: Catalogue,
    backbones: Iterable[str],
    strategies: Mapping[str, Entry],
    drawn: Mapping[str, Mapping[str, Entry]],
    metric: Entry,
) -> Owners:
    """The owners of all plugins that a study may use; methods only if they come with one of its strategies."""
    families = {name.partition(":")[0]: catalogue.owner(name) for name in backbones}
    owners = {f"backbones {name}": owner for name, owner in families.items()}
    owners |= {f"strategies {name}": entry.owner for name, entry in strategies.items()}
    owners |= {f"{kind} {name}": entry.owner for kind, found in drawn.items() for name, entry in found.items()}
    owners[f"metrics {metric.name}"] = metric.owner
    distributions = {entry.owner.distribution for entry in strategies.values()}
    methods = [entry for entry in catalogue.host.methods if entry.owner.distribution in distributions]
    owners |= {f"methods {entry.name}": entry.owner for entry in methods}
    return {name: {owner.distribution: owner.version} for name, owner in owners.items()}


def used_by(records: Iterable[TrialRecord]) -> tuple[set[str], set[str]]:
    """The plugins that trials of a study used, named as in `Owners`, and the libraries their numbers depend on."""
    used, libraries = set[str](), set(OF_AUTOTL)
    for record in records:
        if plan := record.plan:
            used |= {f"strategies {record.params['strategy']}", f"backbones {plan.backbone.partition(':')[0]}"}
            used |= {f"{kind} {name}" for kind, name in components(plan.phases, plan.augmentation.name)}
            libraries |= set(plan.requires)
    return used, libraries


def missing(
    host: Host,
    owners: Owners,
    plugins: Mapping[str, str],
    used: Collection[str],
    asked: Collection[str],
    say: Callable[[str], None],
) -> frozenset[str]:
    """The plugins of a study that are not installed and that the search continues without.

    `plugins`: as in the study's definition.

    Raises: StudyError, with what to install, if one that was `used` is missing or has another version, or if one that
    the user `asked` for is missing.
    """
    lacking = set()
    for what, owner in owners.items():
        here = _here(host, what)
        if here == owner:
            continue
        if what in used or (what in asked and not here):
            raise StudyError(
                f"The study uses {_words(what, owner)}, {_state(owner, here, plugins)}. "
                f"{_advice(owner)}, or start another study: --study NAME"
            )
        if here:
            state = _state(owner, here, plugins)
            say(f"The study was started with {_words(what, owner)}, {state}. No trial has used it yet.")
        else:
            lacking.add(what)
            say(f"Warning: the search continues without {_words(what, owner)}, {_state(owner, here, plugins)}.")
    return frozenset(lacking)


def absent(what: str, owner: Mapping[str, str]) -> Entry:
    """An entry in place of a missing one: Optuna needs the same choices throughout a study."""
    ((distribution, version),) = owner.items()

    def load() -> None:
        raise PluginError(f"{_words(what, owner)} is not installed.")

    return Entry(what.partition(" ")[2], "", Owner("", distribution, version, ""), load)


def require_same(host: Host, owners: Owners, plugins: Mapping[str, str], lacking: Collection[str]) -> None:
    """Raises: StudyError if a plugin of the search is missing here, or from another distribution or version.

    `plugins`: as in the study's definition; `lacking`: what the search itself continues without.
    """
    for what, owner in owners.items():
        here = _here(host, what)
        if here != owner and what not in lacking:
            raise StudyError(
                f"The search uses {_words(what, owner)}, {_state(owner, here, plugins)}. {_advice(owner)}."
            )


def require_reachable(host: Host, plugins: Mapping[str, str]) -> None:
    """Raises: StudyError if the search has a plugin that is an object, which no other process can load."""
    here = {owner.plugin for owner in host.owners}
    for name, sha256 in plugins.items():
        if not sha256 and name not in here:
            raise StudyError(
                f"The search uses the plugin '{name}', an object in its own process that a worker cannot load. Save "
                "it as a file, and start the search with plugins=['FILE.py']."
            )


def providers_of(catalogue: Catalogue, backbones: Iterable[str]) -> Owners:
    """The distributions whose plugins provided the weights of these backbones."""
    files = {name: catalogue.file(name) for name in backbones}
    return {name: file.provenance.owner for name, file in files.items() if file and file.provenance}


def require_weights(catalogue: Catalogue, definition: Definition, lacking: Collection[str]) -> None:
    """Raises: StudyError, with what to install, if weights that a plugin provided are not on this machine any more.

    `lacking`: what the search continues without.
    """
    for name, provider in definition.providers.items():
        if f"backbones {name.partition(':')[0]}" in lacking:
            continue
        file = catalogue.file(name)
        same = file is not None and definition.backbones[name] == f"sha256:{file.sha256}"
        if not same and not (name in catalogue.named or catalogue.offer(name)):
            raise StudyError(
                f"The study uses weights of '{name}' that {' '.join(*provider.items())} provided, which is not "
                f"installed or is broken, and the cache no longer has them. {_advice(provider)}, use --weights "
                f"{name}=FILE, or start another study: --study NAME"
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


def _state(owner: Mapping[str, str], here: Mapping[str, str], plugins: Mapping[str, str]) -> str:
    ((distribution, version),) = owner.items()
    if version.startswith(CONTENT):
        path = next((path for path in plugins if Path(path).name == distribution), distribution)
        now = here.get(distribution)
        return f"but {path} is {now} now" if now else f"but {path} does not exist or is broken"
    return f"but {' '.join(*here.items())} is installed" if here else "which is not installed or is broken"


def _advice(owner: Mapping[str, str]) -> str:
    ((distribution, version),) = owner.items()
    if version.startswith(CONTENT):
        return f"Restore the file, or name a copy of it with --plugin {distribution}"
    return f"Install the study's version{to_install(owner)}, run autotl doctor"
