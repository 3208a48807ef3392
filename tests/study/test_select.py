from autotl.engine.scale import Scale
from autotl.study.select import front, order, starting_cuts
from autotl.tracking.probe import ProbeRow


def test_equal_values_are_ordered_by_the_shown_log_loss_and_then_by_cost():
    def place(value, loss, flops):
        return order(value, {"val.loss": loss, "flops": flops}, Scale())

    assert place(0.9, 0.5, 9) < place(0.8, 0.1, 1)
    assert place(0.9, 0.101, 9) < place(0.9, 0.103, 1)
    assert place(0.9, 0.1001, 1) < place(0.9, 0.0999, 9)


def test_the_smaller_value_is_first_where_smaller_is_better():
    metrics = {"val.loss": 0.5, "flops": 9.0}
    smaller = Scale(greater_is_better=False)
    assert order(0.2, metrics, smaller) < order(0.3, metrics, smaller)
    assert order(0.3, metrics, Scale()) < order(0.2, metrics, Scale())
    assert order(0.2, metrics, smaller) < order(0.2, {**metrics, "flops": 10.0}, smaller)


def test_the_front_is_what_nothing_cheaper_is_as_good_as():
    values = {0: (0.9, 5.0), 1: (0.9, 4.0), 2: (0.8, 4.5), 3: (0.7, 1.0)}
    for scale, numbers in ((Scale(), {1, 3}), (Scale(greater_is_better=False), {3})):
        assert front({number: (scale.order(value), cost) for number, (value, cost) in values.items()}) == numbers


def test_a_probe_starts_at_the_last_cut_that_few_images_cannot_tell_from_the_best():
    def rows(images):
        cuts = [("1", "avg", 0.5), ("2", "avg", 0.8), ("3", "max", 0.7), ("3", "avg", 0.75), ("4", "avg", 0.61)]
        own = [ProbeRow("a", cut, pooling, accuracy, images) for cut, pooling, accuracy in cuts]
        return [*own, ProbeRow("b", "1", "avg", 0.79, images)]

    def starts(images):
        return [(row.backbone, row.cut, row.accuracy) for row in starting_cuts(rows(images))]

    assert starts(16) == [("a", "3", 0.75), ("b", "1", 0.79)]  # one standard error is 0.1: the better pooling
    assert starts(4) == [("a", "4", 0.61), ("b", "1", 0.79)]  # 0.2
    assert starts(100) == [("a", "2", 0.8), ("b", "1", 0.79)]  # 0.04
    assert starts(10_000) == [("a", "2", 0.8), ("b", "1", 0.79)]
    assert starts(0) == starts(10_000)  # of an earlier version
