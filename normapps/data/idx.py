"""IDX files, as MNIST and its successors come: arrays of bytes behind a short header.

LeCun, Cortes & Burges, "The MNIST database": two zero bytes, a byte that tells the type, one that
tells the number of dimensions, each dimension as a big-endian 32-bit number, then the values.
"""

from __future__ import annotations

import gzip
import math
import os
import re
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from ..errors import InputError

SPLITS = {"train": ("train",), "test": ("t10k", "test")}
"""The parts of a data set, and what its files call them."""

_UNSIGNED_BYTE = 8
_PIECE = 1 << 24
_IMAGES = re.compile(r"(?P<part>.*)images(?P<rest>[-.]idx3[-.]ubyte(?:\.gz)?)", re.IGNORECASE)


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an IDX file of unsigned bytes, plain or packed by gzip (told by its content).

    Returns:
        uint8 of the shape that the header gives, such as (N, 28, 28) or (N,).

    Raises:
        InputError: the file cannot be read, is no IDX file of bytes, or holds more or fewer values
            than its header says.
    """
    try:
        with open(path, "rb") as raw:
            is_packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            if not is_packed:
                return _parsed(raw, path)
            with gzip.open(raw) as file:
                return _parsed(cast(BinaryIO, file), path)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: is truncated or damaged ({error}); take another copy") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error


def find_idx(place: Path, split: str) -> tuple[Path, Path | None] | None:
    """Find the image file of one part of a data set, and the label file beside it.

    Args:
        place: a folder that holds `train-images-idx3-ubyte` or the like, plain or `.gz`; or that
            file itself, and then `split` does not matter.
        split: a key of `SPLITS`.

    Returns:
        The two files, None for labels that are not there; None where there is no IDX file.

    Raises:
        InputError: the folder has IDX files, but none or several of this part.
    """
    if place.is_file():
        return (place, _labels(place)) if _IMAGES.fullmatch(place.name) else None
    if not place.is_dir():
        return None
    files = sorted(path for path in place.iterdir() if _IMAGES.fullmatch(path.name))
    found = [path for path in files if _is_of(path, split)]
    plain = [path for path in found if path.suffix != ".gz"] or found
    if not files:
        return None
    if not found:
        raise InputError(
            f"{place}: has no images of the part {split!r}, only {files[0].name}; name that file"
        )
    if len(plain) > 1:
        raise InputError(
            f"{place}: {plain[0].name} and {plain[1].name} are both of the part {split!r}; "
            "name one of them"
        )
    return plain[0], _labels(plain[0])


def _is_of(path: Path, split: str) -> bool:
    match = _IMAGES.fullmatch(path.name)
    words = re.split(r"[^a-z0-9]+", match["part"].lower()) if match else []
    return any(word in SPLITS[split] for word in words)


def _labels(images: Path) -> Path | None:
    """The file of the same name with `labels` and one dimension; it may be packed or not."""
    match = _IMAGES.fullmatch(images.name)
    if match is None:
        return None
    rest = match["rest"].removesuffix(".gz").replace("idx3", "idx1")
    plain = images.with_name(f"{match['part']}labels{rest}")
    packed = plain.with_name(f"{plain.name}.gz")
    return next((path for path in (plain, packed) if path.is_file()), None)


def _parsed(file: BinaryIO, path: str | os.PathLike[str]) -> np.ndarray:
    start = file.read(4)
    if len(start) < 4 or start[:2] != b"\0\0" or not 1 <= start[3] <= 4:
        raise InputError(
            f"{path}: is no IDX file, it begins with {start.hex(' ') or 'nothing'}; "
            "00 00 08 and the number of dimensions are expected"
        )
    if start[2] != _UNSIGNED_BYTE:
        raise InputError(f"{path}: holds values of type {start[2]:#04x}; only bytes (0x08) do")
    sizes = file.read(4 * start[3])
    if len(sizes) < 4 * start[3]:
        raise InputError(f"{path}: ends within its header; take another copy")
    shape = struct.unpack(f">{start[3]}I", sizes)
    return np.frombuffer(_values(file, math.prod(shape), path), np.uint8).reshape(shape)


def _values(file: BinaryIO, count: int, path: str | os.PathLike[str]) -> bytearray:
    """The values in pieces: a damaged header may promise more than there is memory for."""
    found = bytearray()
    while piece := file.read(min(_PIECE, count + 1 - len(found))):
        found += piece
    if len(found) != count:
        has = "more" if len(found) > count else f"only {len(found)}"
        raise InputError(
            f"{path}: its header promises {count} values and it has {has}; take another copy"
        )
    return found
