"""Pairs of a label map and a picture: read once into memory, and given out as batches."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...data.images import read_image
from ...data.pool import MAX_BYTES
from ...data.sources import PictureSource
from ...engine.distributed import World
from ...engine.loop import step_seed
from ...errors import InputError
from ...training.sampling import Order
from .legend import Legend, LegendMaker, MapContent, read_map
from .matching import Pair, match

LEAST_PAIRS = 2
_AT_ONCE = 64
"""Pairs that are decoded before the next are begun, so that little waits outside the pool."""

Progress = Callable[[int, int], object] | None


@dataclass(frozen=True, eq=False)
class PairPool:
    """Maps and pictures in memory.

    Attributes:
        maps: (M, S, S) uint8 class indices of `legend`, `NO_CLASS` for none.
        pictures: (M, 3, S, S) uint8 sRGB.
        names: of the pairs.
        legend: which class is which id or colour.
        failed: a line for each map, picture or pair that was left out.
        cropped: how many were no squares, and were cut to the square in their middle.
    """

    maps: Tensor
    pictures: Tensor
    names: tuple[str, ...]
    legend: Legend
    failed: tuple[str, ...] = ()
    cropped: int = 0

    def __len__(self) -> int:
        return len(self.maps)

    def identity(self) -> str:
        """Return a digest of names, maps and pictures: what tells these pairs from others."""
        digest = hashlib.sha256("\n".join(self.names).encode())
        for tensor in (self.maps, self.pictures):
            digest.update(tensor.numpy().data)
        return digest.hexdigest()

    def split(self, hold_out: int) -> tuple[PairPool, PairPool]:
        """Return the pairs to train on, and every `hold_out`-th that is kept out (0: none)."""
        held = [i for i in range(len(self)) if hold_out and i % hold_out == hold_out - 1]
        return self._part(sorted(set(range(len(self))) - set(held))), self._part(held)

    def _part(self, rows: list[int]) -> PairPool:
        names = tuple(self.names[row] for row in rows)
        return PairPool(self.maps[rows], self.pictures[rows], names, self.legend)


def read_pairs(
    maps: str,
    pictures: str,
    *,
    size: int,
    ignored: Sequence[str] = (),
    limit: int | None = None,
    workers: int | None = None,
    max_bytes: int = MAX_BYTES,
    progress: Progress = None,
) -> PairPool:
    """Decode every pair once: the square in its middle, pictures by Lanczos, maps by the nearest.

    A map without a picture, a picture without a map, a file that cannot be read, and a map and a
    picture of two sizes are left out; `PairPool.failed` has a line for each.

    Args:
        maps: a folder, tar or zip of label maps, see `legend`.
        pictures: the same of pictures; a picture is called as its map but for the suffix.
        size: side of the squares, pixels.
        ignored: see `LegendMaker`.
        limit: at most so many pairs, the first by name.
        workers: threads that decode; None four.
        max_bytes: the most memory that the pairs may take.
        progress: called with the pairs done and their number in all.

    Raises:
        InputError: a place that cannot be used, fewer than `LEAST_PAIRS` pairs, too much memory,
            or maps of fewer than two classes.
    """
    sources = PictureSource([maps]), PictureSource([pictures])
    pairs, alone = match(*([each.name(i) for i in range(len(each))] for each in sources))
    pairs = pairs[:limit]
    _check_room(len(pairs), size, max_bytes)
    maker = LegendMaker(ignored)
    kept, failed = _decoded(_Decoder(*sources, size), maker, pairs, workers, progress)
    _check_count(len(kept), f"{maps} and {pictures}", (*failed, *alone))
    return _pool(kept, maker.legend(maps), (*alone, *failed))


def square(pixels: np.ndarray, size: int) -> np.ndarray:
    """Cut the square in the middle of (H, W, 3) uint8 and scale it by Lanczos's filter."""
    top, left, side = _middle(pixels)
    box = (left, top, left + side, top + side)
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(image.resize((size, size), Image.Resampling.LANCZOS, box=box))


def nearest_square(places: np.ndarray, size: int) -> np.ndarray:
    """Cut the square in the middle of (H, W) and take the nearest position of each of size²."""
    top, left, side = _middle(places)
    steps = ((np.arange(size) + 0.5) * side / size).astype(int)
    return np.ascontiguousarray(places[top + steps][:, left + steps])


def _middle(values: np.ndarray) -> tuple[int, int, int]:
    high, wide = values.shape[:2]
    side = min(high, wide)
    return (high - side) // 2, (wide - side) // 2, side


def to_network(pictures: Tensor) -> Tensor:
    """Turn uint8 pictures into floats in [−1, 1]."""
    return pictures.float() / 127.5 - 1


class PairDraws:
    """The batches of a run: a function of seed, step and process.

    Args:
        pool: the pairs.
        batch_size: of a process.
        seed: of order and mirroring.
        here: this process among all.
        device: where the batches are made.
        flip: probability of mirroring a pair.
    """

    def __init__(
        self,
        pool: PairPool,
        batch_size: int,
        seed: int,
        here: World,
        device: torch.device,
        flip: float = 0.0,
    ) -> None:
        self.pool, self.seed, self.here, self.flip, self.device = pool, seed, here, flip, device
        self._order = Order(len(pool), batch_size, step_seed(seed, 0, 1))

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return maps (n, S, S) int64 class indices, and pictures (n, 3, S, S) in [−1, 1]."""
        rows = self._order.rows(step, self.here)
        maps, pictures = self.pool.maps[rows].long(), to_network(self.pool.pictures[rows])
        generator = torch.Generator().manual_seed(step_seed(self.seed, step, self.here.rank))
        is_flipped = torch.rand(len(rows), generator=generator) < self.flip
        maps = torch.where(is_flipped[:, None, None], maps.flip(-1), maps)
        pictures = torch.where(is_flipped[:, None, None, None], pictures.flip(-1), pictures)
        return maps.to(self.device), pictures.to(self.device)


@dataclass(frozen=True, eq=False)
class _Read:
    """One decoded pair; the places of `content` are (S, S)."""

    name: str
    file: str  # the map's, for errors
    content: MapContent
    picture: np.ndarray  # (S, S, 3)
    is_cropped: bool


class _Decoder:
    def __init__(self, maps: PictureSource, pictures: PictureSource, size: int) -> None:
        self.maps, self.pictures, self.size = maps, pictures, size

    def __call__(self, pair: Pair) -> _Read | InputError:
        try:
            file = self.maps.file(pair.label_map)
            content = read_map(file, file.name).content(file.name)
            picture = read_image(self.pictures.file(pair.picture), flag="").pixels
            _check_sizes(file.name, content.places, picture)
        except InputError as error:
            return error
        small = replace(content, places=nearest_square(content.places, self.size))
        is_cropped = picture.shape[0] != picture.shape[1]
        return _Read(pair.name, file.name, small, square(picture, self.size), is_cropped)


def _decoded(
    decode: _Decoder,
    maker: LegendMaker,
    pairs: Sequence[Pair],
    workers: int | None,
    progress: Progress,
) -> tuple[list[_Read], list[str]]:
    """Decode pairs and learn the legend in their order, whichever is ready first."""
    kept: list[_Read] = []
    failed: list[str] = []
    with ThreadPoolExecutor(4 if workers is None else max(1, workers)) as threads:
        for first in range(0, len(pairs), _AT_ONCE):
            for found in threads.map(decode, pairs[first : first + _AT_ONCE]):
                try:
                    kept.append(_learned(found, maker))
                except InputError as error:
                    failed.append(str(error))
            if progress is not None:
                progress(min(first + _AT_ONCE, len(pairs)), len(pairs))
    return kept, failed


def _learned(found: _Read | InputError, maker: LegendMaker) -> _Read:
    if isinstance(found, InputError):
        raise found
    maker.add(found.content, found.file)
    return found


def _pool(kept: Sequence[_Read], legend: Legend, failed: Sequence[str]) -> PairPool:
    maps = [legend.indices(read.content, read.file) for read in kept]
    pictures = np.stack([read.picture for read in kept]).transpose(0, 3, 1, 2)
    tensors = torch.from_numpy(np.stack(maps)), torch.from_numpy(np.ascontiguousarray(pictures))
    names = tuple(read.name for read in kept)
    return PairPool(*tensors, names, legend, tuple(failed), sum(read.is_cropped for read in kept))


def _check_sizes(name: str, label_map: np.ndarray, picture: np.ndarray) -> None:
    if label_map.shape != picture.shape[:2]:
        (high, wide), (tall, broad) = label_map.shape, picture.shape[:2]
        raise InputError(
            f"{name}: is {wide}×{high} and its picture {broad}×{tall}; scale the map to the "
            "picture's size by nearest neighbour"
        )


def _check_count(count: int, places: str, reasons: Sequence[str]) -> None:
    if count < LEAST_PAIRS:
        first = f"; the first: {reasons[0]}" if reasons else ""
        raise InputError(
            f"{places}: {count} usable pairs of a map and a picture of one name; "
            f"training needs {LEAST_PAIRS}{first}"
        )


def _check_room(count: int, size: int, max_bytes: int) -> None:
    needed = 4 * count * size**2
    if needed > max_bytes:
        raise InputError(
            f"{count} pairs of {size}×{size} need {needed / 1e9:.3g} GB of memory, the most is "
            f"{max_bytes / 1e9:.3g}; --limit {max_bytes // (4 * size**2)} or a smaller --size"
        )
