"""Keeping a photo's colours, in numpy: what `normapps.style.color` does in torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...data.images import LUMA
from ...errors import unknown

_WEIGHTS = np.array(LUMA, np.float32)[:, None]

_RIDGE = 1e-3
"""As `normapps.style.color` has it."""

_BAND = 1 << 19
"""Pixels that are computed on at once."""


@dataclass(frozen=True, eq=False)
class Colors:
    """Mean (3,) and biased covariance (3, 3) of RGB values in [0, 1], float64."""

    mean: np.ndarray
    cov: np.ndarray

    @classmethod
    def of(cls, pixels: np.ndarray) -> Colors:
        """Measure (H, W, 3) uint8, exactly: by sums of integers, a band at a time."""
        total, products = np.zeros(3), np.zeros((3, 3))
        for band in _bands(pixels):
            values = pixels[band].reshape(-1, 3).astype(np.float64)
            total += values.sum(0)
            products += values.T @ values
        count = pixels.shape[0] * pixels.shape[1]
        mean = total / count
        return cls(mean / 255, (products / count - np.outer(mean, mean)) / 255**2)


def barycenter(parts: Sequence[Colors], weights: Sequence[float], iterations: int = 50) -> Colors:
    """Return the Wasserstein barycentre; see `normapps.norm.barycenter`."""
    pairs = list(zip(parts, weights, strict=True))
    ridge = 1e-6 * np.eye(3)
    between = np.asarray(sum(weight * (part.cov + ridge) for part, weight in pairs))
    for _ in range(iterations):
        root, inverse = _roots(between)
        inner = (w * _roots(root @ (part.cov + ridge) @ root)[0] for part, w in pairs)
        step = np.asarray(sum(inner))
        between = inverse @ step @ step @ inverse
    mean = np.asarray(sum(weight * part.mean for part, weight in pairs))
    return Colors(mean, np.asarray(between - ridge))


def move_colors(pixels: np.ndarray, wanted: Colors, alpha: float = 1.0) -> np.ndarray:
    """Give a photo a painting's colours; see `normapps.style.color.move_colors`.

    Args:
        pixels: (H, W, 3) uint8 sRGB.
        wanted: of the painting.
        alpha: strength, 0 to 1.

    Returns:
        (H, W, 3) uint8.
    """
    own = Colors.of(pixels)
    matrix = _optimal(*(part.cov + _RIDGE * np.eye(3) for part in (own, wanted)))
    matrix = ((1 - alpha) * np.eye(3) + alpha * matrix).astype(np.float32)
    mean = ((1 - alpha) * own.mean + alpha * wanted.mean).astype(np.float32)
    out = np.empty_like(pixels)
    for band in _bands(pixels):
        photo = pixels[band].astype(np.float32) / 255
        moved = (photo - own.mean.astype(np.float32)) @ matrix.T + mean
        out[band] = np.rint(_into_gamut(moved) * 255)
    return out


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


def _bands(pixels: np.ndarray) -> list[slice]:
    rows = max(1, _BAND // pixels.shape[1])
    return [slice(top, top + rows) for top in range(0, pixels.shape[0], rows)]


def _into_gamut(image: np.ndarray) -> np.ndarray:
    """Bring colours into [0, 1], half way between cutting them off and paling them."""
    luma = image @ _WEIGHTS
    pale = _shrunk(np.clip(luma, 0, 1), image - luma)
    return np.asarray(np.clip((np.clip(image, 0, 1) + pale) / 2, 0, 1))


def _with_chroma(output: np.ndarray, content: np.ndarray) -> np.ndarray:
    """Shift each pixel of the content along grey until it has the output's luma."""
    return _shrunk(output @ _WEIGHTS, content - content @ _WEIGHTS)


def _shrunk(luma: np.ndarray, chroma: np.ndarray) -> np.ndarray:
    """Add chroma to luma; where that leaves the gamut, just so much of it that it stays inside."""
    room = np.where(chroma > 0, 1 - luma, luma) / np.maximum(np.abs(chroma), 1e-6)
    return np.asarray(luma + chroma * np.minimum(room.min(2, keepdims=True), 1))


def _transported(output: np.ndarray, content: np.ndarray) -> np.ndarray:
    """Move mean and covariance of the colours to the content's by the optimal map."""
    (own_mean, own), (mean, wanted) = (_moments(x) for x in (output, content))
    matrix = _optimal(own, wanted)
    return np.asarray((output - own_mean) @ matrix.astype(np.float32).T + mean)


def _optimal(own: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The optimal transport between two covariances: (3, 3), symmetric."""
    root, inverse = _roots(own)
    return np.asarray(inverse @ _roots(root @ wanted @ root)[0] @ inverse)


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
