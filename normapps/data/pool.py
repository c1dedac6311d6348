"""Pictures decoded once and held in memory as bytes, for training and repeated evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import Tensor

from ..errors import InputError
from .pictures import Pictures, decoded

MAX_BYTES = 4_000_000_000
"""Most memory that `Pool.read` takes unless told otherwise."""


class Pool:
    """Pictures as a network takes them but for the normalization, in memory.

    Args:
        images: (M, C, H, W) uint8.
        labels: (M,) int64 class indices, or None.
        classes: names of the classes by index; empty without labels.
        failed: a line for each picture that could not be read and was left out.
        notes: what was done to the pictures and a user should know, a phrase each.

    Attributes:
        images, labels, classes, failed, notes: as given.

    Raises:
        InputError: another shape or dtype, or labels of another number than images.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        classes: Sequence[str] = (),
        failed: Sequence[str] = (),
        notes: Sequence[str] = (),
    ) -> None:
        if images.ndim != 4 or images.dtype != torch.uint8:
            raise InputError(
                f"images are {tuple(images.shape)} {images.dtype}; they must be (M, C, H, W) uint8"
            )
        if labels is not None and (labels.shape != images.shape[:1] or labels.dtype != torch.int64):
            raise InputError(
                f"labels are {tuple(labels.shape)} {labels.dtype}; "
                f"they must be ({len(images)},) int64, one an image"
            )
        self.images, self.labels = images, labels
        self.classes, self.failed, self.notes = tuple(classes), tuple(failed), tuple(notes)

    @classmethod
    def read(
        cls,
        pictures: Pictures,
        *,
        max_bytes: int = MAX_BYTES,
        workers: int | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> Self:
        """Decode every picture of a set once; those that cannot be read are left out.

        Args:
            pictures: the set; its labels come along.
            max_bytes: the most memory that the images may take.
            workers: threads that decode; None one a core up to 8, 0 none.
            progress: called with the pictures done and their number in all.

        Raises:
            InputError: the pictures need more than `max_bytes`, or not one can be read.
        """
        count, chosen = len(pictures), pictures.preprocessing
        shape = (count, chosen.channels, *chosen.size)
        check_room(pictures.place, shape, max_bytes)
        images = torch.empty(shape, dtype=torch.uint8)
        kept: list[int] = []
        failed: list[str] = []
        for done, (index, item) in enumerate(decoded(pictures, range(count), workers), 1):
            if isinstance(item, InputError):
                failed.append(str(item))
            else:
                images[len(kept)] = item
                kept.append(index)
            if progress is not None:
                progress(done, count)
        if not kept:
            raise InputError(
                f"{pictures.place}: not one of {count} pictures can be read; the first: {failed[0]}"
            )
        labels = pictures.labels
        found = None if labels is None else torch.tensor([labels[index] for index in kept])
        return cls(images[: len(kept)], found, pictures.classes, failed)

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor | None]:
        """Return some of the pictures, in the order asked for.

        Args:
            indices: (n,) positions, repeated ones too.

        Returns:
            (n, C, H, W) uint8 copies and (n,) int64 labels, None where there are none.
        """
        chosen = torch.as_tensor(indices, dtype=torch.int64, device=self.images.device)
        return self.images[chosen], None if self.labels is None else self.labels[chosen]


def check_room(place: str, shape: tuple[int, ...], max_bytes: int) -> None:
    """Refuse pictures that need more memory than they may.

    Args:
        place: where they come from, for the error.
        shape: their number, channels, height and width; a byte each.
        max_bytes: the most.

    Raises:
        InputError: they need more; the line says how many would fit.
    """
    count, channels, height, width = shape
    needed = count * channels * height * width
    if needed > max_bytes:
        most = max_bytes // (channels * height * width)
        raise InputError(
            f"{place}: {count} pictures of {height}×{width} need {needed / 1e9:.3g} GB of memory, "
            f"the most is {max_bytes / 1e9:.3g}; --limit {max(1, most)} or a smaller --size"
        )
