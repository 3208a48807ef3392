"""The options that a phase gives its method."""

from typing import Any

from autotl.errors import PlanError, unknown
from autotl.plan import Phase
from autotl.registry import Entry


def options_of(phase: Phase, entry: Entry) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The names of the method's options, and the values that the phase sets, with the method's defaults.

    Raises: PlanError for an option that the method does not have; PluginError if the method does not say which it has.
    """
    with entry.owner.answers_for(f"Method '{entry.name}'"):
        defaults = dict(getattr(entry.item, "defaults", {}))
        known = (*entry.item.options, *defaults)
    for name in phase.options:
        if name not in known:
            raise PlanError(unknown(f"option of {entry.name}", name, known))
    return known, {**defaults, **phase.options}
