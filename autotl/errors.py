"""Expected errors: what a user can put right. The command line prints one line for each and no traceback.

A message says what was wrong, what was received, what is allowed and what to do next.
"""

import difflib
import re
from collections.abc import Iterable


class AutotlError(Exception):
    """The base of every expected error; the command line ends with `exit_code`."""

    exit_code = 2


class DataError(AutotlError):
    """The images or their labels cannot be used as they are."""


class PlanError(AutotlError):
    """A plan cannot be read, or cannot be carried out with what is installed."""


class TrainingError(AutotlError):
    """A training cannot go on: its loss is no number any more, or one image is too much for the device."""


class PluginError(AutotlError):
    """A plugin broke its contract, or two plugins want one name."""

    def __init__(self, message: str, blamed: str = "") -> None:
        """`blamed`: which of the things that a plugin registered is at fault, as in `Augmentation 'flip'`."""
        super().__init__(message)
        self.blamed = blamed


class WeightsError(AutotlError):
    """Pretrained weights cannot be had, or are not what they should be."""


class StudyError(AutotlError):
    """A study cannot be created, continued or read."""


def out_of_memory(error: BaseException) -> bool:
    """Whether the computer has no more memory for a process: torch says so by a RuntimeError, and has no class for it.

    A GPU's memory is another matter: torch.OutOfMemoryError.
    """
    said = ("DefaultCPUAllocator", "std::bad_alloc")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in said)
    )


def reason(error: BaseException) -> str:
    """Why something failed, in one line: an expected error says it alone, any other with its class."""
    if isinstance(error, AutotlError):
        return one_line(error)
    text = one_line(error, 300)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def unknown(what: str, name: str, known: Iterable[str], hint: str = "") -> str:
    """`Unknown backbone 'timm:resnet5'. Did you mean 'timm:resnet50'? <hint>`"""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    guess = f" Did you mean '{close[0]}'?" if close else ""
    if not guess and len(known) <= 12:
        guess = f" Known: {', '.join(known) or 'none'}."
    return f"Unknown {what} '{name}'.{guess} {hint}".rstrip()


def masked(url: str) -> str:
    """A URL as it may be shown and kept: without its password."""
    url = re.sub(r"(://[^:/@]*):[^@/]*@", r"\1:***@", url)
    return re.sub(r"(password=)[^&]*", r"\1***", url)


def one_line(text: object, most: int | None = None) -> str:
    """A text, or an error's message, without passwords and line breaks and of `most` characters at most."""
    return " ".join(masked(str(text)).split())[:most]
