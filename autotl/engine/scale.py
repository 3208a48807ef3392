"""The scale of a metric: which of its values are better, and how they are written."""

from autotl.plan import Record


class Scale(Record):
    """What the values of a metric mean. A study records it, so that it can be shown without the metric's plugin."""

    greater_is_better: bool = True
    percent: bool = True
    """Whether values are shares, which are shown in percent."""

    def order(self, value: float) -> float:
        """A sort key: the best value has the smallest. Every comparison of values of a metric uses it."""
        return -value if self.greater_is_better else value

    def text(self, value: float) -> str:
        return f"{value:.1%}" if self.percent else f"{value:#.4g}"

    def interval(self, low: float | None, high: float | None) -> str:
        """The 95 % confidence interval of a value in words; None: there is none."""
        if low is None or high is None:
            return "without a confidence interval"
        return f"95 % confidence interval {self.text(low)} to {self.text(high)}"
