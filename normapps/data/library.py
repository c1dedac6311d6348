"""albumentations, imported where it is used and without its question to the network."""

from __future__ import annotations

import importlib
import os
from types import ModuleType


def albumentations_module(name: str) -> ModuleType:
    """Import a module of functions of albumentations.

    The package looks on the network for a newer version of itself whenever it is imported, unless
    NO_ALBUMENTATIONS_UPDATE is 1; so that is set first, whatever it was.

    Args:
        name: below `albumentations.augmentations`, such as `blur.functional`.
    """
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    import albumentations

    return importlib.import_module(f"{albumentations.__name__}.augmentations.{name}")
