"""Pictures for several passes: decoded once where they fit in memory, with the time it took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .pictures import Batch, Pictures, batch_order, batches
from .pool import Pool

MAX_BYTES = 2_000_000_000
"""Sets that need more memory than this are decoded anew in every pass."""


class Feed:
    """Batches of a set of pictures in one mixed order, as often as needed.

    Args:
        pictures: the set.
        batch_size: pictures a batch.
        device, dtype: of the images.
        seed: of the order; the classes of a folder follow each other, and a batch should see many.
        max_bytes: sets that need more memory than this are decoded anew in every pass.
        progress: told, while pictures are decoded into memory, how many are, and of how many.

    Attributes:
        decoding: seconds that were spent decoding, or waiting for it, so far.

    Raises:
        InputError: not one picture can be read.
    """

    def __init__(
        self,
        pictures: Pictures,
        batch_size: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        *,
        seed: int = 0,
        max_bytes: int = MAX_BYTES,
        progress: Callable[[int, int], object] | None = None,
    ) -> None:
        self.pictures, self.batch_size, self.seed = pictures, batch_size, seed
        self.device, self.dtype = device, dtype
        self.decoding = 0.0
        self._failed: dict[str, None] = {}
        self._pool: Pool | None = None
        wanted = pictures.preprocessing
        if len(pictures) * wanted.channels * wanted.size[0] * wanted.size[1] <= max_bytes:
            start = time.perf_counter()
            self._pool = Pool.read(pictures, max_bytes=max_bytes, progress=progress)
            self.decoding = time.perf_counter() - start
            self._failed = dict.fromkeys(self._pool.failed)

    def __len__(self) -> int:
        """Pictures, those that could not be read left out as far as that is known."""
        return len(self.pictures) - len(self._failed)

    @property
    def remembered(self) -> int:
        """Pictures that were decoded into memory, those that failed counted."""
        return 0 if self._pool is None else len(self.pictures)

    @property
    def failed(self) -> tuple[str, ...]:
        """A line for each picture that could not be read, so far."""
        return tuple(self._failed)

    def part(self, number: int = 1, of: int = 1, batch_size: int | None = None) -> Part:
        """Return every `of`-th batch, from the `number`-th on, 1 being the first."""
        return Part(self, (number, of), batch_size or self.batch_size)

    def read(self, part: Part) -> Iterator[Batch]:
        """Yield the batches of a part."""
        source = self._decoded(part) if self._pool is None else self._remembered(self._pool, part)
        while True:
            start = time.perf_counter()
            batch = next(source, None)
            if self._pool is None:
                self.decoding += time.perf_counter() - start
            if batch is None:
                return
            yield batch

    def _decoded(self, part: Part) -> Iterator[Batch]:
        loader = batches(
            self.pictures,
            part.batch_size,
            device=self.device,
            dtype=self.dtype,
            seed=self.seed,
            shard=part.shard,
        )
        yield from loader
        self._failed.update(dict.fromkeys(loader.failed))

    def _remembered(self, pool: Pool, part: Part) -> Iterator[Batch]:
        order = batch_order(len(pool), part.batch_size, self.seed, part.shard)
        for start in range(0, len(order), part.batch_size):
            images, labels = pool.batch(order[start : start + part.batch_size])
            normalized = self.pictures.preprocessing.normalize(images.to(self.device))
            yield normalized.to(self.dtype), labels


@dataclass(frozen=True)
class Part:
    """Some batches of a feed; iterate it as often as needed."""

    feed: Feed
    shard: tuple[int, int]
    batch_size: int

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        return self.feed.read(self)
