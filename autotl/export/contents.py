"""The files of a bundle: written with the SHA-256 of each, and checked when they are read."""

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from autotl.errors import StudyError
from autotl.export import card
from autotl.files import as_json, read_regular, where_it_is, write
from autotl.plan import made_by

READS = 4
"""How many times to read a bundle that changes while it is read."""
WEIGHTS = "weights.safetensors"
CARRIED = (
    WEIGHTS,
    "plan.json",
    "preprocessing.json",
    "classes.json",
    "metrics.json",
    "versions.json",
    "LICENSE",
)
HASHES = "hashes.json"
"""The file with the SHA-256 of each of them."""
README = "README.md"
"""The model card. Users may edit it: autotl does not read it."""
FILES = (*CARRIED, HASHES, README)
USE = "    autotl predict . photo.jpg"
"""The usage example in the model card."""
LARGEST = {WEIGHTS: 1 << 36}
"""The most bytes of a file; other files are JSON or text of at most `LARGEST_TEXT`."""
LARGEST_TEXT = 1 << 24

T = TypeVar("T")
_SHA256 = TypeAdapter(dict[str, str])


def parsed(kind: TypeAdapter[T], folder: Path, files: Mapping[str, bytes], name: str) -> T:
    """The value in a file of the bundle `folder`.

    Raises: StudyError.
    """
    try:
        return kind.validate_json(files[name], strict=True)
    except ValidationError as error:
        raise damaged(folder, f"{name}: {error.errors()[0]['msg']}") from None


def damaged(folder: Path, why: str) -> StudyError:
    """The error for a bundle that cannot be used."""
    return StudyError(
        f"{folder} is damaged: {why}. Get it again; if it belongs to a study, rerun the search to make it again."
    )


def write_files(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write a bundle's files, with their hashes and the model card."""
    for name in CARRIED:
        write(folder / name, contents[name])
    write(folder / HASHES, as_json({name: _sha256(contents[name]) for name in CARRIED}))
    made = made_by(contents["plan.json"])
    metrics = card.Metrics.model_validate_json(contents["metrics.json"])
    write(folder / README, card.readme(made, json.loads(contents["classes.json"]), metrics, USE))


def read_files(folder: Path) -> dict[str, bytes]:
    """A bundle's files, checked. Repeats if the check fails, because a search may be replacing the bundle.

    Raises: StudyError.
    """
    for _ in range(READS):
        try:
            return _checked(where_it_is(folder), folder)
        except StudyError as error:
            wrong = error
            time.sleep(0.05)
    raise wrong


def _checked(place: Path, folder: Path) -> dict[str, bytes]:
    """`place` is where the bundle `folder` is at the moment."""
    missing = [name for name in (*CARRIED, HASHES) if not (place / name).exists()]
    if missing:
        raise StudyError(f"{folder} is not a bundle: {', '.join(missing)} missing.")
    contents = {}
    for name in (*CARRIED, HASHES):
        try:
            contents[name] = read_regular(place / name, LARGEST.get(name, LARGEST_TEXT))
        except OSError as error:
            raise damaged(folder, f"{name} cannot be read: {error.strerror}") from None
    hashes = parsed(_SHA256, folder, contents, HASHES)
    for name in CARRIED:
        if hashes.get(name) != _sha256(contents[name]):
            raise damaged(folder, f"{name} has changed since it was written: its SHA-256 differs")
    return contents


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
