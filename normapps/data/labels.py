"""Whether the labels of pictures are a model's classes."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from .pictures import Pictures
from .sources import LISTS


def fitting_labels(
    pictures: Pictures, labels: Tensor | None, outputs: int
) -> tuple[Tensor | None, str]:
    """Return the labels if they are the model's classes, else why they are not.

    Class folders are numbered in sorted order, so they fit a model of as many outputs; the
    numbers that a list gives are classes as they stand, and fit where the model has them all.
    """
    if labels is None:
        return None, f"{pictures.place} has no labels, which class folders or a list would give"
    count = len(pictures.classes)
    by_number = pictures.classes == tuple(map(str, range(count)))
    is_list = Path(pictures.place).suffix.lower() in LISTS
    if count == outputs or (is_list and by_number and count < outputs):
        return labels, ""
    return None, f"data has {count} classes, the model {outputs} outputs"
