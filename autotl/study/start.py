"""Where a search starts from: the network that won an earlier study, with the weights that it was trained to."""

from autotl.backbones.catalogue import RANDOM
from autotl.errors import StudyError
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
    if name in settings.weights:
        raise StudyError(f"--from and --weights both give weights for '{name}': leave one out.")
    backbones = dict.fromkeys((*settings.backbones, name))
    weights = {**settings.weights, name: study.bundle}
    return settings.model_copy(update={"backbones": tuple(backbones), "weights": weights, "from_study": None})
