"""The host: loads plugins, survives broken ones, and lists what they registered."""

import hashlib
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import Distribution, EntryPoint, entry_points, version
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from autotl import hookspecs
from autotl.errors import PluginError, reason, unknown
from autotl.plan import NO_AUGMENTATION
from autotl.registry import Entry, Owner, Registry, on_stderr

GROUP = "autotl"
KINDS = (
    *("backbones", "weights", "augmentations", "strategies", "methods", "objectives", "optimizers", "adapters"),
    "metrics",
)
"""The kinds of things that plugins register: the names of a host's registries, and of the hooks `register_<kind>`."""
NAME = r"\w[\w.+-]*"
"""Valid names: without characters that have a meaning in lists, globs or `family:architecture@random`."""
NOT_METRICS = (
    *("loss", "seconds", "trial", "strategy", "backbone", "cut", "frozen", "pooling", "augmentation", "input", "mode"),
    *("parameters", "flops", "FLOPs", "low", "high", "images", "units", "most_frequent"),
)
"""Names of other numbers and columns in the tables and logs that show metrics by name."""
BUILTIN = (
    "autotl.builtin.shipped",
    "autotl.builtin.torchvision_family",
    "autotl.builtin.timm_family",
    "autotl.builtin.reference",
    "autotl.builtin.augmentations",
    "autotl.builtin.logistic",
    "autotl.builtin.classifiers",
    "autotl.builtin.gradient_methods",
    "autotl.builtin.objectives",
    "autotl.builtin.optimizers",
    "autotl.builtin.adapters",
    "autotl.builtin.linear_probe",
    "autotl.builtin.fine_tuning",
    "autotl.builtin.metrics",
)


@dataclass(frozen=True)
class Problem:
    """A plugin that was not loaded, and why."""

    owner: Owner
    reason: str

    def __str__(self) -> str:
        return f"{self.owner} was skipped: {self.reason}"


class Host:
    """Everything the installed plugins registered: one registry for each of `KINDS`.

    `blocked` names plugins that are not loaded. Broken plugins are in `problems`, and nothing that they registered is
    in a registry.
    """

    def __init__(self, *, blocked: frozenset[str] = frozenset()) -> None:
        self.backbones = Registry("backbone family", "List them: autotl plugins backbones")
        self.weights = Registry("provider of weights", "List them: autotl plugins weights")
        self.augmentations = Registry("augmentation", "List them: autotl plugins augmentations")
        self.strategies = Registry("strategy", "List them: autotl plugins strategies")
        self.methods = Registry("training method", "List them: autotl plugins methods")
        self.objectives = Registry("objective", "List them: autotl plugins objectives")
        self.optimizers = Registry("optimizer", "List them: autotl plugins optimizers")
        self.adapters = Registry("adapter", "List them: autotl plugins adapters")
        self.metrics = Registry("metric", "List them: autotl plugins metrics", reserved=NOT_METRICS)
        self.blocked = blocked
        self.owners: list[Owner] = []
        self.given: dict[str, str] = {}
        """The plugins that are not installed: the SHA-256 of each file by its path, and "" for each object by name."""
        self.problems: list[Problem] = []
        self._manager = pluggy.PluginManager("autotl")
        self._manager.add_hookspecs(hookspecs)
        own_version = version("autotl")
        own = Owner("autotl", "autotl", own_version, "autotl.host")
        # It is no plugin, because every search needs it.
        self.augmentations.add(Entry(NO_AUGMENTATION.name, "No augmentation", own, _NoAugmentation))
        for module in BUILTIN:
            name = module.rpartition(".")[2]
            if name not in blocked:
                self._add(import_module(module), Owner(name, "autotl", own_version, module))
        points = sorted(entry_points(group=GROUP), key=lambda point: point.name)
        for point in points:
            if point.name not in blocked:
                self._load(point)
        known = [*(module.rpartition(".")[2] for module in BUILTIN), *(point.name for point in points)]
        for name in sorted(blocked.difference(known)):
            self.problems.append(Problem(Owner(name, "(not installed)", "0", ""), unknown("plugin", name, known)))

    @classmethod
    def from_environment(cls, plugins: Iterable[Any] = ()) -> "Host":
        """A host without the plugins that `AUTOTL_DISABLE_PLUGINS` names, separated by commas.

        `plugins` are added to the installed ones, as `add` does.
        """
        names = os.environ.get("AUTOTL_DISABLE_PLUGINS", "").split(",")
        host = cls(blocked=frozenset(name.strip() for name in names if name.strip()))
        for plugin in plugins:
            host.add(plugin)
        return host

    @property
    def registries(self) -> dict[str, Registry]:
        """Each registry by its kind, in the order in which hooks are called."""
        return {kind: getattr(self, kind) for kind in KINDS}

    def add(self, plugin: Any, name: str = "") -> None:
        """Add a plugin that is not installed: the path of a Python file, a module, or an object with hook functions.

        A file is executed, and is called by its name. `name` is that of a module or an object; it has one already if
        it is a module, a class or a function.
        """
        if isinstance(plugin, str | Path):
            self._add_file(Path(plugin).resolve())
            return
        owner = Owner(name or getattr(plugin, "__name__", type(plugin).__name__), "(not installed)", "0", "")
        if self._add(plugin, owner):
            self.given[owner.plugin] = ""

    def recall(self, plugins: Mapping[str, str]) -> None:
        """Add the files among the plugins that a study was `given`, except those whose names have been added."""
        here = {owner.plugin for owner in self.owners}
        for path, sha256 in plugins.items():
            if sha256 and Path(path).name not in here:
                self.add(Path(path))

    def name_of(self, plugin: Any) -> str | None:
        """The name under which a plugin was loaded, None if it was not loaded."""
        return self._manager.get_name(plugin)

    def _add_file(self, file: Path) -> None:
        if str(file) in self.given:
            return
        owner = Owner(file.name, file.name, "unknown version", "", str(file))
        try:
            if not file.is_file() or file.suffix != ".py":
                raise PluginError("it is not a Python file" if file.exists() else "the file does not exist")
            content = file.read_bytes()
            sha256 = hashlib.sha256(content).hexdigest()
            owner = Owner.of_file(file, sha256)
            with on_stderr():
                plugin = _executed(file, content)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            self._report(owner, error)
        else:
            if self._add(plugin, owner):
                self.given[str(file)] = sha256

    def _load(self, point: EntryPoint) -> None:
        distribution = point.dist
        owner = Owner(
            point.name,
            distribution.name if distribution else "unknown distribution",
            distribution.version if distribution else "unknown version",
            point.value,
        )
        try:
            _require_fitting(distribution)
            with on_stderr():
                plugin = point.load()
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            self._report(owner, error)
        else:
            self._add(plugin, owner)

    def _add(self, plugin: Any, owner: Owner) -> bool:
        """Whether the plugin could be loaded; if not, why is in `problems`."""
        if self._manager.has_plugin(owner.plugin):
            namesake = next(other for other in self.owners if other.plugin == owner.plugin)
            self._report(owner, PluginError(f"{namesake} is already loaded"))
            return False
        try:
            with on_stderr():
                self._require_marked(plugin)
                self._manager.register(plugin, name=owner.plugin)
                self._manager.check_pending()
                for kind, hook in self._hooks(plugin):
                    hook(register=self._registrar(kind, owner))
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            for registry in self.registries.values():
                registry.drop(owner)
            if self._manager.has_plugin(owner.plugin):
                self._manager.unregister(name=owner.plugin)
            self._report(owner, error)
            return False
        self.owners.append(owner)
        return True

    def _require_marked(self, plugin: Any) -> None:
        """Raises: PluginError for a function with the name of a hook that would never be called."""
        for name in (f"register_{kind}" for kind in KINDS):
            if callable(getattr(plugin, name, None)) and self._manager.parse_hookimpl_opts(plugin, name) is None:
                raise PluginError(f"its function {name} is not marked with @autotl.hookimpl")

    def _hooks(self, plugin: Any) -> Iterator[tuple[str, pluggy.HookCaller]]:
        """Each kind with its hook, as this plugin implements it."""
        others = [other for other in self._manager.get_plugins() if other is not plugin]
        for kind in KINDS:
            yield kind, self._manager.subset_hook_caller(f"register_{kind}", others)

    def _registrar(self, kind: str, owner: Owner) -> hookspecs.Register:
        def register(name: str, load: Callable[[], Any], *, summary: str) -> None:
            if not isinstance(name, str) or not re.fullmatch(NAME, name):
                raise ValueError(f"{name!r} is not a valid name: use letters, digits, '-', '_', '+' and '.'")
            if not isinstance(summary, str):
                raise TypeError(f"the summary of '{name}' must be a string, not {summary!r}")
            if not callable(load):
                raise TypeError(f"'{name}' must be registered with a class or a function, not with {load!r}")
            self.registries[kind].add(Entry(name, summary, owner, partial(_loaded, kind, load)))

        return register

    def _report(self, owner: Owner, error: BaseException) -> None:
        self.problems.append(Problem(owner, reason(error)))


class _NoAugmentation:
    def suggest(self, trial: object, context: object) -> dict[str, Any]:
        return {}

    def build(self, params: dict[str, Any]) -> Callable[[Any, object], Any]:
        return lambda images, draw: images


def _executed(file: Path, content: bytes) -> ModuleType:
    """The module of a file with this content. Compiled here, because a stored compilation may be of another content."""
    name = f"autotl_file_{re.sub(r'[^0-9a-zA-Z]', '_', file.stem)}"
    spec = spec_from_file_location(name, file)
    assert spec is not None  # for a name that ends in .py
    module = module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses, and the hash of a backbone's source, look for it
    try:
        exec(compile(content, str(file), "exec"), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _require_fitting(distribution: Distribution | None) -> None:
    """Raises: PluginError if a distribution requires another version of autotl."""
    here = version("autotl")
    for line in (distribution.requires if distribution else None) or ():
        if line.startswith("autotl"):  # most lines name other distributions and need not be parsed
            needed = Requirement(line)
            wanted = needed.marker is None or needed.marker.evaluate({"extra": ""})
            fits = needed.specifier.contains(here, prereleases=True)
            if canonicalize_name(needed.name) == "autotl" and wanted and not fits:
                raise PluginError(f"it needs autotl{needed.specifier}, but autotl {here} is installed")


def _loaded(kind: str, load: Callable[[], Any]) -> Any:
    """What a plugin's callable returns.

    Raises: TypeError if it does not have the interface of its kind.
    """
    from autotl.contracts import CONTRACTS, require_one

    thing = load()
    require_one(CONTRACTS[kind], thing)
    return thing
