"""Pictures that come as one array, IDX or NumPy's `.npz`, brought to a network's size."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib.npyio import NpzFile

from ..errors import InputError
from ..models.preprocessing import Preprocessing
from .datasets import class_names
from .idx import find_idx, read_idx

IMAGE_KEYS = {
    "train": ("x_train", "train_images", "images_train"),
    "test": ("x_test", "test_images", "images_test"),
}
"""Names under which `.npz` files keep the pictures of a part."""

LABEL_KEYS = {
    "train": ("y_train", "train_labels", "labels_train"),
    "test": ("y_test", "test_labels", "labels_test"),
}
"""Names under which `.npz` files keep the classes of a part."""

WHOLE_KEYS = (("images", "x", "data", "arr_0"), ("labels", "y", "targets", "arr_1"))
"""Names in files without parts: of the pictures, of the classes."""

MOST_PADDING = 4
"""Pixels by which a side may be short for the border to be filled, not the picture enlarged."""


@dataclass(frozen=True)
class Arrays:
    """Pictures of one size as a file has them.

    Attributes:
        images: (N, H, W, C) uint8, C 1 or 3.
        labels: (N,) int64, or None.
        classes: names by number; empty without labels.
    """

    images: np.ndarray
    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()


def read_arrays(place: Path, split: str) -> Arrays | None:
    """Read the pictures of one part of an IDX folder, an IDX file or an `.npz`.

    Returns:
        None where the place is none of these.

    Raises:
        InputError: a damaged file, one without this part, other values than whole numbers from 0
            to 255, or labels of another number than pictures.
    """
    files = find_idx(place, split)
    if files is not None:
        images, labels = files
        return _arrays(images, read_idx(images), None if labels is None else read_idx(labels))
    if place.suffix.lower() == ".npz" and place.is_file():
        return _arrays(place, *_read_npz(place, split))
    return None


def fitted(images: np.ndarray, size: int, channels: int) -> tuple[np.ndarray, str]:
    """Bring pictures to a square of one size, and to grey or RGB.

    A side that is up to `MOST_PADDING` pixels short gets a black border, so that no pixel of the
    data changes (28 → 32 as usual for MNIST); other sizes are resampled by Lanczos's filter,
    antialiased, the shorter side to `size`, and the centre is cut.

    Args:
        images: (N, H, W, C) uint8, C 1 or 3.
        size: of the result.
        channels: of the result, 1 or 3; grey is ITU-R 601 luma.

    Returns:
        (N, channels, size, size) uint8, and what was done to the size in words, or nothing.
    """
    height, width, has = images.shape[1:]
    short = size - height
    if height == width and 0 <= short <= MOST_PADDING and has <= channels:
        before = short // 2
        across = (before, short - before)
        found = np.pad(images, ((0, 0), across, across, (0, 0)))
        found = np.repeat(found, channels // has, axis=3).transpose(0, 3, 1, 2)
        note = f"{height} px pictures get a black border of {short / 2:g} px" if short else ""
        return np.ascontiguousarray(found), note
    cut = square(size, channels)
    whole = np.stack([cut.cut(_rgb(image)).numpy() for image in images])
    return whole, "" if height == width == size else f"{height}×{width} pictures are resampled"


def square(size: int, channels: int) -> Preprocessing:
    """Return what cuts the centre square of a picture and resamples it, by Lanczos's filter."""
    middle = (0.5,) * channels
    return Preprocessing(
        (size, size),
        (size, size),
        interpolation="lanczos",
        mean=middle,
        std=middle,
        channels=channels,
        origin="square",
    )


def _rgb(image: np.ndarray) -> np.ndarray:
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image


def _arrays(place: Path, images: np.ndarray, labels: np.ndarray | None) -> Arrays:
    images = _as_pictures(place, images)
    if labels is None:
        return Arrays(images)
    labels = _as_labels(place, labels, len(images))
    return Arrays(images, labels, class_names(place, int(labels.max()) + 1))


def _as_pictures(place: Path, images: np.ndarray) -> np.ndarray:
    shape = images.shape
    if images.dtype.kind not in "ui" or (images.size and not _are_bytes(images)):
        raise InputError(f"{place}: pictures are {images.dtype}; whole numbers of 0…255 are needed")
    if images.ndim == 3:
        images = images[..., None]
    elif images.ndim == 4 and shape[3] not in (1, 3) and shape[1] in (1, 3):
        images = images.transpose(0, 2, 3, 1)
    if images.ndim != 4 or images.shape[3] not in (1, 3) or 0 in images.shape:
        raise InputError(f"{place}: pictures are {shape}; (N, H, W) or (N, H, W, 3) is needed")
    return images.astype(np.uint8, copy=False)


def _are_bytes(values: np.ndarray) -> bool:
    return values.dtype == np.uint8 or bool(values.min() >= 0 and values.max() <= 255)


def _as_labels(place: Path, labels: np.ndarray, count: int) -> np.ndarray:
    shape = labels.shape
    if labels.size != count or labels.ndim > 2 or labels.dtype.kind not in "ui":
        raise InputError(
            f"{place}: {count} pictures and labels {shape} {labels.dtype}; "
            "one whole number a picture is needed"
        )
    if int(labels.min()) < 0:
        raise InputError(f"{place}: has the class {int(labels.min())}; classes count from 0")
    return labels.reshape(-1).astype(np.int64)


def _read_npz(place: Path, split: str) -> tuple[np.ndarray, np.ndarray | None]:
    try:
        with _opened(place) as file:
            names = file.files
            images = _first(names, IMAGE_KEYS[split])
            labels = _first(names, LABEL_KEYS[split])
            has_parts = any(_first(names, keys) for keys in IMAGE_KEYS.values())
            if not has_parts:
                images, labels = (_first(names, keys) for keys in WHOLE_KEYS)
            if not images:
                raise InputError(
                    f"{place}: has no array {IMAGE_KEYS[split][0]!r} or {WHOLE_KEYS[0][0]!r}, "
                    f"but {', '.join(names[:6]) or 'none'}"
                )
            return file[images], file[labels] if labels else None
    except InputError:
        raise
    except (OSError, ValueError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise InputError(f"{place}: cannot be read as an .npz of arrays ({error})") from error


def _opened(place: Path) -> NpzFile:
    found = np.load(place, allow_pickle=False)
    if not isinstance(found, NpzFile):
        raise InputError(f"{place}: is one array, not an .npz of several; use numpy.savez")
    return found


def _first(names: list[str], keys: tuple[str, ...]) -> str:
    return next((key for key in keys if key in names), "")
