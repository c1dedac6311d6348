"""Pictures laid out for people to look at: grids, and grids with a row a class and its name."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..errors import InputError

_GAP = 2
_MARGIN = 6
_SMALLEST, _LARGEST = 10, 20  # sizes of letters in pixels
_LONGEST = 24


def grid(images: Tensor, columns: int = 0, scale: int = 1) -> Image.Image:
    """Lay pictures out in rows, on white.

    Args:
        images: (N, C, H, W) uint8 of 1 or 3 channels.
        columns: pictures a row; 0 takes one row for up to 8 pictures, else about a square.
        scale: each pixel becomes scale·scale of them.

    Raises:
        InputError: no pictures, or another number of channels.
    """
    if len(images) == 0:
        raise InputError("a grid needs at least one picture")
    columns = columns or (len(images) if len(images) <= 8 else math.ceil(math.sqrt(len(images))))
    columns, rows = min(columns, len(images)), math.ceil(len(images) / columns)
    height, width = (side * scale + _GAP for side in images.shape[2:])
    tiles = [picture(image, scale) for image in images]
    page = Image.new(tiles[0].mode, (columns * width - _GAP, rows * height - _GAP), "white")
    for index, tile in enumerate(tiles):
        page.paste(tile, (index % columns * width, index // columns * height))
    return page


def class_grid(
    images: Tensor, names: Sequence[str], columns: int = 0, scale: int = 1, labels: bool = True
) -> Image.Image:
    """Lay pictures out class below class, the class's name to the left of its first row.

    Args:
        images: (K, N, C, H, W) uint8 of K classes.
        names: of the K classes; cut at `_LONGEST` characters. Of none, the pictures are of no
            class, and each of the K only begins a new row.
        columns: pictures a row; 0 takes N. A class that needs several rows leaves its last open.
        scale: each pixel becomes scale·scale of them.
        labels: write the names.

    Raises:
        InputError: no pictures, or another number of channels.
    """
    columns = min(columns or images.shape[1], images.shape[1])
    rows = math.ceil(images.shape[1] / columns)
    missing = rows * columns - images.shape[1]
    blank = images.new_full((len(images), missing, *images.shape[2:]), 255)
    page = grid(torch.cat([images, blank], 1).flatten(0, 1), columns, scale)
    if not labels or not names:
        return page
    return _labelled(page, names, rows, images.shape[3] * scale + _GAP)


def _labelled(page: Image.Image, names: Sequence[str], rows: int, height: int) -> Image.Image:
    """The page with a margin of names, one for so many rows of so many pixels."""
    font = ImageFont.load_default(min(max(_SMALLEST, height // 4), _LARGEST))
    height *= rows
    shown = [each if len(each) <= _LONGEST else f"{each[: _LONGEST - 1]}…" for each in names]
    margin = 2 * _MARGIN + math.ceil(max(font.getlength(each) for each in shown))
    wide = Image.new(page.mode, (margin + page.width, page.height), "white")
    wide.paste(page, (margin, 0))
    pen = ImageDraw.Draw(wide)
    for index, name in enumerate(shown):
        middle = margin - _MARGIN, index * height + (height - _GAP) // 2
        pen.text(middle, name, "black", font, anchor="rm")
    return wide


def picture(image: Tensor, scale: int = 1) -> Image.Image:
    """Turn one picture, (C, H, W) uint8 of 1 or 3 channels, into Pillow's, mode L or RGB.

    Raises:
        InputError: another number of channels.
    """
    channels, height, width = image.shape
    if channels not in (1, 3):
        raise InputError(f"pictures of {channels} channels cannot be shown; only of 1 or 3")
    pixels = image.cpu().numpy()
    whole = Image.fromarray(
        pixels[0] if channels == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0))
    )
    return whole.resize((width * scale, height * scale), Image.Resampling.NEAREST)
