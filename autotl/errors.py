"""Expected errors, which a user can fix. The command line prints one line for each and no traceback.

A message says what was wrong, what was received, what is allowed and what to do next.
"""

import difflib
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_BEFORE_HOST = re.compile(r"([\w+.-]+)://([^\s/]\S*)@")
"""Up to the last `@`: passwords may contain unescaped `/` and `@`."""
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
    """A plan cannot be read, or cannot be trained with what is installed."""


class TrainingError(AutotlError):
    """A training cannot continue: its loss is not finite, or the device has too little memory for one image."""


class PluginError(AutotlError):
    """A plugin broke its contract, or two plugins use the same name."""

    def __init__(self, message: str, blamed: str = "") -> None:
        """`blamed`: the registered item that failed, as in `Augmentation 'flip'`."""
        super().__init__(message)
        self.blamed = blamed


class WeightsError(AutotlError):
    """Pretrained weights are not available, or are not the expected ones."""


class StudyError(AutotlError):
    """A study cannot be created, continued or read."""


def out_of_memory(error: BaseException) -> bool:
    """Whether the process ran out of CPU memory, for which torch raises a plain RuntimeError.

    For GPU memory torch raises torch.OutOfMemoryError.
    """
    said = ("DefaultCPUAllocator", "std::bad_alloc")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in said)
    )


class DamagedFile(StudyError):
    """A file of a study is damaged."""

    def __init__(self, file: Path, why: str) -> None:
        super().__init__(f"{file} is damaged: {why}. Delete it and rerun the same search to recreate it.")


def reason(error: BaseException) -> str:
    """Why something failed, in one line; with the class of an unexpected error."""
    if isinstance(error, AutotlError):
        return one_line(error)
    text = one_line(error, 300)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def unknown(what: str, name: str, known: Iterable[str], hint: str = "", most: int = 12) -> str:
    """`Unknown backbone 'timm:resnet5'. Did you mean 'timm:resnet50'? <hint>`

    If no name is similar, up to `most` known names are listed.
    """
    known = list(known)
    # A name without a tag, such as the `.a1_in1k` of timm:resnet18.a1_in1k, is compared without tags.
    starts: dict[str, str] = {}
    for each in known:
        starts.setdefault(each if "." in name else each.partition(".")[0], each)
    close = difflib.get_close_matches(name, starts, n=1)
    guess = f" Did you mean '{starts[close[0]]}'?" if close else ""
    if not guess and len(known) <= most:
        guess = f" Known: {', '.join(known) or 'none'}."
    return f"Unknown {what} '{name}'.{guess} {hint}".rstrip()


def missing(path: Path) -> str:
    """`'dat/flowers' does not exist. Did you mean 'data/flowers'?`"""
    near = _near(path)
    guess = f" Did you mean {str(near)!r}?" if near not in (None, path) else ""
    return f"{str(path)!r} does not exist.{guess}"


def _near(path: Path) -> Path | None:
    """The path with the most similar existing name in place of each that does not exist."""
    parent = path.parent if os.path.exists(path.parent) else _near(path.parent)
    try:
        names = os.listdir(parent) if parent else ()
    except OSError:
        return None
    close = difflib.get_close_matches(path.name, names, n=1)
    return parent / close[0] if parent and close else None


def masked(url: str) -> str:
    """A URL that is safe to show and store: without passwords and tokens."""
    import sqlalchemy

    with suppress(sqlalchemy.exc.ArgumentError, ValueError):
        known = sqlalchemy.make_url(url)
        if known.password is not None:  # it may hold spaces, which would end the URL in a text
            url = known.render_as_string(hide_password=True)
    return without_secrets(url)


def without_secrets(text: str) -> str:
    """The text without passwords and tokens in its URLs."""
    return _IN_QUERY.sub(r"\1***", _BEFORE_HOST.sub(_user_alone, text))


def _user_alone(found: re.Match[str]) -> str:
    """Keeps the user's name only for databases; elsewhere the part before the `@` may be a token."""
    scheme, before = found.groups()
    user, colon, _ = before.partition(":")
    if not _DATABASE.match(scheme):
        return f"{scheme}://***@"
    return f"{scheme}://{user}:***@" if colon else found[0]


def one_line(text: object, most: int | None = None) -> str:
    """A text, or an error's message, without secrets and line breaks and of `most` characters at most."""
    line = " ".join(without_secrets(str(text)).split())
    return line if most is None else shortened(line, most)  # the end of a message often says what to do


def shortened(text: str, most: int) -> str:
    """The text in at most `most` characters; of a longer one the middle is cut."""
    if len(text) <= most:
        return text
    end = (most - 1) // 2
    return f"{text[: most - 1 - end]}…{text[len(text) - end :] if end else ''}"
