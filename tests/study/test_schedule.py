import pytest

from autotl.builtin import logistic
from autotl.plan import Phase, Stop, Training, TransferPlan
from autotl.study.schedule import SHORTEST, longest, shortened


def sgd(epochs, **changes):
    training = Training(epochs=epochs, batch_size=1, head_lr=0.1, **changes)
    return Phase(method="gradient-descent", frozen=None, training=training)


def plan(*phases):
    return TransferPlan.model_construct(phases=phases)


def epochs(plan):
    return [training.epochs for training in plan.trainings]


def test_a_shorter_schedule_has_its_share_of_each_phase_and_one_epoch_at_least():
    whole = plan(logistic.probe("2.1"), sgd(20, stop=Stop(patience=10)), sgd(2), sgd(8, stop=Stop(at_epoch=6)))
    assert shortened(whole, 1.0).phases == whole.phases
    short = shortened(whole, 0.25)
    assert epochs(short) == [5, 1, 2]
    assert short.phases[0] == whole.phases[0]
    assert short.phases[1].training.stop == Stop(patience=10)
    assert short.phases[3].training.stop == Stop(at_epoch=2)


@pytest.mark.parametrize(
    ("most", "least", "found"),
    [(100, SHORTEST, 20), (20, SHORTEST, 20), (7, SHORTEST, 7), (4, SHORTEST, 4), (3, SHORTEST, None), (1, 0.0, 1)],
)
def test_the_longest_schedule_that_fits_is_found(most, least, found):
    chosen = longest(plan(sgd(20)), lambda plan: sum(epochs(plan)) <= most, least)
    assert (chosen and epochs(chosen)[0]) == found


def test_a_plan_without_epochs_fits_unchanged_or_not_at_all():
    probe = plan(logistic.probe("2.1"))
    assert longest(probe, lambda plan: True, SHORTEST).phases == probe.phases
    assert longest(probe, lambda plan: False, SHORTEST) is None
