"""A plan as flat names and values, for tables without nesting."""

from typing import Any

from autotl.plan import Phase, TransferPlan


def flat(plan: TransferPlan) -> dict[str, Any]:
    """A plan as parameters with readable names."""
    found = {
        "backbone": plan.backbone,
        "weights": plan.weights,
        "cut": plan.cut,
        "frozen": plan.phases[-1].frozen or "none",
        "pooling": plan.head.pooling,
        "head": plan.head.title,
        "taps": " ".join(plan.head.taps) or "none",
        "input_size": plan.input.size,
        "input_mode": plan.input.mode,
        "augmentation": plan.augmentation.name,
        "compute_dtype": plan.compute_dtype,
        "memory_format": plan.memory_format,
        "seed": plan.seed,
    }
    found |= {f"augmentation.{name}": value for name, value in plan.augmentation.params.items()}
    for number, phase in enumerate(plan.phases, 1):
        found |= {f"phase{number}.{name}": value for name, value in _of_phase(phase).items()}
    return found


def _of_phase(phase: Phase) -> dict[str, Any]:
    found: dict[str, Any] = {"method": phase.method, "frozen": phase.frozen or "none", **phase.options}
    if phase.training:
        for name, value in phase.training.model_dump(exclude={"stage_lr", "stage_adapters", "stop"}).items():
            if name == "teacher":
                found |= {f"teacher.{key}": value[key] for key in ("backbone", "share", "temperature")} if value else {}
            elif isinstance(value, dict):  # a component
                found |= {name: value["name"], **{f"{name}.{key}": each for key, each in value["params"].items()}}
            elif value is not None:
                found[name] = value
        found |= {f"adapter.{stage}": each.name for stage, each in phase.training.stage_adapters.items()}
        found |= {f"lr.{stage}": lr for stage, lr in phase.training.stage_lr.items()}
        if stop := phase.training.stop:
            found |= {f"stop.{name}": value for name, value in stop.model_dump(exclude_none=True).items()}
    return found
