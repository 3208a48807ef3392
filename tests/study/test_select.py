from autotl.study.select import order


def test_equal_values_are_ordered_by_the_shown_log_loss_and_then_by_cost():
    def place(value, loss, flops):
        return order(value, {"val.loss": loss, "flops": flops})

    assert place(0.9, 0.5, 9) < place(0.8, 0.1, 1)
    assert place(0.9, 0.101, 9) < place(0.9, 0.103, 1)
    assert place(0.9, 0.1001, 1) < place(0.9, 0.0999, 9)
