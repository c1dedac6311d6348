"""Keeping a photo's finest lines, in numpy: what `normapps.style.detail` does in torch."""

from __future__ import annotations

import numpy as np

from ...data.images import LUMA

_WEIGHTS = np.array(LUMA, np.float32)
_REACH = 2


def mix_detail(cells: np.ndarray, photo: np.ndarray, share: float) -> np.ndarray:
    """Let `share` of the fine detail of the grey be the photo's; see `normapps.style.detail`.

    Args:
        cells: (1, 12, H/2, W/2) float32, about [0, 1]: channels are colour, row and column.
        photo: (H, W, 3) float32 in [0, 1].
        share: 0 to 1.

    Returns:
        The cells, not clipped.
    """
    height, width = cells.shape[2:]
    squares = cells.reshape(3, 2, 2, height, width)
    drawn = np.tensordot(_WEIGHTS, squares, 1).transpose(2, 0, 3, 1)
    missing = photo @ _WEIGHTS - drawn.reshape(2 * height, 2 * width)
    fine = missing - _mean(_mean(missing, 0), 1)
    given = np.float32(share) * fine.reshape(height, 2, width, 2).transpose(1, 3, 0, 2)
    mixed: np.ndarray = (squares + given).reshape(cells.shape)
    return mixed


def _mean(grey: np.ndarray, axis: int) -> np.ndarray:
    """The mean of five neighbours along an axis of (H, W), at an edge of those that there are."""
    size, wide = grey.shape[axis], 2 * _REACH + 1
    margin = [(0, 0), (0, 0)]
    margin[axis] = (_REACH, _REACH)
    padded = np.pad(grey, margin)
    cut = (slice(i, i + size) for i in range(wide))
    parts = [padded[part] if axis == 0 else padded[:, part] for part in cut]
    places = np.arange(size)
    counts = np.minimum(places + _REACH, size - 1) - np.maximum(places - _REACH, 0) + 1
    mean: np.ndarray = sum(parts[1:], parts[0])
    mean /= counts.astype(np.float32)[:, None] if axis == 0 else counts.astype(np.float32)
    return mean
