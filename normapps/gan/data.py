"""Real pictures for a GAN: read once from whatever holds them, kept as bytes, drawn by number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..data.arrays import Arrays, fitted, read_arrays
from ..data.datasets import find_dataset
from ..data.pictures import spread
from ..data.pool import MAX_BYTES, Pool, check_room
from ..engine.distributed import World
from ..engine.loop import step_seed
from ..errors import InputError
from ..training.sampling import Order
from .squares import PARTS, read_squares

FEWEST = 2
"""Pictures below which there is no distribution to learn."""

SHOWN = 20
"""Damaged pictures that are named one by one."""

RESIDENT_BYTES = 2_000_000_000
"""Pools up to this size lie on the device that trains."""

_SEED = 0x9E37  # apart from the seeds that a trainer takes for its own draws

Say = Callable[[str], object]
"""Told a line."""


def read_pool(
    data: str,
    *,
    size: int,
    channels: int = 0,
    conditional: bool = False,
    split: str = "train",
    limit: int | None = None,
    workers: int | None = None,
    max_bytes: int = MAX_BYTES,
    cache: Path | None = None,
    datasets: Sequence[str] = (),
    say: Say = print,
) -> Pool:
    """Read pictures as squares of one size.

    Picture files of any mode and size become 8-bit sRGB, upright, over white where they are
    transparent; the shorter side is resampled to `size` (Lanczos, antialiased) and the centre is
    cut. Arrays are treated as `data.arrays.fitted` says.

    Args:
        data: a folder, `.zip` or `.tar` (if its folders are `train`, `test` or the like, the one
            of `split`), text list, folder of IDX files, `.npz`, or the name of a data set.
        size: side of the squares in pixels.
        channels: 1 grey, 3 RGB, 0 as the data has it: grey where every picture is.
        conditional: keep the classes, and refuse data without them.
        split: a key of `PARTS`; data without parts is `train`.
        limit: the most pictures, evenly spread over the classes.
        workers: threads that decode; None one a core up to 8, 0 none.
        max_bytes: the most memory.
        cache: a safetensors file that keeps the decoded pictures; read instead of them as long as
            they and these options stay the same, written otherwise. None keeps nothing.
        datasets: folders where data sets of a name may lie, besides the usual ones.
        say: told what was done, and each damaged picture.

    Returns:
        The pictures, (M, C, size, size); labels and classes only where `conditional`. `notes` says
        what was done to them.

    Raises:
        InputError: nothing readable, one picture, no classes or a class without a picture where
            `conditional`, a part that is not there, or more memory than `max_bytes`.
    """
    if split not in PARTS:
        raise InputError(f"--split {split}: must be one of {', '.join(PARTS)}")
    place = find_dataset(data, datasets)
    arrays = read_arrays(place, split)
    if arrays is not None:
        pool = _of_arrays(data, arrays, size, channels, limit, max_bytes)
    else:
        pool = read_squares(place, size, channels, split, limit, workers, max_bytes, cache)
    _check(data, pool, conditional)
    _tell(pool, say)
    if conditional:
        return pool
    return Pool(pool.images, None, (), pool.failed, pool.notes)


class Draws:
    """Batches of real pictures, each a pure function of the seed, its number and the process.

    The pictures come in one random order after the other, without a gap; bytes become numbers by
    x/128 − 1 + U(0, 1/128), so that the network meets no steps (Miyato et al. 2018, the authors'
    code).

    Args:
        pool: the pictures.
        batch_size: pictures a batch and process.
        seed: of order, mirroring and noise.
        here: this process among all.
        device: where the batches are made.
        flip: mirror every other picture, at random.
    """

    def __init__(
        self,
        pool: Pool,
        batch_size: int,
        seed: int,
        here: World | None = None,
        device: torch.device | None = None,
        flip: bool = False,
    ) -> None:
        self.pool, self.batch_size, self.seed, self.flip = pool, batch_size, seed, flip
        self._here, self._device = here or World(), device or torch.device("cpu")
        self._order = Order(len(pool), batch_size, step_seed(seed, 0, _SEED))
        self._generator = torch.Generator(self._device)
        self._images = pool.images
        if self._device.type != "cpu" and pool.images.nbytes <= RESIDENT_BYTES:
            self._images = pool.images.to(self._device)

    def batch(self, index: int) -> tuple[Tensor, Tensor | None]:
        """Return the batch of a number, always the same.

        Args:
            index: from 0, without gaps, so that every picture comes equally often.

        Returns:
            (n, C, H, W) float32 in [−1, 1], channels last where C > 1; and (n,) int64 labels, None
            where the pool has none.
        """
        rows = self._order.rows(index, self._here)
        images = self._images[rows.to(self._images.device)].to(self._device)
        labels = None if self.pool.labels is None else self.pool.labels[rows].to(self._device)
        self._generator.manual_seed(step_seed(self.seed, index, _SEED + 1 + self._here.rank))
        turned = torch.rand(len(images), generator=self._generator, device=self._device) < 0.5
        if self.flip:
            images = torch.where(turned[:, None, None, None], images.flip(3), images)
        return self._noisy(images), labels

    def _noisy(self, images: Tensor) -> Tensor:
        layout = torch.channels_last if images.shape[1] > 1 else torch.contiguous_format
        found = images.to(torch.float32, memory_format=layout)
        noise = torch.empty_like(found).uniform_(generator=self._generator)
        return found.add_(noise).mul_(1 / 128).sub_(1)


def _of_arrays(
    data: str, arrays: Arrays, size: int, channels: int, limit: int | None, max_bytes: int
) -> Pool:
    images, labels = arrays.images, arrays.labels
    if limit is not None and limit < len(images):
        chosen = spread([0] * len(images) if labels is None else labels.tolist(), limit)
        images, labels = images[chosen], None if labels is None else labels[chosen]
    wanted = channels or images.shape[3]
    check_room(data, (len(images), wanted, size, size), max_bytes)
    made, note = fitted(images, size, wanted)
    found = None if labels is None else torch.from_numpy(labels)
    return Pool(torch.from_numpy(made), found, arrays.classes, (), [note] if note else [])


def _check(data: str, pool: Pool, conditional: bool) -> None:
    if len(pool) < FEWEST:
        raise InputError(
            f"{data}: holds {len(pool)} readable picture; there must be at least {FEWEST}, and"
            " training wants thousands"
        )
    if not conditional:
        return
    if pool.labels is None:
        raise InputError(
            f"{data}: has no classes; --cond and `gan classifier` need a folder a class, or a list "
            "with labels"
        )
    counts = torch.bincount(pool.labels, minlength=len(pool.classes))
    if int(counts.min()) == 0:
        name = pool.classes[int(counts.argmin())]
        raise InputError(
            f"{data}: the class {name!r} has no readable picture; give it some, or remove it"
        )
    if len(pool.classes) < 2:
        raise InputError(f"{data}: has one class; --cond needs two, train without it")


def _tell(pool: Pool, say: Say) -> None:
    for line in pool.failed[:SHOWN]:
        say(f"left out: {line}")
    if len(pool.failed) > SHOWN:
        say(f"left out: {len(pool.failed) - SHOWN} more")
    count, channels, size = pool.images.shape[:3]
    kind = {1: "grey", 3: "RGB"}[channels]
    say("; ".join((f"{count} pictures of {size}×{size} {kind}", *pool.notes)))
