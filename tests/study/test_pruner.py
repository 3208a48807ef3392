import optuna
import pytest

from autotl.study.pruner import IMAGES, RUNG, SameImagesPruner


@pytest.mark.parametrize(("direction", "worse"), [("maximize", [2]), ("minimize", [1])])
def test_the_worse_half_is_pruned(direction, worse):
    study = optuna.create_study(direction=direction, pruner=SameImagesPruner())
    pruned = []
    for number, value in enumerate((0.5, 0.6, 0.4)):
        trial = study.ask()
        trial.report(value, RUNG)
        if trial.should_prune():
            pruned.append(number)
    assert pruned == worse


def test_a_trial_competes_only_with_those_on_the_same_images():
    study = optuna.create_study(direction="maximize", pruner=SameImagesPruner())

    def falls_behind(images, value):
        trial = study.ask()
        trial.set_user_attr(IMAGES, images)
        trial.report(value, RUNG)
        pruned = trial.should_prune()
        study.tell(trial, None if pruned else value, state=None if not pruned else optuna.trial.TrialState.PRUNED)
        return pruned

    assert [falls_behind("easy", value) for value in (0.98, 0.99, 0.9)] == [False, False, True]
    assert [falls_behind("hard", value) for value in (0.7, 0.8, 0.6)] == [False, False, True]
