"""The one guarded way to torchvision and timm.

timm imports torchvision, and torchvision declares fake kernels for operators of its compiled
library. Beside a CPU-only torch, the torchvision of the package index (built for CUDA) cannot
load that library, and so neither of the two can be imported. Nothing here uses a compiled
operator, so declaring the missing schemas is enough.
"""

from __future__ import annotations

import functools
import importlib.machinery
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.library import Library

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

_SUFFIXES = (*importlib.machinery.EXTENSION_SUFFIXES, ".so", ".dylib", ".pyd", ".dll")


def guard() -> None:
    """Make every later `import torchvision` (and so `import timm`) work, whatever the build.

    Costs nothing until torchvision is imported; calling it again changes nothing.
    """
    if not any(isinstance(finder, _Guard) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Guard())


def operators() -> str:
    """Say where torchvision's compiled operators stand: `compiled`, `declared` or `absent`.

    `declared` means that only their schemas exist (the guard is active), `absent` that there is
    no torchvision.
    """
    if _package() is None:
        return "absent"
    return "declared" if _declare_missing() else "compiled"


class _Guard:
    """Finds nothing itself; sees torchvision being imported and prepares for it.

    No `importlib.abc.MetaPathFinder`, whose import costs a short command ten milliseconds.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> None:
        if fullname == "torchvision" and fullname not in sys.modules:  # else it is a reload
            _forget_failed_import()
            _declare_missing()


def _forget_failed_import() -> None:
    """Drop the submodules that an earlier, failed import left behind without their package."""
    for name in [name for name in sys.modules if name.startswith("torchvision.")]:
        del sys.modules[name]


@functools.cache
def _declare_missing() -> Library | None:
    """Declare the schemas unless the compiled library loads; keeps the declaration alive."""
    import torch

    if any(_loads(path) for path in _libraries()):
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in SCHEMAS:
        library.define(schema)
    return library


def _loads(path: Path) -> bool:
    import torch

    try:
        torch.ops.load_library(str(path))
    except OSError:
        return False
    return True


def _package() -> importlib.machinery.ModuleSpec | None:
    """Where torchvision lies, found without importing it (and without asking the guard)."""
    return importlib.machinery.PathFinder.find_spec("torchvision")


def _libraries() -> list[Path]:
    """The compiled operators: `_C`, since torchvision 0.29 `_C_stable`, with the platform's suffix.

    Whatever its name, it must be tried: where torchvision could load a library that we have
    declared the schemas of, the second registration would end the process.
    """
    package = _package()
    folders = package.submodule_search_locations if package else None
    found = [path for folder in folders or () for path in Path(folder).glob("_C*")]
    return sorted(path for path in found if path.name.endswith(_SUFFIXES))
