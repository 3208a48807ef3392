"""A study as pandas tables."""

import pandas as pd

from autotl.report.tables import frozen
from autotl.study import select
from autotl.tracking.folder import StudyFolder
from autotl.tracking.probe import read_probe


def leaderboard(folder: StudyFolder) -> pd.DataFrame:
    """The different plans trained on the current images, best first; indexed by trial."""
    definition = folder.definition
    assert definition is not None
    rows = []
    for record in select.leaderboard(folder.log.records(), definition.scale, definition.fingerprint):
        plan = select.plan_of(record)
        judged = {name.removeprefix("val."): value for name, value in record.metrics.items() if name.startswith("val.")}
        judged.pop("seconds", None)
        rows.append(
            {
                "trial": record.number,
                "strategy": record.params["strategy"],
                "backbone": plan.backbone,
                "cut": plan.cut,
                "frozen": frozen(plan),
                "pooling": plan.head.pooling,
                "head": plan.head.title,
                "augmentation": plan.augmentation.name,
                "input": plan.input.size,
                "mode": plan.input.mode,
                definition.metric: record.value,
                **judged,
                "parameters": int(record.metrics["parameters"]),
                "flops": int(record.metrics["flops"]),
                **{name: value for name, value in record.metrics.items() if name == "latency_ms"},
                "seconds": record.seconds,
            }
        )
    columns = None if rows else ["trial", "strategy", definition.metric, "flops"]
    return pd.DataFrame(rows, columns=columns).set_index("trial")


def probe(folder: StudyFolder) -> pd.DataFrame:
    """The probe: one row for each cut of each backbone with each pooling, from first cut to last."""
    return pd.DataFrame([vars(row) for row in read_probe(folder)], columns=["backbone", "cut", "pooling", "accuracy"])
