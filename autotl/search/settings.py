"""What a user may say of a search: the same names as options of the command and as keys of a study file."""

import re
from pathlib import Path

from pydantic import Field

from autotl.errors import StudyError
from autotl.plan import Record


class Settings(Record):
    """Everything that defines a search. Names of plugins may be globs."""

    data: Path
    trials: int = Field(default=50, ge=1)
    """How many trials the study has in all, those of earlier runs included."""
    budget: float | None = Field(default=None, ge=60)
    """Seconds for everything, from the first image to the tested bundle; None: as long as it takes."""
    prune: bool = True
    """Whether trials that fall behind are stopped early."""
    backbones: tuple[str, ...] = ()
    """Empty: those of `pool`."""
    pool: str = "auto"
    strategies: tuple[str, ...] = ()
    """Empty: all, as for augmentations."""
    augmentations: tuple[str, ...] = ()
    metric: str = "accuracy"
    seed: int = 0
    device: str = "auto"
    study: str | None = None
    """None: named after the data."""
    storage: str | None = None
    """A database URL for Optuna; None: SQLite in the study's folder."""
    refit: bool = True
    """Whether the winner is trained once more, on all images but the sealed ones."""
    reruns: int = Field(default=2, ge=0)
    """With how many fresh seeds the best plans are run again before one of them wins."""
    compare: bool = True
    """Whether what the winner is measured against is trained too."""
    weights: dict[str, Path] = Field(default={})
    home: Path | None = None
    cache_dir: Path | None = None

    @property
    def study_name(self) -> str:
        """Raises: StudyError for a name that is no single folder's."""
        data = self.data.resolve()
        name = self.study or (data.name if data.is_dir() else data.stem)
        if not re.fullmatch(r"[\w][\w .+-]*", name):
            raise StudyError(
                f"'{name}' cannot be a study's name: letters, digits, '.', '-', '_', '+'. Say --study NAME."
            )
        return name
