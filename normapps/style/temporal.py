"""A loss for steady video without optical flow: a shifted photo must give a shifted picture.

Between two frames most of a picture moves by a few pixels; what flickers is what a network draws
differently for it. So one photo of the batch comes a second time, moved by known whole pixels.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

FURTHEST = 7
"""Pixels of a shift at most: less than a cell of the network at 1/8 resolution."""
_BORDER = 32
"""Pixels at the edges that are not compared: what is drawn there depends on what is cut off."""


def shifted(image: Tensor, down: int, right: int) -> Tensor:
    """Move (N, C, H, W) down and to the right; what comes in is the picture mirrored."""
    height, width = image.shape[2:]
    padded = F.pad(image, (right, 0, down, 0), mode="reflect")
    return padded[..., :height, :width]


def unsteadiness(still: Tensor, moved: Tensor, down: int, right: int) -> Tensor:
    """Return the mean absolute difference of two drawings, the one moved like its photo.

    Args:
        still: (N, 3, H, W) drawn of the photo, H and W above 2·32 pixels.
        moved: (N, 3, H, W) drawn of the photo that `shifted` moved.
        down, right: by how many pixels.
    """
    difference = shifted(still, down, right) - moved
    return difference[..., _BORDER:-_BORDER, _BORDER:-_BORDER].abs().mean()
