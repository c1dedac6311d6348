"""Stylize, adapt, slim, quantize and generate: applications of normalization layers.

`import normapps` loads no torch; the names below are imported when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import InputError, NormappsError, UsageError

if TYPE_CHECKING:
    from .models.folder import load_model as load_model
    from .models.onnx_folder import OnnxModel as OnnxModel
    from .models.program_folder import ProgramModel as ProgramModel
    from .style.stylizer import Stylizer as Stylizer

__version__ = "0.1.0"

_LAZY = {
    "OnnxModel": "models.onnx_folder",
    "ProgramModel": "models.program_folder",
    "Stylizer": "style.stylizer",
    "load_model": "models.folder",
}

__all__ = [
    "InputError",
    "NormappsError",
    "OnnxModel",
    "ProgramModel",
    "Stylizer",
    "UsageError",
    "__version__",
    "load_model",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'normapps' has no attribute '{name}'")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(f".{_LAZY[name]}", __name__), name)
    return value
