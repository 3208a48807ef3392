import pytest

from autotl.plan import Head, Input, Phase, TransferPlan
from autotl.report import words
from autotl.tracking import result as results

PLAN = TransferPlan.model_construct(
    backbone="tiny:net",
    cut="2.1",
    head=Head(pooling="avg"),
    input=Input(size=32, resize=32, interpolation="bilinear", mean=(0.5,) * 3, std=(0.5,) * 3),
    phases=(Phase.linear_probe("2.1"),),
)


def result(plans, validation, test, **metrics):
    return results.Result.model_construct(
        plans=plans,
        best=results.Best.model_construct(
            trial=1,
            strategy="linear-probe",
            plan=PLAN,
            validation=validation,
            metrics={"parameters": 1e6, "flops": 1e6, **metrics},
            runs=(results.Run(seed=0, value=validation),),
        ),
        test=results.Test(metric="accuracy", value=test, low=0.0, high=1.0, images=50),
        comparisons={},
        left_out=(),
        test_opened=1,
    )


@pytest.mark.parametrize(
    ("found", "cautions"),
    [
        (result(plans=5, validation=0.98, test=0.95), True),
        (result(plans=5, validation=0.98, test=0.98), True),
        (result(plans=5, validation=0.98, test=1.0), False),
        (result(plans=1, validation=0.98, test=0.95), False),
        (result(plans=1, validation=0.98, test=0.95, **{"phase1.rank.loss_at_choice": 0.1}), True),
    ],
    ids=["chosen", "as good in the test", "better in the test", "nothing to choose", "its penalty chosen"],
)
def test_a_number_that_chose_the_winner_comes_with_a_caution_unless_the_test_came_out_higher(found, cautions):
    (line,) = [line for line in words.summary(found) if line.startswith("On the rank split its accuracy was 98.0%.")]
    assert ("expect less on new images" in line) is cautions
