"""Where a search starts from: the network that won an earlier study, with the weights that it was trained to."""

from collections.abc import Iterable
from pathlib import Path

from autotl.backbones.catalogue import RANDOM
from autotl.data.dataset import Dataset, read_split
from autotl.errors import DataError, StudyError
from autotl.export import bundle
from autotl.study.settings import Settings
from autotl.tracking import folder, result


def resolved(settings: Settings) -> Settings:
    """The settings with the winner of `from_study` among the backbones, its bundle as its weights; else as they are.

    Raises: StudyError for a study that has no winner, or may soon have another one.
    """
    if settings.from_study is None:
        return settings
    study = folder.find_study(folder.home(settings.home), settings.from_study)
    if study.name == settings.study_name:
        raise StudyError(f"A study cannot start from itself: name the new one, --study NAME, not '{study.name}'.")
    found = result.load(study)
    if found is None or not study.bundle.exists():
        raise StudyError(f"Study '{study.name}' has no winner yet: let its search end first.")
    if study.is_live:
        raise StudyError(
            f"Study '{study.name}' is being searched, and may get another winner: wait until it has ended."
        )
    name = found.final.backbone.removesuffix(RANDOM)
    if found.final.weights == "none":
        raise StudyError(f"Study '{study.name}' was won by '{name}', which has no weights to start from.")
    if name in settings.weights:
        raise StudyError(f"--from and --weights both give weights for '{name}': leave one out.")
    backbones = dict.fromkeys((*settings.backbones, name))
    weights = {**settings.weights, name: study.bundle}
    return settings.model_copy(update={"backbones": tuple(backbones), "weights": weights, "from_study": None})


def require_unseen(dataset: Dataset, weights: Iterable[Path]) -> None:
    """Raises: StudyError where a study's bundle among the files of weights was trained on sealed images of this one."""
    sealed = set(dataset.shas("test"))
    for path in weights:
        plan = bundle.plan_of(path)
        if plan is None or not any(phase.stage_lr for phase in plan.phases):
            continue  # its stages are as they were before that study
        study = folder.StudyFolder(path.resolve().parent)
        try:
            split = read_split(study.path)
        except DataError:  # a bundle that lies elsewhere does not tell which images it was trained on
            continue
        if seen := sum(split.get(sha, "test") != "test" for sha in sealed):
            raise StudyError(
                f"{seen} of the {len(sealed)} images that this search would be tested on were used to train the "
                f"network of study '{study.name}' that it starts from: its test accuracy would be too high. Give the "
                "images their splits yourself, or, where they are the same images, use the --seed of that study."
            )
