"""Options of `normapps export`. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass

from .models.options import PictureOptions
from .options import option

DYNAMIC = "dynamic"
"""Value of `--batch` that leaves its size open."""


@dataclass(frozen=True)
class ExportOptions(PictureOptions):
    """How a model becomes a file for another runtime.

    Raises:
        InputError: a value out of range; the line names the flag.
    """

    batch: str = option(
        DYNAMIC, "dynamic, or the number of pictures in a batch", pattern=r"dynamic|[1-9][0-9]*"
    )
    fold: bool = option(True, "fold batch norms into the layers beside them")
    opset: int | None = option(None, "version of ONNX's operators", low=18)
    overwrite: bool = option(False, "replace an existing file")
