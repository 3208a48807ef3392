"""The default pool: which backbones a search considers if the user names none."""

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace

from autotl.backbones.catalogue import Catalogue
from autotl.engine.device import kind
from autotl.errors import PluginError, StudyError, WeightsError
from autotl.study.watch import Watcher

SHIPPED = ("autotl:*",)
SMALL = ("timm:tf_efficientnet_lite0.in1k", "timm:mobilenetv3_small_100.lamb_in1k", "timm:resnet18.a1_in1k")
LARGE = (
    "timm:resnet50.a1_in1k",
    "timm:convnext_tiny.fb_in22k_ft_in1k",
    "timm:vit_small_patch16_224.augreg_in21k_ft_in1k",
)
POOLS = {"shipped": SHIPPED, "small": SHIPPED + SMALL, "large": SHIPPED + LARGE}
ASK_ABOVE = 400_000_000
"""Bytes; the user is asked before larger downloads."""


@dataclass(frozen=True)
class Pool:
    """The backbones of a study, those that were skipped, and what has to be downloaded."""

    backbones: tuple[str, ...]
    skipped: tuple[str, ...]
    downloads: dict[str, int | None]
    """Backbones whose weights are not on this machine yet, with their download size in bytes if known."""

    @property
    def download_bytes(self) -> int:
        return sum(size or 0 for size in self.downloads.values())


def choose(
    catalogue: Catalogue,
    named: Sequence[str],
    required: Container[str],
    pool: str,
    device: str,
    skip: Callable[[PluginError], None],
) -> Pool:
    """The backbones of these names, or else those of `pool`.

    `required`: names that the user wrote out in full. For others `skip` is called with the error if their plugin
    cannot build them.

    `pool` is `shipped` (what comes with autotl), `small` or `large` (plus three small or three large ImageNet
    networks), or `auto`: `large` on a GPU, else `small`.

    Raises: WeightsError if a backbone that the user named is not available. One from the pool is skipped.
    """
    pool = pool if pool != "auto" else ("small" if kind(device) == "cpu" else "large")
    names, skipped = [], []
    for name in named or of_families_here(catalogue, POOLS[pool], skip):
        try:
            if not named and not catalogue.reachable(name):
                skipped.append(name)
                continue
            if name not in required:
                catalogue.info(name)
        except PluginError as error:
            skip(error)
        else:
            names.append(name)
    if not names:
        why = f": {', '.join(skipped)} are not available here" if skipped else ""
        raise StudyError(f"No backbone is left to search{why}. Name some with --backbones.")
    downloads = {}
    for name in names:
        if not catalogue.available(name):
            if not catalogue.reachable(name):
                catalogue.obtain(name)  # raises, and says how to get it
            downloads[name] = catalogue.download_bytes(name)
    return Pool(tuple(names), tuple(skipped), downloads)


def of_families_here(catalogue: Catalogue, patterns: Sequence[str], skip: Callable[[PluginError], None]) -> list[str]:
    """The backbones that match these patterns, without those of families that are disabled or broken."""
    found: list[str] = []
    for pattern in patterns:
        if pattern.partition(":")[0] in catalogue.host.backbones:
            try:
                found += catalogue.expand([pattern])
            except PluginError as error:
                skip(error)
    return found


def usual(catalogue: Catalogue, skip: Callable[[PluginError], None]) -> list[str]:
    """The backbones of all pools, and those whose weights a plugin provides, without families that are missing."""
    patterns = dict.fromkeys((*SHIPPED, *SMALL, *LARGE, *catalogue.provided.names()))
    return of_families_here(catalogue, list(patterns), skip)


def announce(pool: Pool, watcher: Watcher, yes: bool) -> None:
    """Report what is skipped and what will be downloaded, and ask before a large download.

    Raises: StudyError if the user declines.
    """
    if pool.skipped:
        watcher.note(
            "Skipped, because their weights are not on this machine and the hub cannot be reached: "
            f"{', '.join(pool.skipped)}. How to get them: autotl weights list"
        )
    for name, size in pool.downloads.items():
        watcher.note(f"Downloading {name}: {size / 1e6:.0f} MB" if size else f"Downloading {name}")
    if pool.download_bytes > ASK_ABOVE and not yes:
        watcher.confirm(f"{pool.download_bytes / 1e6:.0f} MB will be downloaded. Continue?")


def download(catalogue: Catalogue, pool: Pool, required: Container[str], skip: Callable[[WeightsError], None]) -> Pool:
    """The pool after its weights were downloaded or provided by plugins, without backbones for which that failed.

    Raises: WeightsError if one of these is `required`.
    """
    failed = []
    for name in pool.backbones:
        try:
            catalogue.obtain(name)
        except WeightsError as error:
            if name in required:
                raise WeightsError(f"{error} Or search without it: --backbones.") from error
            skip(error)
            failed.append(name)
    return replace(pool, backbones=tuple(name for name in pool.backbones if name not in failed))
