"""Domain adaptation: statistics, test-time methods, domain-specific training, universal networks.

Every name is imported when it is first used; importing the package loads no torch.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .adabn import adabn as adabn
    from .adabn import adabn_ as adabn_
    from .adaptation import Adaptation as Adaptation
    from .ema import ema as ema
    from .ema import ema_ as ema_
    from .methods import create_method as create_method
    from .methods import list_methods as list_methods
    from .online.base import Online as Online
    from .online.guard import Guard as Guard
    from .prior import prior as prior
    from .prior import prior_ as prior_

_LAZY = {
    "Adaptation": "adaptation",
    "Guard": "online.guard",
    "Online": "online.base",
    "adabn": "adabn",
    "adabn_": "adabn",
    "create_method": "methods",
    "ema": "ema",
    "ema_": "ema",
    "list_methods": "methods",
    "prior": "prior",
    "prior_": "prior",
}
"""Name → the module here that has it."""

__all__ = [
    "Adaptation",
    "Guard",
    "Online",
    "adabn",
    "adabn_",
    "create_method",
    "ema",
    "ema_",
    "list_methods",
    "prior",
    "prior_",
]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in _LAZY:
        raise AttributeError(f"module 'normapps.adapt' has no attribute '{name}'")
    value = globals()[name] = getattr(import_module(f".{_LAZY[name]}", __name__), name)
    return value


class _Package(ModuleType):
    """Keeps `adabn`, the function, from being hidden by the module `adabn` once that is loaded.

    Where a package imports its names at once, the functions are set last; here Python sets the
    module after the function.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if name not in _LAZY or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
