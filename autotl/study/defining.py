"""The record of a study: its definition, which is written or compared, and its trials in Optuna's storage."""

import uuid
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from autotl.data.dataset import Dataset, changes
from autotl.engine import device as devices
from autotl.errors import StudyError, masked
from autotl.plan import Network
from autotl.study import recovery
from autotl.study.choices import Choices
from autotl.study.owners import owners_of, providers_of
from autotl.study.storage import SharedStudy, check_url
from autotl.tracking.folder import Definition


def recorded(choices: Choices, dataset: Dataset, networks: Mapping[str, Network]) -> SharedStudy:
    """The study in Optuna's storage, with its definition written: created, or resumed if nothing differs.

    `networks`: those of the usable backbones, by name.

    Raises: StudyError for any difference except in the images, which may change.
    """
    before, storage, missing = choices.before, choices.settings.storage, choices.missing
    if storage:
        check_url(storage)
    definition = _defined(choices, dataset, networks)
    differences = before.differences(definition) if before else {}
    # Plugins and libraries that no trial used may have another version now.
    unused = [key for key in differences if key.startswith("owners ")]
    unused += [f"versions {name}" for name in definition.versions if name not in choices.libraries]
    differences = {key: change for key, change in differences.items() if key not in unused}
    if differences.keys() - {"fingerprint"}:
        raise StudyError(
            f"Study '{choices.folder.name}' was started with other settings: "
            f"{'; '.join(f'{key} {change}' for key, change in differences.items())}. "
            "Use the same settings, or start another study: --study NAME"
        )
    if not before:
        _forget(choices)
    study, made_again = recovery.opened(choices.folder, definition, storage, missing, choices.watcher.note)
    if differences:
        what = changes(choices.folder.path, dataset)
        choices.watcher.note(f"The images have changed since the study was started ({what}). Only new trials count.")
    if differences or not before:
        choices.folder.probe.unlink(missing_ok=True)
        choices.folder.advice.unlink(missing_ok=True)
        dataset.write(choices.folder.path)
    choices.folder.define(definition)
    split = {image.sha: image.split for image in dataset.images} if differences or made_again else None
    terms = {
        "definition": definition.to_json(),
        "seed": definition.seed,
        "prune": choices.settings.prune,
        "strict_plugins": choices.settings.strict_plugins,
        "missing": sorted(missing),
    }
    study.agree(terms, split)
    return study


def _defined(choices: Choices, dataset: Dataset, networks: Mapping[str, Network]) -> Definition:
    before, settings, storage = choices.before, choices.settings, choices.settings.storage
    weights = {name: network.weights for name, network in networks.items()}
    theirs, providers = {}, providers_of(choices.catalogue, networks)
    if before:  # plugins that are missing now are unused so far, and may be installed again later
        providers = {**before.providers, **providers}
        weights = {name: weights.get(name, known) for name, known in before.backbones.items()}
        theirs = {what: before.owners[what] for what in choices.missing}
    classifiers = {name: choices.host.methods[name] for name in settings.classifiers}
    used = {**choices.drawn, "methods": {**choices.drawn["methods"], **classifiers}}
    return Definition(
        name=choices.folder.name,
        data=str(settings.data.resolve()),
        columns=choices.columns.said(),
        optuna=before.optuna if before else f"{choices.folder.name}-{uuid.uuid4().hex[:8]}",
        storage=masked(storage) if storage else None,
        fingerprint=dataset.fingerprint,
        classes=dataset.classes,
        backbones=weights,
        providers=providers,
        skipped=before.skipped if before else tuple(sorted({*choices.named, *choices.pool.backbones} - set(networks))),
        strategies=tuple(choices.strategies),
        augmentations=tuple(choices.drawn["augmentations"]),
        optimizers=tuple(choices.drawn["optimizers"]),
        objectives=tuple(choices.drawn["objectives"]),
        adapters=tuple(choices.drawn["adapters"]),
        methods=tuple(choices.drawn["methods"]),
        classifiers=settings.classifiers,
        heads=settings.head_kinds,
        poolings=tuple(dict.fromkeys(settings.poolings)),
        techniques=tuple(sorted(set(settings.techniques))),
        limits=settings.limits,
        minimize=settings.minimize,
        latency=choices.latency,
        owners=owners_of(choices.catalogue, networks, choices.strategies, used, choices.metric) | theirs,
        plugins=_plugins(choices),
        set=settings.set,
        metric=settings.metric,
        scale=choices.scale,
        seed=settings.seed,
        near_copies=settings.near_copies,
        device=devices.kind(choices.device),
        versions={name: version(name) for name in ("autotl", "optuna", "torch", "torchvision", "timm")},
    )


def _plugins(choices: Choices) -> dict[str, str]:
    """The plugins that are not installed, with those that an earlier run had and this one does not find."""
    here = {Path(path).name for path in choices.host.given}
    before = choices.before.plugins if choices.before else {}
    return {**{path: sha for path, sha in before.items() if Path(path).name not in here}, **choices.host.given}


def _forget(choices: Choices) -> None:
    """Delete an earlier study of this name without trials from Optuna's storage."""
    with suppress(StudyError):  # it is damaged, and will be replaced
        if begun := choices.folder.definition:
            SharedStudy.forget(choices.settings.storage or choices.folder.storage_of(begun), begun.optuna)
