"""Pictures to files: format by suffix, sRGB, alpha where the format has it, never half a file."""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from ..errors import InputError
from ..files import atomic_path
from .picture import Picture

_FORMATS = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".png": "PNG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
    ".gif": "GIF",
}
_LONGEST_SIDE = {"JPEG": 65500, "WEBP": 16383, "GIF": 65535}

WRITE_SUFFIXES = tuple(_FORMATS)
"""The suffixes `write_image` knows; upper case is as good."""


def writable_format(path: str | os.PathLike[str]) -> str:
    """Return the format a file is written in, in Pillow's spelling, by its suffix.

    Raises:
        InputError: an unknown suffix.
    """
    suffix = Path(path).suffix
    if suffix.lower() not in _FORMATS:
        raise InputError(
            f"{os.fspath(path)}: cannot write {suffix or 'a file without suffix'}; "
            f"use one of {' '.join(_FORMATS)}, or end it in / for a folder"
        )
    return _FORMATS[suffix.lower()]


def write_image(
    picture: Picture,
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    quality: int = 92,
) -> None:
    """Write a picture atomically in the format of the suffix; parents are made.

    What the format cannot hold is said by `write_notes`: show it to the user.

    Args:
        picture: what to write.
        path: the file, ending in one of `WRITE_SUFFIXES`.
        overwrite: replace an existing file.
        quality: 1 to 100, for JPEG and WebP.

    Raises:
        InputError: an unknown suffix, a picture too large for the format, a file that exists,
            a place that cannot be written, a quality out of range.
    """
    kind = writable_format(path)
    _check(picture, kind, quality, name=os.fspath(path))
    with atomic_path(path, overwrite=overwrite) as temporary:
        try:
            with open(temporary, "wb") as file:
                _save(picture, kind, file, quality)
        except OSError as error:
            reason = error.strerror or error
            raise InputError(
                f"{os.fspath(path)}: cannot be written ({reason}); make room or write elsewhere"
            ) from error


def encode_image(picture: Picture, format: str, *, quality: int = 92) -> bytes:
    """Return the bytes of the file that `write_image` would write.

    Args:
        picture: what to encode.
        format: a format or suffix: `JPEG`, `png`, `.webp`.
        quality: 1 to 100, for JPEG and WebP.

    Raises:
        InputError: an unknown format, a picture too large for it, a quality out of range.
    """
    kind = _format_named(format)
    _check(picture, kind, quality, name="stdout")
    file = BytesIO()
    _save(picture, kind, file, quality)
    return file.getvalue()


def write_notes(picture: Picture, format: str) -> tuple[str, ...]:
    """Say what of the picture the format (or suffix) cannot hold, a phrase each.

    Raises:
        InputError: an unknown format.
    """
    kind = _format_named(format)
    notes = ["GIF holds 256 colours: the picture is dithered"] if kind == "GIF" else []
    if picture.alpha is not None and (picture.alpha < 255).any():
        if kind in ("JPEG", "BMP"):
            notes.append(f"{kind} has no transparency: laid on white")
        elif kind == "GIF" and ((picture.alpha > 0) & (picture.alpha < 255)).any():
            notes.append("GIF pixels are transparent or not: alpha cut at one half")
    return tuple(notes)


def _format_named(name: str) -> str:
    suffix = "." + name.lower().lstrip(".")
    return writable_format(f"picture{suffix}")


def _check(picture: Picture, kind: str, quality: int, name: str) -> None:
    if not 1 <= quality <= 100:
        raise InputError(f"--quality {quality}: must be between 1 and 100")
    width, height = picture.size
    longest = _LONGEST_SIDE.get(kind)
    if longest is not None and max(width, height) > longest:
        raise InputError(
            f"{name}: {width}×{height} is more than the {longest} pixels a side that {kind} "
            "can hold; write .png or .tif"
        )


def _save(picture: Picture, kind: str, file: BinaryIO, quality: int) -> None:
    if kind == "GIF":
        _save_gif(picture, file)
        return
    image = _flat(picture) if kind in ("JPEG", "BMP") else _layered(picture)
    options = _save_options(kind, quality)
    if picture.icc and kind != "BMP":
        options["icc_profile"] = picture.icc
    image.save(file, kind, **options)


def _save_options(kind: str, quality: int) -> dict[str, Any]:
    if kind == "JPEG":
        # Full colour resolution at high quality: painted edges are coloured edges.
        return {"quality": quality, "subsampling": 0 if quality >= 90 else 2}
    if kind == "PNG":
        return {"compress_level": 4}  # measured: half the time of 6 for files 1–2 % larger
    if kind == "TIFF":
        return {"compression": "tiff_lzw"}
    return {"quality": quality} if kind == "WEBP" else {}


def _layered(picture: Picture) -> Image.Image:
    pixels = np.ascontiguousarray(picture.pixels)
    if picture.alpha is None:
        return Image.fromarray(pixels)
    return Image.fromarray(np.dstack((pixels, picture.alpha)))


def _flat(picture: Picture) -> Image.Image:
    """The picture laid on white; without alpha, as it is."""
    if picture.alpha is None:
        return _layered(picture)
    alpha = picture.alpha[..., None].astype(np.uint16)
    blend = (picture.pixels * alpha + 255 * (255 - alpha) + 127) // 255
    return Image.fromarray(blend.astype(np.uint8))


def _save_gif(picture: Picture, file: BinaryIO) -> None:
    image = Image.fromarray(np.ascontiguousarray(picture.pixels))
    palette = image.quantize(255, Image.Quantize.MEDIANCUT)
    indexed = image.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
    if picture.alpha is None:
        indexed.save(file, "GIF")
        return
    indexed.paste(255, mask=Image.fromarray((picture.alpha < 128).astype(np.uint8) * 255))
    indexed.save(file, "GIF", transparency=255)
