"""One picture in memory: 8-bit sRGB pixels with the alpha kept aside."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..errors import InputError


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture as it is shown: upright, in sRGB, without its metadata.

    Attributes:
        pixels: (H, W, 3) uint8 sRGB. Under fully transparent pixels stands the mean visible
            colour, so that what a file hides there changes nothing.
        alpha: (H, W) uint8, 255 opaque, or None where the picture has no transparency.
        format: the file's format in Pillow's spelling, such as `JPEG`; empty for a picture that
            came from memory.
        notes: what was decided on reading and the user should know, a phrase each.
        icc: the profile to write with the pixels (sRGB where the source had one), or None.

    Raises:
        InputError: pixels or alpha of another shape or dtype.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    format: str = ""
    notes: tuple[str, ...] = ()
    icc: bytes | None = None

    def __post_init__(self) -> None:
        _check_pixels(self.pixels)
        if self.alpha is not None and (
            self.alpha.shape != self.pixels.shape[:2] or self.alpha.dtype != np.uint8
        ):
            raise InputError(
                f"alpha is {self.alpha.shape} {self.alpha.dtype}; "
                f"it must be {self.pixels.shape[:2]} uint8, as the pixels are"
            )

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, in this order as Pillow has it."""
        return self.pixels.shape[1], self.pixels.shape[0]


def with_pixels(picture: Picture, pixels: np.ndarray) -> Picture:
    """Return the picture with other pixels, under the same alpha and profile.

    Args:
        picture: what alpha, profile, format and notes are taken from.
        pixels: (H, W, 3) uint8 sRGB of the same size.

    Raises:
        InputError: another size, shape or dtype.
    """
    if pixels.shape[:2] != picture.pixels.shape[:2]:
        raise InputError(
            f"pixels of {pixels.shape[1]}×{pixels.shape[0]} do not fit a picture of "
            f"{picture.size[0]}×{picture.size[1]}; resize them first"
        )
    return dataclasses.replace(picture, pixels=pixels)


def resize(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Resize by Lanczos's filter, antialiased when shrinking.

    Args:
        pixels: (H, W, 3) or (H, W) uint8.
        width, height: the new size in pixels.

    Returns:
        (height, width, 3) or (height, width) uint8.

    Raises:
        InputError: a size below 1.
    """
    if width < 1 or height < 1:
        raise InputError(f"cannot resize to {width}×{height}; both sides must be at least 1")
    if (height, width) == pixels.shape[:2]:
        return pixels.copy()
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return np.array(image.resize((width, height), Image.Resampling.LANCZOS))


def fitted_size(width: int, height: int, long_side: int) -> tuple[int, int]:
    """Return width and height scaled to a long side; the other side is at least 1 pixel."""
    scale = long_side / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def fit(pixels: np.ndarray, long_side: int) -> np.ndarray:
    """Scale a picture to a long side in pixels by Lanczos's filter, up or down.

    Args:
        pixels: (H, W, 3) or (H, W) uint8.
        long_side: of the result.
    """
    return resize(pixels, *fitted_size(pixels.shape[1], pixels.shape[0], long_side))


def _check_pixels(pixels: np.ndarray) -> None:
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or not pixels.size:
        raise InputError(
            f"pixels are {pixels.shape} {pixels.dtype}; they must be (H, W, 3) uint8, at least 1×1"
        )
