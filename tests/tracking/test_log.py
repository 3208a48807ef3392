from autotl.plan import NO_AUGMENTATION, DataRef, Head, Input, Phase, TransferPlan
from autotl.tracking.log import TrialLog

PLAN = TransferPlan(
    backbone="tiny:net",
    weights="none",
    input=Input(size=32, resize=32, interpolation="bilinear", mean=(0.5,) * 3, std=(0.5,) * 3),
    cut="1",
    head=Head(pooling="avg"),
    augmentation=NO_AUGMENTATION,
    data=DataRef(fingerprint="f", split_seed=0),
    seed=0,
    requires={},
    phases=(Phase(method="logistic", frozen="1"),),
)
PARAMS = {"strategy": "linear-probe", "cut": 0.1}
SPACE = {"cut": {"name": "FloatDistribution", "attributes": {"low": 0.0, "high": 1.0, "log": False, "step": None}}}
METRICS = {"val.loss": 0.1, "parameters": 10.0, "flops": 20.0, "seconds": 2.0}


def test_what_is_logged_is_read_again(tmp_path):
    log = TrialLog(tmp_path)
    log.begin(0, "search")
    log.planned(0, PARAMS, PLAN, distributions=SPACE, attrs={"guess": "first 0"})
    log.end(0, "complete", value=0.75, metrics=METRICS, seconds=2.5)
    log.begin(1, "search")
    log.end(1, "failed", reason="it rained")
    first, second = log.records()
    assert (first.state, first.value, first.params, first.plan) == ("complete", 0.75, PARAMS, PLAN)
    assert (first.metrics, first.distributions, first.attrs) == (METRICS, SPACE, {"guess": "first 0"})
    assert (second.number, second.state, second.reason, second.plan) == (1, "failed", "it rained", None)


def test_a_trial_that_was_killed_is_running_until_it_is_run_again(tmp_path):
    log = TrialLog(tmp_path)
    log.begin(3, "search")
    log.planned(3, PARAMS, PLAN)
    with (tmp_path / "trials" / "00003.jsonl").open("a") as file:
        file.write('{"time": 1, "tri')  # killed while writing
    (record,) = log.records()
    assert record.state == "running"
    log.begin(3, "search")
    log.end(3, "complete", value=0.5)
    assert log.read(3).value == 0.5
    assert log.read(3).params == {}  # those of the last attempt


def test_kills_are_counted_by_the_point_where_they_happened(tmp_path):
    log = TrialLog(tmp_path)
    for epoch in (2, 7, 4, 7, None):
        log.begin(3, "search")
        log.planned(3, {"cut": 0.1}, PLAN)
        for number in range(1, (epoch or 0) + 1):
            log.epoch(3, 1, number, {"train.loss": 0.1})
    log.begin(3, "search")
    log.epoch(3, 1, 2, {})
    log.end(3, "interrupted", reason="KeyboardInterrupt")
    record = log.read(3)
    assert (record.kills, record.killed_at) == (2, "after epoch 7 of phase 1")
    assert log.read(4).kills == 0
