"""The Python API: the same search as the command, and models to predict with."""

import inspect
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autotl.errors import DamagedFile, DataError, StudyError, unknown
from autotl.study.settings import Settings

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from PIL import Image

    from autotl.export.bundle import Bundle, Source
    from autotl.export.export import Exported
    from autotl.plan import Made, TransferPlan
    from autotl.report.evaluation import Evaluation
    from autotl.report.page.write import Page
    from autotl.tracking.advice import Advice
    from autotl.tracking.folder import StudyFolder
    from autotl.tracking.result import Result, Test

    One = str | Path | Image.Image | np.ndarray
    Images = One | Iterable[One]

Paths = str | Path | Iterable[str | Path]


class Model:
    """A trained model, loaded from a bundle."""

    def __init__(self, folder: Path, bundle: "Bundle") -> None:
        self.folder = folder
        self.bundle = bundle

    @property
    def plan(self) -> "Made":
        """The plan that it was trained with; of an ensemble the plans of its `members`."""
        return self.bundle.plan

    @property
    def classes(self) -> tuple[str, ...]:
        return self.bundle.classes

    @property
    def metrics(self) -> dict[str, Any]:
        """Its metrics, under the keys `validation`, `test` and `comparisons`."""
        return self.bundle.metrics

    def predict(self, images: "Images") -> list[str]:
        """The most probable class of each image; images as in `predict_proba`."""
        return [self.classes[at] for at in self._rows(images).argmax(1)]

    def predict_proba(self, images: "Images") -> "np.ndarray":
        """The probability of each class for each image, [N, classes].

        An image is a file path, a Pillow image, or an array, uint8 [H, W, 3] in RGB; an array [N, H, W, 3] is N
        images. A folder means all files below it in order of name, except hidden files and litter (files that
        systems leave, such as Thumbs.db); files that cannot be read are skipped, with a warning.

        Raises: DataError for anything else.
        """
        return self._rows(images)

    def _rows(self, images: "Images") -> "np.ndarray":
        import numpy as np

        sources = list(_sources(images))
        rows = []
        answers = self.bundle.predict([source for source, _, _ in sources])
        for (_, name, found), answer in zip(sources, answers, strict=True):
            if not isinstance(answer, str):
                rows.append(answer)
            elif found:
                warnings.warn(f"{name} is skipped: {answer}", stacklevel=3)
            else:
                raise DataError(f"{name} cannot be read: {answer}")
        return np.stack(rows) if rows else np.empty((0, len(self.classes)), np.float32)

    def evaluate(
        self,
        data: str | Path,
        *,
        path_column: str | None = None,
        label_column: str | None = None,
        cache_dir: str | Path | None = None,
        plugins: Iterable[Any] = (),
    ) -> "Evaluation":
        """Measure it on labelled images that came later: a folder with a sub-folder for each class, or a manifest.

        This is no part of the study's test, and changes nothing.

        Raises: DataError, for example for a class that it does not know.
        """
        from autotl.data.listing import Columns
        from autotl.host import Host
        from autotl.report.evaluation import evaluate
        from autotl.tracking import folder

        host, columns = Host.from_environment(plugins), Columns(path_column, label_column)
        with suppress(DamagedFile):
            definition = folder.of_bundle(self.folder).definition
            host.recall(definition.plugins if definition else {})
        place = folder.cache_dir(Path(cache_dir) if cache_dir else None)
        return evaluate(self.bundle, self.folder, Path(data), host, place, columns)

    def export(self, format: str, path: str | Path, images: Paths = ()) -> "Exported":
        """Write the model to the folder `path` as `bundle`, `torch-export` or `onnx`.

        The export is compared with the model on some of `images`, by default those of the study.

        Raises: StudyError, for example if they disagree.
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
        """The images of the study whose folder holds the model, if they still exist."""
        from autotl.data.dataset import stored_files
        from autotl.tracking.folder import of_bundle

        study = of_bundle(self.folder)
        definition = study.definition
        return stored_files(study.path, Path(definition.data)) if definition and definition.data else []

    def __repr__(self) -> str:
        backbones = " + ".join(plan.backbone for plan in self.plan.members)
        return f"<{type(self).__name__} {str(self.folder)!r}: {backbones}, {len(self.classes)} classes>"


class Study(Model):
    """A finished search and its model."""

    def __init__(self, study: "StudyFolder", bundle: "Bundle", result: "Result") -> None:
        super().__init__(study.bundle, bundle)
        self._study = study
        self.result = result

    @property
    def best(self) -> "TransferPlan":
        """The winning plan. `plan` is that of the final model, refit on more images if requested."""
        return self.result.best.plan

    @property
    def test(self) -> "Test":
        """The winner on the test split, with the 95 % confidence interval of its metric."""
        return self.result.test

    @cached_property
    def leaderboard(self) -> "pd.DataFrame":
        """The different plans that were trained, best first: one row each, indexed by trial."""
        from autotl.report import frames

        return frames.leaderboard(self._study)

    def report(self, out: str | Path | None = None, *, show_test: bool = False) -> "Page":
        """Write the study as one HTML page, by default `report.html` in its folder; a notebook shows it.

        `show_test`: show the model's mistakes on the test images, too. This use of their labels is recorded.

        Raises: StudyError or DataError if a file that it needs is damaged or missing.
        """
        from autotl.report.page import study
        from autotl.report.page.opened import on_test
        from autotl.report.page.write import Page, write_page

        test = on_test(study.read(self._study), self.bundle) if show_test else None
        return Page(write_page(self._study, Path(out) if out else None, test))

    def _repr_html_(self) -> str:
        from html import escape

        from autotl.report import words

        summary = "".join(f"<p>{escape(line)}</p>" for line in words.summary(self.result))
        table: str = self.leaderboard.head(10).to_html()
        return summary + table


def search(data: str | Path, *, verbose: bool = True, **options: Any) -> Study:
    """Find the best transfer-learning setup for the images in `data`, or resume an earlier search of the study.

    `options` are those of `autotl search`, with underscores in their names: `trials=50`, `budget="30m"`,
    `backbones=["timm:resnet*"]`, `metric="macro-f1"`, `study="flowers"` and so on. With `verbose=False` nothing is
    printed.

    Raises: AutotlError, in one line, for everything that a user can fix.
    """
    began = time.monotonic()

    from autotl.report import notebook

    if notebook.is_here():
        notebook.quieten()  # before those libraries are imported

    from autotl.export import bundle
    from autotl.host import Host
    from autotl.report import terminal
    from autotl.report.page.write import write_at_the_end
    from autotl.study.search import Search
    from autotl.study.watch import Silent

    settings = Settings.of({"data": data, **options})
    with ExitStack() as stack:
        watcher = stack.enter_context(terminal.watcher(quiet=False)) if verbose else Silent()
        found = Search(settings, Host.from_environment(settings.plugins), watcher, began)
        result = found.run()
        write_at_the_end(found.folder, watcher.note)
        found.end_logging()
    return Study(found.folder, bundle.load(found.folder.bundle, found.catalogue).to(found.device), result)


def advise(data: str | Path, *, verbose: bool = True, **options: Any) -> "Advice":
    """Which way of transfer learning suits the images in `data`: the situation, how it was measured, what to try first.

    `options` are those of `autotl advise`, with underscores in their names, such as `backbones=["timm:resnet*"]`. With
    `verbose=False` nothing is printed.

    Raises: AutotlError, in one line, for everything that a user can fix.
    """
    from autotl.host import Host
    from autotl.report import terminal
    from autotl.study.advising import Advising
    from autotl.study.watch import Silent

    settings = Settings.of({"data": data, **options})
    with ExitStack() as stack:
        watcher = stack.enter_context(terminal.watcher(quiet=False)) if verbose else Silent()
        return Advising(settings, Host.from_environment(settings.plugins), watcher).run()


def _tell_options() -> None:
    """Make notebooks and `help` show each option of `search` with its default and its description."""
    options = list(Settings.model_fields.items())[1:]
    given = inspect.signature(search).parameters
    search.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            given["data"],
            *(
                inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=field.get_default())
                for name, field in options
            ),
            given["verbose"],
        ],
        return_annotation=Study,
    )
    lines = [f"    {name}: {' '.join((field.description or '').split())}" for name, field in options]
    search.__doc__ = "\n".join([inspect.getdoc(search) or "", "", "Options:", *lines])


_tell_options()


def load(
    path: str | Path,
    *,
    device: str = "auto",
    home: str | Path | None = None,
    cache_dir: str | Path | None = None,
    plugins: Iterable[Any] = (),
) -> Model:
    """The model of a bundle, or a `Study` where `path` is a study's folder or its name in the workspace `home`.

    `plugins` are those of `search`. A study's own files are found again.

    Raises: AutotlError, in one line, if `path` is neither, or a study without a model.
    """
    from autotl.backbones.catalogue import Catalogue
    from autotl.engine import device as devices
    from autotl.export import bundle, contents
    from autotl.host import Host
    from autotl.report import words
    from autotl.tracking import folder, result

    def read(place: Path) -> "Bundle":
        host = Host.from_environment(plugins)
        with suppress(DamagedFile):  # the bundle may not need it
            definition = folder.of_bundle(place).definition
            host.recall(definition.plugins if definition else {})
        catalogue = Catalogue(host, folder.cache_dir(Path(cache_dir) if cache_dir else None))
        return bundle.load(place, catalogue).to(devices.resolve(device))

    place = Path(path)
    if (place / "study.json").is_file():
        study = folder.StudyFolder(place)
    elif any((place / name).exists() for name in contents.CARRIED):
        return Model(place, read(place))
    else:
        study = folder.find_study(folder.home(Path(home) if home else None), str(path))
    if not study.bundle.exists():
        assert study.definition is not None
        raise StudyError(f"Study '{study.name}' has no model yet; resume it: {words.go_on(study, study.definition)}")
    found = result.load(study)
    return Study(study, read(study.bundle), found) if found else Model(study.bundle, read(study.bundle))


def files_in(paths: Paths) -> list[Path]:
    """The files named, and those below the folders named in order of name, without litter and hidden files.

    Litter is files that systems leave beside a user's files, such as Thumbs.db, which `photos/*` matches too. A path
    that does not exist is returned as a file that cannot be read.

    Raises: DataError for a folder without files, and if only litter is named.
    """
    from autotl.data.names import is_litter

    named = [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    meant = [path for path in named if path.is_dir() or not is_litter(path.name)]
    if named and not meant:
        raise DataError(f"{named[0]} is not an image but a file that systems leave in folders. Give images or folders.")
    return [file for path in meant for file in _files(path)]


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    from autotl.data.walk import files_below

    found = sorted(files_below(path))
    if not found:
        raise DataError(f"No files in {path}.")
    return found


def _sources(images: "Images") -> Iterator[tuple["Source", str, bool]]:
    """Each image, its name in errors, and whether it was found in a folder."""
    import numpy as np
    from PIL import Image

    one = isinstance(images, str | Path | Image.Image) or (isinstance(images, np.ndarray) and images.ndim < 4)
    several: Any = [images] if one else images
    for number, image in enumerate(several):
        if isinstance(image, Image.Image):
            yield image, f"Image {number}", False
        elif isinstance(image, np.ndarray):
            yield _as_image(image, f"Image {number}"), f"Image {number}", False
        elif isinstance(image, str | Path):
            for file in _files(Path(image)):
                yield file, str(file), Path(image).is_dir()
        else:
            raise DataError(f"Image {number} is {type(image).__name__}. Give a path, a Pillow image or an array.")


def _as_image(pixels: "np.ndarray", name: str) -> "Image.Image":
    from PIL import Image

    if pixels.dtype != "uint8" or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        shape = ", ".join(map(str, pixels.shape))
        raise DataError(f"{name} is an array of {pixels.dtype} [{shape}]; give uint8 [H, W, 3], RGB.")
    return Image.fromarray(pixels)
