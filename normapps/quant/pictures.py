"""The pictures of a quantization: some give ranges, the others judge, and never one both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.feed import Feed
from ..data.labels import fitting_labels
from ..data.pictures import Pictures
from ..errors import InputError
from ..models.outputs import logits_of
from ..models.preprocessing import Preprocessing
from .options import QuantizeOptions

Progress = Callable[[str, int], object]
"""Called with what was done, and how many there are of it in all."""


@dataclass(frozen=True)
class Seen:
    """Pictures in one mixed order, of which the first calibrate.

    Attributes:
        feed: all of them, on the CPU.
        calibrating: how many of the first give ranges; the others judge.
        is_classifier: the model returns logits, so that answers can be compared.
        without_accuracy: why the labels tell nothing; empty where they are the model's classes.
    """

    feed: Feed
    calibrating: int
    is_classifier: bool
    without_accuracy: str

    @property
    def judging(self) -> int:
        """How many pictures judge, but for those that turn out to be unreadable."""
        return len(self.feed) - self.calibrating

    def describe(self) -> str:
        """Say in a line which pictures do what."""
        place = self.feed.pictures.place
        if not self.calibrating:
            return f"{place}: {self.judging} pictures judge"
        return f"{place}: {self.calibrating} pictures calibrate, {self.judging} others judge"

    def calibration(self) -> Iterator[Tensor]:
        """Yield batches (n, C, H, W) float32 of the pictures that calibrate."""
        for images, _ in self.calibration_with_labels():
            yield images

    def calibration_with_labels(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield the same with their labels, where these tell something."""
        return self._cut(0, self.calibrating)

    def judged(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield batches of the other pictures, with their labels where these tell something."""
        return self._cut(self.calibrating, None)

    def _cut(self, start: int, end: int | None) -> Iterator[tuple[Tensor, Tensor | None]]:
        position = 0
        for images, labels in self.feed.part():
            first, last = start - position, len(images) if end is None else end - position
            chosen = slice(max(0, first), max(0, min(len(images), last)))
            position += len(images)
            if chosen.start < chosen.stop:
                known = None if self.without_accuracy or labels is None else labels[chosen]
                yield images[chosen], known
            if end is not None and position >= end:
                return


@dataclass(frozen=True)
class Repeated:
    """What a function yields, as often as it is iterated."""

    make: Callable[[], Iterator[Any]]

    def __iter__(self) -> Iterator[Any]:
        return self.make()


def as_arrays(batches: Iterator[Tensor]) -> Iterator[np.ndarray]:
    """Yield batches as onnxruntime takes them."""
    for images in batches:
        yield np.ascontiguousarray(images.numpy())


def see(
    options: QuantizeOptions,
    preprocessing: Preprocessing,
    answer: Any,
    progress: Progress | None,
) -> Seen | None:
    """Read the pictures that the options name, or return None where they name none.

    Args:
        options: `data`, `data_free`, `calibration`, `limit`, `batch_size` and `seed` count.
        preprocessing: what the pictures go through.
        answer: what the model returned for some input.
        progress: told of every picture, and how many there are.

    Raises:
        InputError: no picture, none that can be read, or one where some must calibrate.
    """
    if options.data is None:
        return None
    chosen = Pictures(options.data, preprocessing, limit=options.limit)

    def tell(_: int, total: int) -> None:
        if progress is not None:
            progress("decoding", total)

    cpu = torch.device("cpu")
    feed = Feed(chosen, options.batch_size, cpu, seed=options.seed, progress=tell)
    calibrating = min(options.calibration, len(feed) // 2) if options.calibrates else 0
    if options.calibrates and not calibrating:
        raise InputError(
            f"{options.data}: has one picture; give two at least, as one calibrates and another"
            " judges, or --data-free"
        )
    is_classifier, why = _labelled(chosen, answer)
    return Seen(feed, calibrating, is_classifier, why)


def _labelled(chosen: Pictures, answer: Any) -> tuple[bool, str]:
    """Whether the answer is logits, and why the labels tell nothing."""
    try:
        outputs = logits_of(answer).shape[1]
    except InputError as error:
        return False, str(error)
    labels = None if chosen.labels is None else torch.tensor(chosen.labels)
    return True, fitting_labels(chosen, labels, outputs)[1]
