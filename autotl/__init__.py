"""The public names of autotl for users and plugin authors.

Heavy modules are imported only when a name from them is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autotl.api import Model as Model
    from autotl.api import Study as Study
    from autotl.api import advise as advise
    from autotl.api import load as load
    from autotl.api import search as search
    from autotl.backbones.weights import load_weights as load_weights
    from autotl.backbones.weights import read_state as read_state
    from autotl.contracts import Adapted as Adapted
    from autotl.contracts import Adapter as Adapter
    from autotl.contracts import Augmentation as Augmentation
    from autotl.contracts import BackboneInfo as BackboneInfo
    from autotl.contracts import Batch as Batch
    from autotl.contracts import BatchTransform as BatchTransform
    from autotl.contracts import Context as Context
    from autotl.contracts import DataFacts as DataFacts
    from autotl.contracts import Draw as Draw
    from autotl.contracts import Family as Family
    from autotl.contracts import FittedHead as FittedHead
    from autotl.contracts import GradientMethod as GradientMethod
    from autotl.contracts import HeadMethod as HeadMethod
    from autotl.contracts import Loss as Loss
    from autotl.contracts import Method as Method
    from autotl.contracts import Metric as Metric
    from autotl.contracts import Mixed as Mixed
    from autotl.contracts import ModelCard as ModelCard
    from autotl.contracts import Objective as Objective
    from autotl.contracts import Optimization as Optimization
    from autotl.contracts import Optimizer as Optimizer
    from autotl.contracts import ProvidedWeights as ProvidedWeights
    from autotl.contracts import StageInfo as StageInfo
    from autotl.contracts import Strategy as Strategy
    from autotl.contracts import Weight as Weight
    from autotl.contracts import WeightsProvider as WeightsProvider
    from autotl.contracts import WeightsSource as WeightsSource
    from autotl.engine.heads import LinearHead as LinearHead
    from autotl.engine.heads import Scaling as Scaling
    from autotl.engine.heads import logistic_path as logistic_path
    from autotl.engine.heads import standardised as standardised
    from autotl.engine.heads import weights_of as weights_of
    from autotl.engine.intervals import design_effect as design_effect
    from autotl.engine.intervals import share_interval as share_interval
    from autotl.engine.intervals import wilson as wilson
    from autotl.errors import PlanError as PlanError
    from autotl.hookspecs import hookimpl as hookimpl
    from autotl.host import Host as Host
    from autotl.plan import PENALTIES as PENALTIES
    from autotl.plan import Component as Component
    from autotl.plan import Head as Head
    from autotl.plan import Input as Input
    from autotl.plan import Phase as Phase
    from autotl.plan import Stop as Stop
    from autotl.plan import Teacher as Teacher
    from autotl.plan import Training as Training
    from autotl.plan import TransferPlan as TransferPlan

_HOME = {
    "Host": "autotl.host",
    "PlanError": "autotl.errors",
    "hookimpl": "autotl.hookspecs",
    **dict.fromkeys(("load_weights", "read_state"), "autotl.backbones.weights"),
    **dict.fromkeys(("LinearHead", "Scaling", "logistic_path", "standardised", "weights_of"), "autotl.engine.heads"),
    **dict.fromkeys(("design_effect", "share_interval", "wilson"), "autotl.engine.intervals"),
    **dict.fromkeys(("Model", "Study", "advise", "load", "search"), "autotl.api"),
    **dict.fromkeys(
        ("PENALTIES", "Component", "Head", "Input", "Phase", "Stop", "Teacher", "Training", "TransferPlan"),
        "autotl.plan",
    ),
    **dict.fromkeys(
        (
            "Adapted",
            "Adapter",
            "Augmentation",
            "BackboneInfo",
            "Batch",
            "BatchTransform",
            "Context",
            "DataFacts",
            "Draw",
            "Family",
            "FittedHead",
            "GradientMethod",
            "HeadMethod",
            "Loss",
            "Method",
            "Metric",
            "Mixed",
            "ModelCard",
            "Objective",
            "Optimization",
            "Optimizer",
            "ProvidedWeights",
            "StageInfo",
            "Strategy",
            "Weight",
            "WeightsProvider",
            "WeightsSource",
        ),
        "autotl.contracts",
    ),
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("autotl")
    if name not in _HOME:
        raise AttributeError(f"module 'autotl' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
