"""A registry: the names of one kind, each with its owner (the plugin that registered it) and how to load it."""

import errno
import fnmatch
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from shlex import quote
from typing import Any, TextIO

from autotl.errors import PluginError, out_of_memory, reason, unknown

NOT_A_PLUGINS = {
    "autotl": (),
    "builtins": ("KeyboardInterrupt", "GeneratorExit"),
    "optuna": ("UpdateFinishedTrialError", "StorageInternalError"),
    "sqlalchemy": (),
    "torch": ("OutOfMemoryError", "AcceleratorError"),
}
"""Errors that are not the plugin's fault although its code raises them, by library: those named, or all if none is.
They are autotl's own errors, the user's Ctrl-C, database errors, and device errors such as out of memory."""
SYSTEM = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""Errors of the disk or the system, not of a file that a plugin reads."""


CONTENT = "sha256:"
"""The versions of plugins that are files start with this; the first digits of the file's SHA-256 follow."""


def to_install(versions: Mapping[str, str]) -> str:
    """` (pip install NAME==VERSION …)` for distributions that a file names; the file may be untrusted.

    The user will paste it into a shell, so anything that is not a valid name and version is skipped. Empty if none is.
    """
    from packaging.utils import InvalidName, canonicalize_name
    from packaging.version import InvalidVersion, Version

    words = []
    for name, version in versions.items():
        with suppress(InvalidName, InvalidVersion):
            words.append(quote(f"{canonicalize_name(name, validate=True)}=={Version(version)}"))
    return f" (pip install {' '.join(words)})" if words else ""


class TooLong(BaseException):
    """Interrupts a plugin's code that does not return. Not an `Exception`, because that code might catch it."""


def on_stderr() -> "redirect_stdout[TextIO]":
    """Redirect printed text to standard error: standard output is for results."""
    return redirect_stdout(sys.stderr)


@dataclass(frozen=True)
class Owner:
    """The plugin that registered something, its distribution, and its entry point.

    A plugin that is not installed has no entry point. If it is a `file`, its name takes the place of the distribution,
    and its content that of the version.
    """

    plugin: str
    distribution: str
    version: str
    entry_point: str
    file: str = ""
    """The absolute path of a plugin that is a single file."""

    @classmethod
    def of_file(cls, file: Path, sha256: str) -> "Owner":
        """The owner of what a file registers."""
        return cls(file.name, file.name, f"{CONTENT}{sha256[:12]}", "", str(file))

    def __str__(self) -> str:
        """How messages name the plugin at fault."""
        if self.file:
            return f"plugin '{self.plugin}' ({self.file})"
        if not self.entry_point:
            return f"plugin '{self.plugin}' (not installed)"
        return f"plugin '{self.plugin}' ({self.distribution} {self.version}, entry point {self.entry_point})"

    @contextmanager
    def answers_for(self, what: str, how: str = "fails") -> Iterator[None]:
        """Run code of the plugin in this context: an error in it becomes one that names the plugin.

        What the plugin prints goes to standard error.

        Raises: PluginError, `<what> of <owner> <how>: <reason>`. Errors that are not the plugin's fault stay unchanged.
        """
        try:
            with on_stderr():
                yield
        except BaseException as error:
            if _is_no_plugins(error):
                raise
            raise self.fault(what, f"{how}: {reason(error)}{self._where(error)}") from error

    def fault(self, what: str, how: str) -> PluginError:
        """An error about something that the plugin registered."""
        return PluginError(f"{what} of {self} {how}", blamed=what)

    def _where(self, error: BaseException) -> str:
        """The innermost line of the plugin's own module in the traceback, as ` (autotl_foo.py:12)`."""
        package = Path(self.file).stem or self.entry_point.partition(":")[0].partition(".")[0]
        frames = [(Path(frame.filename), frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
        own = [f" ({file.name}:{line})" for file, line in frames if package in (file.stem, *file.parts[:-1])]
        return own[-1] if package != "autotl" and own else ""


def _is_no_plugins(error: BaseException) -> bool:
    """Whether an error raised in a plugin's code is not the plugin's fault."""
    if isinstance(error, TooLong):
        return False
    if isinstance(error, OSError) and error.errno in SYSTEM:
        return True
    if isinstance(error, RuntimeError) and out_of_memory(error):  # a network that is too large for the computer
        return True
    names = NOT_A_PLUGINS.get(type(error).__module__.partition(".")[0])
    return names == () or type(error).__name__ in (names or ())


@dataclass(frozen=True)
class Entry:
    """A registered name. Nothing is imported until `item` is read."""

    name: str
    summary: str
    owner: Owner
    load: Callable[[], Any] = field(repr=False)

    @cached_property
    def item(self) -> Any:
        """What the plugin's callable returns; it is called once.

        Raises: PluginError, naming the owner, when the callable fails.
        """
        with self.owner.answers_for(f"'{self.name}'", "cannot be loaded"):
            return self.load()


class Registry:
    """Entries of one `kind` by name. Registering a name twice is an error, and so is a `reserved` name."""

    def __init__(self, kind: str, hint: str = "", reserved: tuple[str, ...] = ()) -> None:
        self.kind = kind
        self.hint = hint
        self.reserved = reserved
        self._entries: dict[str, Entry] = {}

    def add(self, entry: Entry) -> None:
        """Raises: PluginError when the name is taken, naming both owners."""
        if entry.name in self.reserved:
            raise PluginError(f"{self.kind} '{entry.name}' is part of autotl itself: use another name.")
        taken = self._entries.get(entry.name)
        if taken:
            raise PluginError(f"{self.kind} '{entry.name}' is registered twice: by {taken.owner} and by {entry.owner}.")
        self._entries[entry.name] = entry

    def drop(self, owner: Owner) -> None:
        """Forget everything that `owner` registered."""
        self._entries = {name: entry for name, entry in self._entries.items() if entry.owner != owner}

    def match(self, pattern: str) -> list[Entry]:
        """The entries that match a name or a glob, in order of registration.

        Raises: PluginError if none matches.
        """
        found = [entry for entry in self if fnmatch.fnmatchcase(entry.name, pattern)]
        if not found:
            raise PluginError(unknown(self.kind, pattern, self._entries, self.hint))
        return found

    def __getitem__(self, name: str) -> Entry:
        """Raises: PluginError for an unknown name, with the closest known one."""
        if name not in self._entries:
            raise PluginError(unknown(self.kind, name, self._entries, self.hint))
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)
