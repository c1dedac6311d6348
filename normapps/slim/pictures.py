"""The pictures that a pruned model is recalibrated and judged with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..data.feed import Feed
from ..data.labels import class_numbers, model_classes
from ..data.pictures import Pictures
from ..errors import InputError
from ..models.outputs import logits_of
from ..models.preprocessing import Preprocessing
from .prune_options import PruneOptions

_SAMPLE = 16
"""Pictures that the compensation listens to: only what is gated depends on them."""


@dataclass(frozen=True)
class Seen:
    """Pictures, and whether their labels are the model's classes; iterate it for the batches.

    Attributes:
        feed: the pictures, mixed, always in the same order.
        is_classifier: the model returns logits, so that answers can be compared.
        without_accuracy: why the labels tell nothing; empty where they are the model's classes.
        numbers: (C,) class of the model for each of theirs; None where the labels tell nothing.
    """

    feed: Feed
    is_classifier: bool
    without_accuracy: str
    numbers: Tensor | None = None

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        for images, labels in self.feed.part():
            if labels is None or self.numbers is None:
                yield images, None
            else:
                yield images, self.numbers[labels.cpu()].to(labels.device)

    @property
    def sample(self) -> Tensor:
        """Some of the pictures as the network takes them, (N, C, H, W) float32, on the CPU."""
        return next(iter(self))[0][:_SAMPLE].cpu()


def see(
    options: PruneOptions,
    preprocessing: Preprocessing,
    answer: Any,
    device: torch.device,
    progress: Callable[[str, int], object] | None,
    classes: Sequence[str] = (),
) -> Seen | None:
    """Read the pictures that the options name, or return None where they name none.

    Args:
        options: `data`, `limit`, `batch_size` and `seed` count.
        preprocessing: what the pictures go through.
        answer: what the model returned for some input.
        device: where batches are made.
        progress: told of every picture, and how many there are.
        classes: names of the model's classes, where they are known.

    Raises:
        InputError: no picture, or none that can be read.
    """
    if options.data is None:
        return None
    chosen = Pictures(options.data, preprocessing, limit=options.limit)

    def tell(_: int, total: int) -> None:
        if progress is not None:
            progress("decoding", total)

    feed = Feed(chosen, options.batch_size, device, seed=options.seed, progress=tell)
    try:
        outputs = logits_of(answer).shape[1]
    except InputError as error:
        return Seen(feed, False, str(error))
    names, why = model_classes(chosen, outputs, classes)
    return Seen(feed, True, why, None if why else class_numbers(chosen, names))
