"""Picture files of every kind as squares of one size, for a GAN."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image
from torch import Tensor

from ..data.archive import archive_members, is_archive
from ..data.arrays import square
from ..data.picture import Picture
from ..data.pictures import SPLITS, Pictures
from ..data.pool import Pool
from ..errors import InputError
from .pool_cache import load_pool, save_pool

PARTS = {
    "train": ("train", "training"),
    "test": ("test", "testing", "val", "valid", "validation"),
}
"""Names of the folders that hold a part of a set."""


def read_squares(
    place: Path,
    size: int,
    channels: int,
    split: str,
    limit: int | None,
    workers: int | None,
    max_bytes: int,
    cache: Path | None,
) -> Pool:
    """Read the pictures of a folder, archive or list; arguments as `read_pool`.

    Raises:
        InputError: as `read_pool`, but neither of too few pictures nor of classes.
    """
    pictures = _Squares(place, size, channels or 3, limit, _part(place, split))
    key = _fingerprint(pictures, channels) if cache else ""
    pool = load_pool(cache, key) if cache else None
    if pool is None:
        pool = _decoded(pictures, channels, workers, max_bytes)
        if cache:
            save_pool(pool, cache, key)
    return pool


class _Squares(Pictures):
    """Pictures as squares over white, and what had to be done to them."""

    def __init__(
        self, place: Path, size: int, channels: int, limit: int | None, within: str
    ) -> None:
        super().__init__(place, square(size, channels), limit=limit, within=within)
        self._within = within
        self._seen: dict[int, tuple[tuple[int, int], bool]] = {}

    def cut(self, index: int) -> Tensor:
        """Decode one picture: (C, size, size) uint8."""
        picture = self.picture(index)
        cut = self.preprocessing.cut(_over_white(picture))
        is_clear = picture.alpha is not None and bool((picture.alpha < 255).any())
        self._seen[index] = (picture.size, is_clear)
        return cut

    def notes(self) -> list[str]:
        """What was done to those that were cut, a phrase each."""
        size = self.preprocessing.size[0]
        sizes = [sides for sides, _ in self._seen.values()]
        oblong = sum(width != height for width, height in sizes)
        small = sum(min(sides) < size for sides in sizes)
        clear = sum(is_clear for _, is_clear in self._seen.values())
        several = f" from {len(set(sizes))} sizes" if len(set(sizes)) > 1 else ""
        found = [f"of its folder {self._within}"] if self._within else []
        if any(sides != (size, size) for sides in sizes):
            found.append(f"resampled to {size}×{size}{several}")
        if oblong:
            found.append(f"the centre is cut of {oblong} that are not square")
        if small:
            found.append(f"{small} smaller than {size} px are enlarged")
        if clear:
            found.append(f"{clear} with transparency lie over white")
        return found


def _over_white(picture: Picture) -> np.ndarray:
    if picture.alpha is None:
        return picture.pixels
    alpha = Image.fromarray(picture.alpha)
    white = Image.new("RGB", picture.size, (255, 255, 255))
    return np.asarray(Image.composite(Image.fromarray(picture.pixels), white, alpha))


def _part(place: Path, split: str) -> str:
    """The folder within a place that holds a part; empty where its folders are no parts."""
    names = (
        [PurePosixPath(each.name) for each in archive_members(place)] if is_archive(place) else []
    )
    above, folders = PurePosixPath(), _folders(place, names, PurePosixPath())
    while len(folders) == 1 and folders[0].lower() not in SPLITS:
        above = above / folders[0]
        folders = _folders(place, names, above)
    if {name.lower() for name in folders} <= SPLITS:
        for name in folders:
            if name.lower() in PARTS[split]:
                return str(above / name)
    if split != "train" and place.exists():
        raise InputError(f"{place}: has no folder {split!r}; name the pictures of that part")
    return ""


def _folders(place: Path, names: Sequence[PurePosixPath], above: PurePosixPath) -> list[str]:
    """The folders right below one of the place; `names` are the pictures of an archive."""
    if place.is_dir():
        inside = (place / above).iterdir()
        return sorted(path.name for path in inside if path.is_dir() and path.name[0] != ".")
    below = (name.relative_to(above).parts for name in names if name.is_relative_to(above))
    return sorted({parts[0] for parts in below if len(parts) > 1})


def _decoded(pictures: _Squares, channels: int, workers: int | None, max_bytes: int) -> Pool:
    found = Pool.read(pictures, max_bytes=max_bytes, workers=workers)
    images, notes = found.images, pictures.notes()
    if not channels and _is_grey(images):
        images = images[:, :1].contiguous()
        notes.append("every picture is grey: 1 channel")
    return Pool(images, found.labels, found.classes, found.failed, notes)


def _is_grey(images: Tensor) -> bool:
    return all(bool((part == part[:, :1]).all()) for part in images.split(1024))


def _fingerprint(pictures: _Squares, channels: int) -> str:
    """What changes when the files or the way they are read do."""
    told = hashlib.sha256(
        json.dumps([pictures.preprocessing.size, channels, pictures.classes]).encode()
    )
    times: dict[str, tuple[int, int]] = {}
    for index in range(len(pictures)):
        file, offset = pictures.where(index)
        if file not in times:
            found = os.stat(file) if os.path.exists(file) else None
            times[file] = (found.st_size, found.st_mtime_ns) if found else (-1, 0)
        label = pictures.labels[index] if pictures.labels else -1
        told.update(json.dumps([pictures.name(index), offset, *times[file], label]).encode())
    return told.hexdigest()
