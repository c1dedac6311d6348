"""Every real image to numpy and back: upright, 8-bit sRGB, alpha aside. Loads no torch.

`read_image` and `to_picture` are here; `Picture`, writing and resizing are passed on from their
files, so that this module is all that a caller imports.
"""

from __future__ import annotations

import dataclasses
import os
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from ..errors import InputError
from .color import LUMA, fill_hidden, is_misread, raw_mode, split_alpha, to_srgb
from .picture import Picture, fit, fitted_size, resize, with_pixels
from .write import WRITE_SUFFIXES, encode_image, writable_format, write_image, write_notes

__all__ = [
    "LUMA",
    "SUFFIXES",
    "WRITE_SUFFIXES",
    "Picture",
    "encode_image",
    "fit",
    "fitted_size",
    "read_image",
    "resize",
    "to_picture",
    "with_pixels",
    "writable_format",
    "write_image",
    "write_notes",
]

SUFFIXES = (*WRITE_SUFFIXES, ".heic", ".heif")
"""The suffixes of the pictures we read; what a file is, its content decides."""

# Naming the plugins registers them: Pillow's own search would import every format it knows.
_PLUGINS = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "GIF": GifImagePlugin.GifImageFile,
}
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_ORIENTATION = 0x0112
_lock = threading.RLock()


def read_image(
    source: str | os.PathLike[str] | BinaryIO,
    *,
    max_pixels: int | None = None,
    flag: str = "--max-pixels",
) -> Picture:
    """Read a picture file: JPEG, PNG, WebP, TIFF, BMP, GIF, and HEIC with the extra `heic`.

    EXIF orientation and colour profile are applied, of several frames the first is taken, deep
    greys are scaled to 8 bits. The result has the size of the upright picture.

    Args:
        source: a path, or a binary stream that is read to its end.
        max_pixels: the most pixels to decode; Pillow's limit (89 million) when not given.
        flag: the option that raises it, for the error; empty where there is none.

    Raises:
        InputError: missing, unreadable, empty, truncated, not a picture, too large. The message
            begins with the path.
    """
    with _stream(source) as (name, file):
        image = _open(file, name, max_pixels, flag)
        with image:
            picture = _convert(image, name)
            notes = _frames_note(image)
    return dataclasses.replace(picture, notes=(*notes, *picture.notes))


def to_picture(image: Image.Image) -> Picture:
    """Convert an open Pillow image of any mode as `read_image` does; the image is not changed.

    Raises:
        InputError: the image's file is truncated or damaged.
    """
    return _convert(image, str(getattr(image, "filename", "") or "image"))


@contextmanager
def _stream(source: str | os.PathLike[str] | BinaryIO) -> Iterator[tuple[str, BinaryIO]]:
    if not isinstance(source, str | os.PathLike):
        name = getattr(source, "name", "")
        yield name if isinstance(name, str) and name else "stream", BytesIO(source.read())
        return
    with _open_path(Path(source)) as file:
        # A pipe such as <(command) cannot go back to its start.
        yield os.fspath(source), file if file.seekable() else BytesIO(file.read())


def _open_path(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except IsADirectoryError as error:
        raise InputError(f"{path}: is a folder, not a picture; name a file in it") from error
    except FileNotFoundError as error:
        raise InputError(f"{path}: does not exist; check the spelling") from error
    except PermissionError as error:
        raise InputError(f"{path}: may not be read; change its permissions") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be opened ({reason}); check the path") from error


def _open(file: BinaryIO, name: str, max_pixels: int | None, flag: str) -> Image.Image:
    prefix = file.read(16)
    file.seek(0)
    if not prefix:
        raise InputError(f"{name}: is empty; take another copy")
    formats = _formats(prefix, name)
    try:
        with _pixel_limit(max_pixels):
            image = Image.open(file, formats=formats)
            if max_pixels is not None:  # a tiled TIFF asks for the limit again on loading
                image.load()
            return image
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise _too_large(name, error, max_pixels, flag) from error
    except UnidentifiedImageError as error:
        raise _unidentified(name, prefix) from error
    except Exception as error:  # decoders raise anything on damaged bytes
        raise _damaged(name, error) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings; one thread at a time, because Python's filters belong to all of them."""
    with _lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _pixel_limit(max_pixels: int | None) -> Iterator[None]:
    """Pillow's limit as an error, at `max_pixels` if given, and as it was afterwards."""
    with _quiet():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        before = Image.MAX_IMAGE_PIXELS
        try:
            if max_pixels is not None:
                Image.MAX_IMAGE_PIXELS = max_pixels
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _formats(prefix: bytes, name: str) -> tuple[str, ...]:
    if not (prefix[4:8] == b"ftyp" and prefix[8:12] in _HEIF_BRANDS):
        return tuple(_PLUGINS)
    try:
        import pillow_heif
    except ImportError as error:
        raise InputError(f"{name}: HEIC needs an extra; pip install 'normapps[heic]'") from error
    pillow_heif.register_heif_opener()
    return ("HEIF",)


def _frames_note(image: Image.Image) -> tuple[str, ...]:
    if image.format == "MPO":  # a phone's JPEG with a preview or depth map behind the picture
        return ()
    try:
        with _quiet():
            frames = int(getattr(image, "n_frames", 1))
    except Exception:  # a damaged later frame is no reason to refuse the first
        return ("first of several frames",)
    return (f"first of {frames} frames",) if frames > 1 else ()


def _convert(image: Image.Image, name: str) -> Picture:
    if is_misread(image):
        raise InputError(
            f"{name}: has 16-bit colours in separate uncompressed planes; save it again as PNG"
        )
    raw = raw_mode(image)
    try:
        # Pillow parses TIFF's tags on loading, and warns of what is odd in them.
        with _quiet() if image.format == "TIFF" else nullcontext():
            image.load()
        orientation = _orientation(image)
        colour, alpha, notes = split_alpha(image, raw)
        converted = to_srgb(colour, _profile(image))
    except Exception as error:  # decoders raise anything on damaged bytes
        raise _damaged(name, error) from error
    pixels = _upright(converted.pixels, orientation)
    if alpha is not None:
        alpha = _upright(alpha, orientation)
        pixels = fill_hidden(pixels, alpha)
    kind = "JPEG" if image.format == "MPO" else image.format or ""
    return Picture(pixels, alpha, kind, (*notes, *converted.notes), converted.icc)


def _profile(image: Image.Image) -> bytes | None:
    if "icc_profile" not in image.info:
        return None
    return cast(bytes | None, image.info["icc_profile"]) or b""


def _orientation(image: Image.Image) -> int:
    try:
        with _quiet():
            value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # broken metadata is no reason to refuse the picture
        return 1
    return value if isinstance(value, int) else 1


def _upright(values: np.ndarray, orientation: int) -> np.ndarray:
    """Undo the EXIF orientation 1…8 of (H, W[, 3]) values."""
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return np.ascontiguousarray(values)


def _too_large(name: str, error: Exception, max_pixels: int | None, flag: str) -> InputError:
    found = re.search(r"\d+", str(error))
    pixels = int(found[0]) if found else 0
    limit = Image.MAX_IMAGE_PIXELS if max_pixels is None else max_pixels
    advice = f"if you trust the file, {flag} {pixels} reads it" if flag else "make it smaller first"
    return InputError(f"{name}: {pixels} pixels are more than the limit of {limit}; {advice}")


def _unidentified(name: str, prefix: bytes) -> InputError:
    for kind in _PLUGINS:
        accept = Image.OPEN[kind][1]
        if accept is not None and accept(prefix) is True:
            return InputError(
                f"{name}: is a damaged {kind} or of an unsupported kind; save it again as PNG"
            )
    return InputError(f"{name}: is not a picture that can be read; use one of {' '.join(SUFFIXES)}")


def _damaged(name: str, error: Exception) -> InputError:
    if isinstance(error, MemoryError):
        return InputError(f"{name}: needs more memory than there is; make it smaller first")
    reason = " ".join(str(error).split()) or type(error).__name__
    return InputError(f"{name}: is truncated or damaged ({reason}); take another copy")
