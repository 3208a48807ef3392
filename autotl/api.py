"""autotl from Python: the same search as the command, and models to predict with."""

import inspect
import time
from collections.abc import Iterable
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autotl.errors import DataError, StudyError, unknown
from autotl.study.settings import Settings

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from autotl.export.bundle import Bundle
    from autotl.export.export import Exported
    from autotl.plan import TransferPlan
    from autotl.tracking.folder import StudyFolder
    from autotl.tracking.result import Result, Test

Paths = str | Path | Iterable[str | Path]


class Model:
    """A trained model, as it lies in a bundle."""

    def __init__(self, folder: Path, bundle: "Bundle") -> None:
        self.folder = folder
        self.bundle = bundle

    @property
    def plan(self) -> "TransferPlan":
        """What it was trained by."""
        return self.bundle.plan

    @property
    def classes(self) -> tuple[str, ...]:
        return self.bundle.classes

    @property
    def metrics(self) -> dict[str, Any]:
        """What was measured of it, by where: `validation`, `test`, `comparisons`."""
        return self.bundle.metrics

    def predict(self, images: Paths) -> list[str]:
        """The likeliest class of each image file; folders stand for the files below them.

        Raises: DataError for a file that is no image.
        """
        return [self.classes[at] for at in self.predict_proba(images).argmax(1)]

    def predict_proba(self, images: Paths) -> "np.ndarray":
        """The probability of each class for each image file, [N, classes].

        Raises: DataError for a file that is no image.
        """
        import numpy as np

        rows = []
        for file, answer in self.bundle.predict(files_in(images)):
            if isinstance(answer, str):
                raise DataError(f"{file} cannot be read: {answer}")
            rows.append(answer)
        return np.stack(rows) if rows else np.empty((0, len(self.classes)), np.float32)

    def export(self, format: str, path: str | Path, images: Paths = ()) -> "Exported":
        """Write the model into the folder `path` as `bundle`, `torch-export` or `onnx`.

        What was written is compared with the model on some of `images`, by default those of the study.

        Raises: StudyError, among others when they disagree.
        """
        from autotl.export.export import KINDS, export

        if format not in KINDS:
            raise StudyError(unknown("format", format, KINDS))
        device = str(self.bundle.graph.device)
        try:
            return export(self.bundle, self.folder, format, Path(path), files_in(images) or self._own_images())
        finally:
            self.bundle.to(device)

    def _own_images(self) -> list[Path]:
        """The images of the study that the model lies in, where they are still there."""
        from autotl.data.dataset import stored_files
        from autotl.tracking.folder import StudyFolder

        study = StudyFolder(self.folder.resolve().parent)
        definition = study.definition
        return stored_files(study.path, Path(definition.data)) if definition and definition.data else []

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {str(self.folder)!r}: {self.plan.backbone}, {len(self.classes)} classes>"


class Study(Model):
    """A finished search, with the model that it left."""

    def __init__(self, study: "StudyFolder", bundle: "Bundle", result: "Result") -> None:
        super().__init__(study.bundle, bundle)
        self._study = study
        self.result = result

    @property
    def best(self) -> "TransferPlan":
        """The plan that won. `plan` is how it was trained at last, on more images where so wished."""
        return self.result.best.plan

    @property
    def test(self) -> "Test":
        """The winner on the sealed test split, with the 95 % interval of its metric."""
        return self.result.test

    @cached_property
    def leaderboard(self) -> "pd.DataFrame":
        """The different plans that were carried out, best first: one row each, indexed by trial."""
        from autotl.report import frames

        return frames.leaderboard(self._study)

    def _repr_html_(self) -> str:
        from html import escape

        from autotl.report import words

        said = "".join(f"<p>{escape(line)}</p>" for line in words.summary(self.result))
        table: str = self.leaderboard.head(10).to_html()
        return said + table


def search(data: str | Path, *, verbose: bool = True, **options: Any) -> Study:
    """Find the best transfer setup for the images in `data`; goes on where an earlier search of the study stopped.

    `options` are those of `autotl search`, by the same names with underscores: `trials=50`, `budget="30m"`,
    `backbones=["timm:resnet*"]`, `metric="macro-f1"`, `study="flowers"` and so on. Unless `verbose` nothing is
    printed.

    Raises: AutotlError, in one line, for whatever a user can put right.
    """
    began = time.monotonic()

    from autotl.report import notebook

    if notebook.is_here():
        notebook.quieten()  # before the libraries in question are imported

    from autotl.export import bundle
    from autotl.host import Host
    from autotl.report import terminal
    from autotl.study.search import Search
    from autotl.study.watch import Silent

    settings = Settings.of({"data": data, **options})
    with ExitStack() as stack:
        watcher = stack.enter_context(terminal.watcher(quiet=False)) if verbose else Silent()
        found = Search(settings, Host.from_environment(), watcher, began)
        result = found.run()
        found.end_logging()
    return Study(found.folder, bundle.load(found.folder.bundle, found.catalogue).to(found.device), result)


search.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # so that notebooks and `help` name the options
    [
        next(iter(inspect.signature(search).parameters.values())),
        *(inspect.signature(Settings).parameters[name] for name in list(Settings.model_fields)[1:]),
        inspect.signature(search).parameters["verbose"],
    ],
    return_annotation=Study,
)


def load(
    path: str | Path, *, device: str = "auto", home: str | Path | None = None, cache_dir: str | Path | None = None
) -> Model:
    """The model of a bundle, or a `Study` where `path` is a study's folder or its name in the workspace `home`.

    Raises: AutotlError, in one line, for what is neither, and for a study without a model.
    """
    from autotl.backbones.catalogue import Catalogue
    from autotl.engine import device as devices
    from autotl.export import bundle
    from autotl.host import Host
    from autotl.report import words
    from autotl.tracking import folder, result

    def read(place: Path) -> "Bundle":
        catalogue = Catalogue(Host.from_environment(), folder.cache_dir(Path(cache_dir) if cache_dir else None))
        return bundle.load(place, catalogue).to(devices.resolve(device))

    place = Path(path)
    if (place / "plan.json").is_file():
        return Model(place, read(place))
    if (place / "study.json").is_file():
        study = folder.StudyFolder(place)
    else:
        study = folder.find_study(folder.home(Path(home) if home else None), str(path))
    if not study.bundle.exists():
        assert study.definition is not None
        raise StudyError(f"Study '{study.name}' has no model yet; go on with it: {words.go_on(study.definition)}")
    found = result.load(study)
    return Study(study, read(study.bundle), found) if found else Model(study.bundle, read(study.bundle))


def files_in(paths: Paths) -> list[Path]:
    """Files as named; of folders, every file below that is not hidden, in order of name.

    Raises: DataError for what is not there, and for a folder without files.
    """
    files: list[Path] = []
    for path in [paths] if isinstance(paths, str | Path) else paths:
        path = Path(path)
        if path.is_dir():
            below = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
            if not below:
                raise DataError(f"No files in {path}.")
            files += below
        elif path.exists():
            files.append(path)
        else:
            raise DataError(f"There is no image or folder {path}.")
    return files
