"""Avoids the import of torch's compiler, which takes as long as that of torch itself, where nothing is compiled."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

COMPILER, UTILS = "torch._dynamo", "torch._dynamo.utils"


@contextmanager
def unused() -> Iterator[None]:
    """In this context nothing is compiled, so parts of torch and torchvision that ask for the compiler do not get it.

    They are `import torchvision`, which `import timm` includes, operators on the device `meta`, and dispatch modes such
    as torch's counter of floating-point operations. What asks for anything else gets it from the real modules.
    """
    if COMPILER in sys.modules:
        yield
        return
    enabled: list[Callable[..., Any]] = []

    def disable(function: Callable[..., Any], *_: Any, **__: Any) -> Callable[..., Any]:
        enabled.append(function)
        return function

    stand_ins = [
        _StandIn(COMPILER, disable=disable),
        _StandIn(UTILS, is_compile_supported=_is_compile_supported),
    ]
    for each in stand_ins:
        sys.modules.setdefault(each.__name__, each)
    try:
        yield
    finally:
        _remove()
        for function in enabled:
            # Where torch keeps what `disable` returned; outside this context it must ask again.
            vars(function).pop("__dynamo_disable", None)


class _StandIn(ModuleType):
    """Takes the place of a module; an attribute that it does not have is that of the real module."""

    def __init__(self, name: str, **attributes: Any) -> None:
        super().__init__(name)
        vars(self).update(attributes)

    def __getattr__(self, name: str) -> Any:
        # `inspect` asks every module for its file; a package needs its path for its submodules.
        if name.startswith("__") and (self.__name__, name) != (COMPILER, "__path__"):
            raise AttributeError(name)
        return getattr(_real(self.__name__), name)


def _is_compile_supported(device_type: str) -> Any:
    """torchvision keeps this function, and calls it when it computes regions of interest."""
    return _real(UTILS).is_compile_supported(device_type)


def _real(name: str) -> ModuleType:
    _remove()
    return import_module(name)


def _remove() -> None:
    for name in (COMPILER, UTILS):
        if isinstance(sys.modules.get(name), _StandIn):
            del sys.modules[name]
