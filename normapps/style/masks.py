"""Masks: which part of a picture gets which style; loads no torch.

Several masks may overlap, and then share what they overlap in; what none covers stays the photo.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from ..data.images import LUMA, Picture, read_image
from ..errors import InputError

_ROUNDING = 2
"""By how many levels of 255 a mask, having been resampled, makes several miss the whole."""
_SLACK = 0.01
"""How far a mask's shape may be from the picture's, as a share of the height."""


@dataclass(frozen=True, eq=False)
class Mask:
    """Where a style goes.

    Attributes:
        values: (h, w) uint8, 255 where the style goes, 0 where it does not; of the shape of the
            picture, at any resolution.
        feather: width in pixels of the result over which the mask's edges fade.
        name: what errors call it, such as its file.

    Raises:
        InputError: values of another shape or dtype, none above 0, or a feather below 0.
    """

    values: np.ndarray
    feather: float = 0.0
    name: str = "mask"

    def __post_init__(self) -> None:
        values = self.values
        if values.ndim != 2 or values.dtype != np.uint8 or not values.size:
            raise InputError(
                f"{self.name}: is {values.shape} {values.dtype}; a mask must be (H, W) uint8"
            )
        if not values.any():
            raise InputError(
                f"{self.name}: is black everywhere; make white where its style is to go"
            )
        if not 0 <= self.feather < math.inf:
            raise InputError(f"feather {self.feather}: must be a number of pixels, 0 or more")

    def digest(self) -> str:
        """Return the SHA-256 of the values and their shape, 64 hexadecimal digits."""
        state = hashlib.sha256(repr(self.values.shape).encode())
        state.update(np.ascontiguousarray(self.values).data)
        return state.hexdigest()

    def fitted(self, width: int, height: int) -> np.ndarray:
        """Return the mask at a picture's size, its edges faded: (height, width) uint8.

        Bilinear, antialiased when shrinking; faded by a Gaussian whose standard deviation is a
        quarter of `feather`, so that 95 % of the change lie within it.

        Raises:
            InputError: the picture has another shape, or nothing of the mask is left.
        """
        rows, columns = self.values.shape
        if abs(rows * width / columns - height) > 1 + _SLACK * height:
            raise InputError(
                f"{self.name}: is {columns}×{rows}, the picture {width}×{height}; "
                "give a mask of the picture's shape"
            )
        image = Image.fromarray(self.values).resize((width, height), Image.Resampling.BILINEAR)
        if self.feather:
            image = image.filter(ImageFilter.GaussianBlur(self.feather / 4))
        fitted = np.array(image)
        if not fitted.any():
            raise InputError(
                f"{self.name}: nothing is left of it at {width}×{height}; paint a larger part white"
            )
        return fitted


def read_mask(
    path: str | os.PathLike[str], *, feather: float = 0.0, max_pixels: int | None = None
) -> Mask:
    """Read a mask: the transparency of a picture that has any, otherwise its brightness.

    So both a drawing in black and white and a cut-out on a transparent ground will do.

    Args:
        path: a picture file of any kind.
        feather: see `Mask`.
        max_pixels: the most pixels to decode, as `read_image` has it.

    Raises:
        InputError: it cannot be read, or is black (or transparent) everywhere.
    """
    return Mask(_values(read_image(path, max_pixels=max_pixels)), feather, os.fspath(path))


def fit_masks(masks: Sequence[Mask | None], width: int, height: int) -> list[np.ndarray]:
    """Bring masks to a picture's size.

    Args:
        masks: one a style; None, once at most, stands for what the others leave.
        width, height: of the picture in pixels.

    Returns:
        (height, width) uint8 for each.

    Raises:
        InputError: a mask that does not fit the picture, more than one None, or nothing left
            for it.
    """
    if sum(mask is None for mask in masks) > 1:
        raise InputError("two styles without a mask: give each style one, or all but one")
    given = {i: mask.fitted(width, height) for i, mask in enumerate(masks) if mask is not None}
    if len(given) == len(masks):
        return list(given.values())
    rest = _remainder(list(given.values()), (height, width))
    if rest.max() <= _ROUNDING * len(given):
        raise InputError("the masks leave nothing for the style without one; give fewer styles")
    return [given.get(i, rest) for i in range(len(masks))]


def _remainder(masks: Sequence[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """What masks leave of 255, without a wider copy of any."""
    rest = np.full(shape, 255, np.uint8)
    for mask in masks:
        rest -= np.minimum(rest, mask)
    return rest


def _values(picture: Picture) -> np.ndarray:
    alpha = picture.alpha
    if alpha is not None and alpha.min() < 255:
        return alpha
    grey: np.ndarray = picture.pixels @ np.asarray(LUMA, np.float32)
    rounded: np.ndarray = np.rint(grey).astype(np.uint8)
    return rounded
