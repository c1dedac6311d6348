"""The pictures of a quantization: some give ranges, others judge, and never one both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.feed import Feed
from ..data.labels import class_numbers, model_classes
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
        numbers: (C,) class of the model for each of the feed's; None where the labels tell nothing.
    """

    feed: Feed
    calibrating: int
    is_classifier: bool
    without_accuracy: str
    test: Judging | None = None
    numbers: Tensor | None = None

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
            judge = f"{self.test.feed.pictures.place}: {_pictures(self.judging, 'judge')}"
            return f"{place}: {_pictures(self.calibrating, 'calibrate')}; {judge}"
        if not self.calibrating:
            return f"{place}: {_pictures(self.judging, 'judge')}"
        others = "1 other judges" if self.judging == 1 else f"{self.judging} others judge"
        return f"{place}: {_pictures(self.calibrating, 'calibrate')}, {others}"

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
                if labels is None or self.numbers is None:
                    yield images[chosen], None
                else:
                    yield images[chosen], self.numbers[labels[chosen]]
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
    classes: Sequence[str] = (),
) -> Seen | None:
    """Read the pictures that the options name, or return None where they name none.

    Args:
        options: `data`, `test`, `data_free`, `calibration`, `limit`, `batch_size` and `seed` count.
        preprocessing: what the pictures go through.
        answer: what the model returned for some input.
        progress: told of every picture, and how many there are.
        classes: names of the model's classes, where they are known.

    Raises:
        InputError: no picture, none that can be read, one where some must calibrate, one that is
            to calibrate and to judge, or a class to judge by that no other picture has.
    """
    if options.data is None:
        return None
    feed = _feed(options.data, options, preprocessing, progress)
    is_classifier, names, why = _names(feed.pictures, answer, classes)
    numbers = None if not names else class_numbers(feed.pictures, names)
    test = None
    if options.test is not None:
        apart = _feed(options.test, options, preprocessing, progress)
        _check_apart(feed.pictures, apart.pictures)
        has_numbers = bool(names) and apart.pictures.labels is not None
        place = feed.pictures.place
        test = Judging(apart, class_numbers(apart.pictures, names, place) if has_numbers else None)
    most = len(feed) // 2 if test is None else len(feed)
    calibrating = min(options.calibration, most) if options.calibrates else 0
    if options.calibrates and not calibrating:
        raise InputError(
            f"{options.data}: has one picture; give two at least, as one calibrates and another"
            " judges, or --data-free"
        )
    if test is not None and test.numbers is None and not why:
        why = f"{options.test} has no labels, which class folders or a list would give"
    return Seen(feed, calibrating, is_classifier, why, test, numbers)


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


def _pictures(count: int, what: str) -> str:
    """`1 picture judges`, `2 pictures judge`."""
    return f"1 picture {what}s" if count == 1 else f"{count} pictures {what}"


def _check_apart(data: Pictures, test: Pictures) -> None:
    """No picture may calibrate and judge."""
    known = {data.where(i) for i in range(len(data))}
    both = [i for i in range(len(test)) if test.where(i) in known]
    if both:
        raise InputError(
            f"--test {test.place}: {len(both)} of {len(test)} pictures are in --data {data.place},"
            f" too, such as {test.name(both[0])}; none may calibrate and judge: give others, or"
            " --data alone, which is split"
        )


def _names(
    chosen: Pictures, answer: Any, classes: Sequence[str]
) -> tuple[bool, tuple[str, ...], str]:
    """Whether the answer is logits, the classes by number, and why the labels tell nothing."""
    try:
        outputs = logits_of(answer).shape[1]
    except InputError as error:
        return False, (), str(error)
    return True, *model_classes(chosen, outputs, classes)
