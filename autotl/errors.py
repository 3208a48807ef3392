"""Expected errors: what a user can put right. The command line prints one line for each and no traceback.

A message says what was wrong, what was received, what is allowed and what to do next.
"""

import difflib
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_BEFORE_HOST = re.compile(r"([\w+.-]+)://([^\s/]\S*)@")
"""Up to the last `@`: people write `/` and `@` in passwords as they are."""
_DATABASE = re.compile(r"postgres|mysql|mariadb|oracle|mssql|cockroachdb")
_PASSWORD = r"(?:password|passwd|passphrase|pwd)"
_SECRET = rf"{_PASSWORD}|token|secret|credential|signature|api_?key|access_?key|odbc_connect"
_IN_QUERY = re.compile(
    rf"([?&;#](?:[\w.%-]*(?:{_SECRET})[\w.%-]*|key|sig|auth|pass|pw)=|{_PASSWORD}=)('[^']*'|[^&;\s]*)", re.IGNORECASE
)


class AutotlError(Exception):
    """The base of every expected error; the command line ends with `exit_code`. No message holds a secret of a URL."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(without_secrets(message))


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


class DamagedFile(StudyError):
    """A file of a study does not hold what it should."""

    def __init__(self, file: Path, why: str) -> None:
        super().__init__(f"{file} is damaged: {why}. Delete it, and say the same search again: it is made anew.")


def reason(error: BaseException) -> str:
    """Why something failed, in one line: an expected error says it alone, any other with its class."""
    if isinstance(error, AutotlError):
        return one_line(error)
    text = one_line(error, 300)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def unknown(what: str, name: str, known: Iterable[str], hint: str = "") -> str:
    """`Unknown backbone 'timm:resnet5'. Did you mean 'timm:resnet50'? <hint>`"""
    known = list(known)
    # Who says nothing after a dot, as the tag of timm:resnet18.a1_in1k, need not be near it.
    begins: dict[str, str] = {}
    for each in known:
        begins.setdefault(each if "." in name else each.partition(".")[0], each)
    close = difflib.get_close_matches(name, begins, n=1)
    guess = f" Did you mean '{begins[close[0]]}'?" if close else ""
    if not guess and len(known) <= 12:
        guess = f" Known: {', '.join(known) or 'none'}."
    return f"Unknown {what} '{name}'.{guess} {hint}".rstrip()


def masked(url: str) -> str:
    """A URL as it may be shown and kept: without passwords and tokens."""
    import sqlalchemy

    with suppress(sqlalchemy.exc.ArgumentError, ValueError):
        known = sqlalchemy.make_url(url)
        if known.password is not None:  # it may hold spaces, which end a URL within a text
            url = known.render_as_string(hide_password=True)
    return without_secrets(url)


def without_secrets(text: str) -> str:
    """A text in which the URLs have no passwords and tokens."""
    return _IN_QUERY.sub(r"\1***", _BEFORE_HOST.sub(_user_alone, text))


def _user_alone(found: re.Match[str]) -> str:
    """A database is told who the user is; elsewhere the name before the `@` may itself be a token."""
    scheme, before = found.groups()
    user, colon, _ = before.partition(":")
    if not _DATABASE.match(scheme):
        return f"{scheme}://***@"
    return f"{scheme}://{user}:***@" if colon else found[0]


def one_line(text: object, most: int | None = None) -> str:
    """A text, or an error's message, without secrets and line breaks and of `most` characters at most."""
    line = " ".join(without_secrets(str(text)).split())
    return line if most is None else shortened(line, most)  # what to do often stands at the end of a message


def shortened(text: str, most: int) -> str:
    """The text in `most` characters, its middle left out where it is longer."""
    if len(text) <= most:
        return text
    end = (most - 1) // 2
    return f"{text[: most - 1 - end]}…{text[len(text) - end :] if end else ''}"
