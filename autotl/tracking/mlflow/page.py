"""The first view of a study in MLflow: the table of its runs, best first."""

import json

from autotl.engine.scale import Scale

SHARED = "viewStateShareKey=autotl"
"""The URL parameter that selects the view in `tags`, if no other parameter sets the view."""


def tags(metric: str, scale: Scale) -> dict[str, str]:
    """The tags of an experiment that configure its pages for a study that selects by `metric`."""
    best = f"metrics.`val/{metric}`"
    widths = {
        best: 105,
        f"metrics.`test/{metric}`": 105,
        "metrics.`val/loss`": 75,
        "metrics.`flops`": 85,
        "params.`backbone`": 150,
        "params.`cut`": 130,
        "params.`strategy`": 110,
    }
    view = {
        "selectedColumns": list(widths),
        "columnOrder": list(widths),
        "columnWidths": widths,
        "orderByKey": best,
        "orderByAsc": not scale.greater_is_better,
    }
    return {
        "mlflow.experimentKind": "custom_model_development",  # pages on training, not on language models
        "mlflow.experiment.primaryMetric.name": f"val/{metric}",
        "mlflow.sharedViewState.autotl": json.dumps(view),
    }
