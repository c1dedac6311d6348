"""The pictures of a quantization: some give ranges, others judge, and never one both."""

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
class Judging:
    """Pictures that judge and do nothing else.

    Attributes:
        feed: of them.
        numbers: (C,) class of the model for each of theirs; None without labels.
    """

    feed: Feed
    numbers: Tensor | None

    def batches(self, *, with_labels: bool) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield batches (n, C, H, W), with the model's classes (n,) if wished."""
        for images, labels in self.feed.part():
            if not with_labels or labels is None or self.numbers is None:
                yield images, None
            else:
                yield images, self.numbers[labels]


@dataclass(frozen=True)
class Seen:
    """Pictures in one mixed order, of which the first calibrate.

    Attributes:
        feed: all of them, on the CPU; those of `--test` are apart.
        calibrating: how many of the first give ranges; the others judge.
        is_classifier: the model returns logits, so that answers can be compared.
        without_accuracy: why the labels tell nothing; empty where they are the model's classes.
        test: the pictures that judge, where others do.
    """

    feed: Feed
    calibrating: int
    is_classifier: bool
    without_accuracy: str
    test: Judging | None = None

    @property
    def judging(self) -> int:
        """How many pictures judge, but for those that turn out to be unreadable."""
        if self.test is not None:
            return len(self.test.feed)
        return len(self.feed) - self.calibrating

    @property
    def failed(self) -> tuple[str, ...]:
        """A line for each picture that could not be read, so far."""
        others = () if self.test is None else self.test.feed.failed
        return (*self.feed.failed, *others)

    @property
    def decoding(self) -> float:
        """Seconds that were spent decoding so far."""
        return self.feed.decoding + (0.0 if self.test is None else self.test.feed.decoding)

    def describe(self) -> str:
        """Say in a line which pictures do what."""
        place = self.feed.pictures.place
        if self.test is not None:
            judge = f"{self.test.feed.pictures.place}: {self.judging} pictures judge"
            return f"{place}: {self.calibrating} pictures calibrate; {judge}"
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
        if self.test is not None:
            return self.test.batches(with_labels=not self.without_accuracy)
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
        options: `data`, `test`, `data_free`, `calibration`, `limit`, `batch_size` and `seed` count.
        preprocessing: what the pictures go through.
        answer: what the model returned for some input.
        progress: told of every picture, and how many there are.

    Raises:
        InputError: no picture, none that can be read, one where some must calibrate, or a class to
            judge by that no other picture has.
    """
    if options.data is None:
        return None
    feed = _feed(options.data, options, preprocessing, progress)
    test = None
    if options.test is not None:
        test = _test(_feed(options.test, options, preprocessing, progress), feed.pictures)
    most = len(feed) // 2 if test is None else len(feed)
    calibrating = min(options.calibration, most) if options.calibrates else 0
    if options.calibrates and not calibrating:
        raise InputError(
            f"{options.data}: has one picture; give two at least, as one calibrates and another"
            " judges, or --data-free"
        )
    is_classifier, why = _labelled(feed.pictures, answer)
    if test is not None and test.numbers is None and not why:
        why = f"{options.test} has no labels, which class folders or a list would give"
    return Seen(feed, calibrating, is_classifier, why, test)


def _feed(
    place: str,
    options: QuantizeOptions,
    preprocessing: Preprocessing,
    progress: Progress | None,
) -> Feed:
    def tell(_: int, total: int) -> None:
        if progress is not None:
            progress("decoding", total)

    chosen = Pictures(place, preprocessing, limit=options.limit)
    cpu = torch.device("cpu")
    return Feed(chosen, options.batch_size, cpu, seed=options.seed, progress=tell)


def _test(feed: Feed, others: Pictures) -> Judging:
    """Number the classes of pictures that judge as those of the others, by their names."""
    if feed.pictures.labels is None or others.labels is None:
        return Judging(feed, None)
    names = feed.pictures.classes
    if all(each == tuple(map(str, range(len(each)))) for each in (names, others.classes)):
        # the numbers of lists are classes as they stand, however many
        return Judging(feed, torch.arange(len(names)))
    strange = [name for name in names if name not in others.classes]
    if strange:
        raise InputError(
            f"{feed.pictures.place}: {others.place} has no class {strange[0]!r}; give both the"
            " same classes"
        )
    return Judging(feed, torch.tensor([others.classes.index(name) for name in names]))


def _labelled(chosen: Pictures, answer: Any) -> tuple[bool, str]:
    """Whether the answer is logits, and why the labels tell nothing."""
    try:
        outputs = logits_of(answer).shape[1]
    except InputError as error:
        return False, str(error)
    labels = None if chosen.labels is None else torch.tensor(chosen.labels)
    return True, fitting_labels(chosen, labels, outputs)[1]
