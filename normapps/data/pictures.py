"""A set of pictures as a network takes them: folder, archive, list or one file; labels.

Decoding runs in threads ahead of the network (Pillow lets go of the interpreter), so there is no
second process to start and nothing to copy between processes.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import PurePath
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import InputError, NormappsError
from .classes import in_order
from .picture import Picture
from .sources import PictureSource

if TYPE_CHECKING:
    from ..models.preprocessing import Preprocessing

SPLITS = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})
"""Names of folders that are parts of a data set, not classes."""

Batch = tuple[Tensor, Tensor | None]
"""(n, C, H, W) floats and (n,) int64 labels, None where there are none."""

Transform = Callable[[np.ndarray, int], np.ndarray]
"""Changes a picture as cut, (H, W, C) uint8, given its index; the shape stays."""

Decoded = tuple[int, Tensor | InputError]
"""A picture's index and its cut, (C, H, W) uint8, or why it has none."""


class Pictures(Dataset[tuple[Tensor, int]]):
    """The pictures of one place, through a network's preprocessing.

    Labels are those of a list's second column (whole numbers as they stand, other words numbered
    by the alphabet); in a folder or archive, the names of the folders that the pictures lie in,
    where all lie equally deep and these are several and no `SPLITS`; otherwise there are none.

    Args:
        place: a folder of any depth, an uncompressed tar, a ZIP, a text list (see
            `PictureSource`), or a picture.
        preprocessing: what turns a picture into a network's input.
        limit: the most pictures to take: evenly spread over the set ordered by class, so that
            every class of at least len ÷ limit pictures is represented as it is in the set. The
            same call takes the same ones.
        transform: what is done to a picture when it is cut, such as a `Corruption` or an
            `Appearance`.
        within: take just the pictures below this folder of the place, such as `train`.

    Attributes:
        labels: class index of every picture, or None.
        classes: names of the classes by index; empty without labels.

    Raises:
        InputError: the place is missing or holds no picture, a list labels only some of its
            lines, or the network takes no pictures.
    """

    def __init__(
        self,
        place: str | os.PathLike[str],
        preprocessing: Preprocessing,
        *,
        limit: int | None = None,
        transform: Transform | None = None,
        within: str = "",
    ) -> None:
        if limit is not None and limit < 1:
            raise InputError(f"--limit {limit}: must be at least 1")
        if preprocessing.channels not in (1, 3):
            raise InputError(
                f"{place}: pictures have 3 channels or 1, the network takes "
                f"{preprocessing.channels}"
            )
        self.place = os.fspath(place)
        self.preprocessing, self.transform = preprocessing, transform
        self._source = PictureSource([self.place], within=within)
        everything = range(len(self._source))
        labels, self.classes = _labels(self._source, self.place)
        self._chosen = spread(labels or [0] * len(everything), limit)
        self.labels = tuple(labels[i] for i in self._chosen) if labels else None

    def __len__(self) -> int:
        return len(self._chosen)

    def name(self, index: int) -> str:
        """Return the picture's name, as its folder, archive or list knows it."""
        return self._source.name(self._chosen[index])

    def where(self, index: int) -> tuple[str, int]:
        """Return what is the same for the same picture: its resolved file, and its offset in it."""
        return self._source.where(self._chosen[index])

    def picture(self, index: int) -> Picture:
        """Decode one picture as its file has it, its alpha aside.

        Raises:
            InputError: the picture is missing or damaged; the line names it.
        """
        return self._source.picture(self._chosen[index])

    def cut(self, index: int) -> Tensor:
        """Decode, resize, crop and transform one picture: (C, H, W) uint8, to be normalized.

        Raises:
            InputError: the picture is missing or damaged; the line names it.
            NormappsError: the transform returned another shape or dtype.
        """
        cut = self.preprocessing.cut(self.picture(index).pixels)
        return cut if self.transform is None else _transformed(cut, self.transform, index)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return one picture, (C, H, W) float32, and its class, -1 without labels.

        Raises:
            InputError: the picture is missing or damaged; the line names it.
        """
        label = self.labels[index] if self.labels else -1
        return self.preprocessing.normalize(self.cut(index)), label


class Batches:
    """What `batches` returns: iterate it as often as needed; `failed` tells of the last time.

    Raises:
        InputError: on iterating, at the end, if not one picture could be read.
    """

    def __init__(
        self,
        dataset: Pictures,
        batch_size: int,
        workers: int | None,
        device: torch.device,
        dtype: torch.dtype,
        order: Sequence[int],
    ) -> None:
        self.dataset, self.batch_size, self.workers = dataset, batch_size, workers
        self.device, self.dtype, self._order = device, dtype, order
        self._failed: list[str] = []

    @property
    def failed(self) -> tuple[str, ...]:
        """A line for each picture that could not be read, so far."""
        return tuple(self._failed)

    def __len__(self) -> int:
        """The number of batches, those with damaged pictures only included."""
        return math.ceil(len(self._order) / self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        self._failed.clear()
        group: list[Decoded] = []
        ahead = decoded(self.dataset, self._order, self.workers, 2 * self.batch_size)
        for position, item in enumerate(ahead, 1):
            group.append(item)
            if len(group) == self.batch_size or position == len(self._order):
                batch = self._collate(group)
                group = []
                if batch is not None:
                    yield batch
        if len(self._failed) == len(self._order):
            raise InputError(
                f"{self.dataset.place}: not one of {len(self._failed)} pictures can be read; "
                f"the first: {self._failed[0]}"
            )

    def _collate(self, group: Sequence[Decoded]) -> Batch | None:
        self._failed.extend(str(item) for _, item in group if isinstance(item, InputError))
        good = [(index, item) for index, item in group if isinstance(item, Tensor)]
        if not good:
            return None
        cuts = torch.stack([item for _, item in good]).to(self.device)
        images = self.dataset.preprocessing.normalize(cuts).to(self.dtype)
        if self.dataset.labels is None:
            return images, None
        labels = torch.tensor([self.dataset.labels[index] for index, _ in good])
        return images, labels.to(self.device)


def decoded(
    dataset: Pictures, order: Sequence[int], workers: int | None = None, window: int = 64
) -> Iterator[Decoded]:
    """Cut pictures in the order given, threads working ahead.

    Args:
        dataset: the pictures.
        order: their indices.
        workers: threads; None one a core up to 8, 0 none.
        window: the most pictures that are ahead.

    Yields:
        Each index with its cut, or with the error where the picture cannot be read.
    """

    def decode(index: int) -> Decoded:
        try:
            return index, dataset.cut(index)
        except InputError as error:
            return index, error

    threads = min(8, _cores()) if workers is None else workers
    if not threads:
        yield from map(decode, order)
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="pictures")
    try:
        yield from _ahead(pool, decode, order, window)
    finally:
        pool.shutdown(cancel_futures=True)


def batches(
    dataset: Pictures,
    batch_size: int,
    workers: int | None = None,
    device: torch.device | str = "cpu",
    *,
    dtype: torch.dtype = torch.float32,
    seed: int | None = None,
    shard: tuple[int, int] = (1, 1),
) -> Batches:
    """Batches of a set, decoded ahead by threads; `len` of it is their number.

    A picture that cannot be read is left out of its batch and named in `failed`.

    Args:
        dataset: the pictures.
        batch_size: pictures a batch; the last may have fewer.
        workers: threads that decode; None one a core up to 8, 0 none.
        device: where the batches lie.
        dtype: of the images; they are normalized in float32.
        seed: None takes the set's order, in which the classes of a folder follow each other; a
            number mixes it, always the same way: what batch statistics need.
        shard: (i, n) takes the i-th, (i + n)-th, … of all batches, i from 1 to n, so that n
            shards together are exactly the batches of the whole set.

    Raises:
        InputError: a batch size below 1, or a shard without a batch.
    """
    order = batch_order(len(dataset), batch_size, seed, shard)
    return Batches(dataset, batch_size, workers, torch.device(device), dtype, order)


def batch_order(
    count: int, batch_size: int, seed: int | None = None, shard: tuple[int, int] = (1, 1)
) -> list[int]:
    """Return positions in the order in which `batches` takes them; arguments as there.

    Raises:
        InputError: a batch size below 1, or fewer batches than shards.
    """
    if batch_size < 1:
        raise InputError(f"--batch-size {batch_size}: must be at least 1")
    order = list(range(count))
    if seed is not None:
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    number, shards = shard
    starts = range((number - 1) * batch_size, count, shards * batch_size)
    full = math.ceil(count / batch_size)
    if not 1 <= number <= shards or full < shards:  # every shard says so, not only the empty one
        raise InputError(
            f"--shard {number}/{shards}: needs {shards} batches, and {count} pictures fill {full}"
            f" of {batch_size}; give fewer shards, or a smaller --batch-size"
        )
    return [index for start in starts for index in order[start : start + batch_size]]


def _transformed(cut: Tensor, transform: Transform, index: int) -> Tensor:
    pixels = np.ascontiguousarray(cut.numpy().transpose(1, 2, 0))
    found = transform(pixels, index)
    if found.shape != pixels.shape or found.dtype != np.uint8:
        raise NormappsError(  # no InputError: those leave one picture out and go on
            f"{type(transform).__name__}: returned {found.shape} {found.dtype} of a picture "
            f"{pixels.shape} uint8; it must keep both"
        )
    return torch.from_numpy(np.ascontiguousarray(found.transpose(2, 0, 1)))


def _ahead(
    pool: ThreadPoolExecutor,
    work: Callable[[int], Decoded],
    items: Sequence[int],
    window: int,
) -> Iterator[Decoded]:
    """Like `map`, with up to `window` items in work or waiting."""
    waiting: deque[Future[Decoded]] = deque()
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) >= window:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _labels(source: PictureSource, place: str) -> tuple[list[int] | None, tuple[str, ...]]:
    """Class index of every picture and the names of the classes; None and () without."""
    words = [source.label(i) for i in range(len(source))]
    if any(words):
        if not all(words):
            first = source.name(words.index(""))
            raise InputError(f"{place}: {first} has no label, others have; label all or none")
        if all(word.isdecimal() for word in words):
            numbers = [int(word) for word in words]
            return numbers, tuple(str(number) for number in range(max(numbers) + 1))
        return _numbered(words)
    parents = [PurePath(source.name(i)).parts[:-1] for i in range(len(source))]
    words = [parts[-1] if parts else "" for parts in parents]
    is_even = len({len(parts) for parts in parents}) == 1
    if not is_even or len(set(words)) < 2 or {word.lower() for word in words} <= SPLITS:
        return None, ()
    return _numbered(words)


def _numbered(words: Sequence[str]) -> tuple[list[int], tuple[str, ...]]:
    classes = in_order(words)
    numbers = {word: number for number, word in enumerate(classes)}
    return [numbers[word] for word in words], classes


def spread(labels: Sequence[int], limit: int | None) -> list[int]:
    """Return positions of `limit` pictures, evenly spread over them ordered by class, sorted."""
    count = len(labels)
    if limit is None or limit >= count:
        return list(range(count))
    by_class = sorted(range(count), key=labels.__getitem__)
    return sorted(by_class[(2 * i + 1) * count // (2 * limit)] for i in range(limit))
