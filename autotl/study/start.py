"""Starting a search from the network that won an earlier study, with its trained weights."""

from collections.abc import Iterable
from pathlib import Path

from autotl.backbones.catalogue import RANDOM
from autotl.data.dataset import Dataset, read_split
from autotl.errors import DataError, StudyError
from autotl.export import bundle
from autotl.host import Host
from autotl.study.settings import Settings
from autotl.tracking import folder, result


def resolved(settings: Settings, host: Host) -> Settings:
    """The settings with the winner of `from_study` as a backbone and its bundle as weights; unchanged without one.

    The host gets the plugin files of that study.

    Raises: StudyError for a study that has no winner, or is still being searched.
    """
    if settings.from_study is None:
        return settings
    study = folder.find_study(folder.home(settings.home), settings.from_study)
    if study.name == settings.study_name:
        raise StudyError(f"Study '{study.name}' cannot start from itself. Name the new study: --study NAME")
    found = result.load(study)
    if found is None or not study.bundle.exists():
        raise StudyError(f"Study '{study.name}' has no winner yet. Finish its search first.")
    if found.ensemble:
        raise StudyError(
            f"Study '{study.name}' ended with an ensemble of {len(found.ensemble.trials)} models, and a search starts "
            f"from one. Name its bundle: --weights {found.final.backbone}={study.member(found.final)}"
        )
    if study.is_live:
        raise StudyError(
            f"Study '{study.name}' is being searched and may get another winner. Wait until its search has ended."
        )
    host.recall(study.require_definition().plugins)
    name = found.final.backbone.removesuffix(RANDOM)
    if found.final.weights == "none":
        raise StudyError(f"Study '{study.name}' was won by '{name}', which has no weights to start from.")
    if name in settings.weights:
        raise StudyError(f"--from and --weights both give weights for '{name}'. Use only one of them.")
    backbones = dict.fromkeys((*settings.backbones, name))
    weights = {**settings.weights, name: study.bundle}
    return settings.model_copy(update={"backbones": tuple(backbones), "weights": weights, "from_study": None})


def require_unseen(dataset: Dataset, weights: Iterable[Path]) -> None:
    """Raises: StudyError if a bundle among the weights was trained on test images of this data set."""
    sealed = set(dataset.shas("test"))
    for path in weights:
        made = bundle.plan_of(path)
        trainings = [training for plan in made.members for training in plan.trainings] if made else []
        if not any(training.stage_lr for training in trainings):
            continue  # that study did not train its stages
        study = folder.of_bundle(path)
        try:
            split = read_split(study.path)
        except DataError:  # a bundle outside a study's folder does not record which images it was trained on
            continue
        if seen := sum(split.get(sha, "test") != "test" for sha in sealed):
            raise StudyError(
                f"{seen} of the {len(sealed)} test images were used to train the network of study '{study.name}' that "
                "this search starts from, so the test accuracy would be too high. Assign the splits yourself, or, if "
                "the images are the same as in that study, use its --seed."
            )
