"""The result of a study in words."""

from collections.abc import Iterator

from autotl.report.tables import count
from autotl.search.result import Comparison, Result

POOLING = {"avg": "averaged", "max": "max-pooled", "token": "read off the class token"}


def summary(result: Result) -> Iterator[str]:
    """What won, how good it is, what it gained, in a few lines."""
    plan, test = result.best.plan, result.test
    metrics = result.best.metrics
    yield (
        f"Winner: {plan.backbone}, cut after {plan.cut}, features {POOLING[plan.head.pooling]}, "
        f"by {result.best.strategy} (trial {result.best.trial}); "
        f"{count(metrics['parameters'])} parameters, {count(metrics['flops'])} FLOPs an image."
    )
    yield f"On the rank split its {test.metric} was {result.best.validation:.1%}; that chose it, so it flatters."
    yield (
        f"Test {test.metric} {test.value:.1%}, between {test.low:.1%} and {test.high:.1%} with 95 % confidence "
        f"({test.images:,} sealed images)."
    )
    for name, comparison in result.comparisons.items():
        yield f"Against {name} ({comparison.value:.1%}): {_gain(comparison)}"
    if result.test_opened > 1:
        yield (
            f"The test split was opened {result.test_opened} times in this study: "
            "what was decided in between makes this figure optimistic."
        )


def _gain(comparison: Comparison) -> str:
    points = f"{100 * comparison.difference:+.1f} points of accuracy"
    interval = f"({100 * comparison.low:+.1f} to {100 * comparison.high:+.1f})"
    if comparison.low > 0:
        return f"{points} {interval}."
    if comparison.high < 0:
        return f"{points} {interval}: it is worse."
    return f"{points} {interval}: no difference that these images can show."


def next_steps(result: Result) -> Iterator[str]:
    """What to type next."""
    yield f"autotl predict {result.study} IMAGE_OR_FOLDER"
    yield f"autotl show {result.study}"
    yield f"autotl show {result.study} --plan {result.best.trial} > plan.json   # then: autotl train plan.json DATA"
