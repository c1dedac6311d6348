"""Keeping a photo's colours, in numpy: what `normapps.style.color` does in torch."""

from __future__ import annotations

import numpy as np

from ...data.images import LUMA
from ...errors import unknown


def preserve_color(output: np.ndarray, content: np.ndarray, mode: str) -> np.ndarray:
    """Give a stylized picture colours of its content.

    Args:
        output, content: (H, W, 3) uint8 sRGB.
        mode: `none`, `luma` or `transport`; see `normapps.style.color.preserve_color`.

    Returns:
        (H, W, 3) uint8.

    Raises:
        InputError: an unknown mode.
    """
    if mode == "none":
        return output
    if mode not in _MODES:
        raise unknown("preserve_color", mode, ("none", *_MODES))
    painted, photo = (x.astype(np.float32) / 255 for x in (output, content))
    recolored = np.clip(_MODES[mode](painted, photo), 0, 1) * 255
    return np.asarray(np.rint(recolored), np.uint8)


def _with_chroma(output: np.ndarray, content: np.ndarray) -> np.ndarray:
    """Shift each pixel of the content along grey until it has the output's luma."""
    weights = np.array(LUMA, np.float32)[:, None]
    luma, chroma = output @ weights, content - content @ weights
    room = np.where(chroma > 0, 1 - luma, luma) / np.maximum(np.abs(chroma), 1e-6)
    return np.asarray(luma + chroma * np.minimum(room.min(2, keepdims=True), 1))


def _transported(output: np.ndarray, content: np.ndarray) -> np.ndarray:
    """Move mean and covariance of the colours to the content's by the optimal map."""
    (own_mean, own), (mean, wanted) = (_moments(x) for x in (output, content))
    root, inverse = _roots(own)
    matrix = inverse @ _roots(root @ wanted @ root)[0] @ inverse
    return np.asarray((output - own_mean) @ matrix.astype(np.float32).T + mean)


def _moments(image: np.ndarray, eps: float = 1e-4) -> tuple[np.ndarray, np.ndarray]:
    """Mean (3,) and covariance (3, 3) of the colours, with a ridge."""
    colors = image.reshape(-1, 3)
    mean = colors.mean(0, dtype=np.float64)
    centred = colors - mean.astype(np.float32)
    cov = (centred.T @ centred).astype(np.float64) / len(colors)
    return mean.astype(np.float32), cov + eps * np.eye(3)


def _roots(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Σ^½ and Σ^-½ of a symmetric matrix."""
    values, vectors = np.linalg.eigh(matrix)
    roots = np.sqrt(np.maximum(values, np.finfo(float).eps * values[-1]))
    return (vectors * roots) @ vectors.T, (vectors / roots) @ vectors.T


_MODES = {"luma": _with_chroma, "transport": _transported}
