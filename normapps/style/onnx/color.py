"""Keeping a photo's colours, in numpy: what `normapps.style.color` does in torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ...data.images import LUMA
from ...errors import unknown

_WEIGHTS = np.array(LUMA, np.float32)[:, None]

_MODES = ("luma", "transport")

_RIDGE, _KEPT_RIDGE = 1e-3, 1e-4
"""As `normapps.style.color` has them: of a painting's colours, and of the photo's own."""

_BAND = 1 << 19
"""Pixels that are computed on at once."""


Move = Callable[[np.ndarray], np.ndarray]


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
    move = _map(Colors.of(pixels), wanted, _RIDGE, alpha)
    out = np.empty_like(pixels)
    for band in _bands(pixels):
        out[band] = np.rint(_into_gamut(move(pixels[band].astype(np.float32) / 255)) * 255)
    return out


def color_move(pixels: np.ndarray, wanted: Colors, alpha: float = 1.0) -> Move:
    """Return what gives parts of a photo, (h, w, 3) uint8, a painting's colours; see `ColorMoves`.

    Args:
        pixels: (H, W, 3) uint8 sRGB, the whole.
        wanted, alpha: see `move_colors`.
    """
    move = _map(Colors.of(pixels), wanted, _RIDGE, alpha)
    return lambda part: np.clip(move(part.astype(np.float32) / 255), 0, 1)


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
    move = None
    if mode == "transport":
        move = _map(Colors.of(output), Colors.of(content), _KEPT_RIDGE)
    out = np.empty_like(output)
    for band in _bands(output):
        painted, photo = (x[band].astype(np.float32) / 255 for x in (output, content))
        colored = _with_chroma(painted, photo) if move is None else move(painted)
        out[band] = np.rint(np.clip(colored, 0, 1) * 255)
    return out


def _map(own: Colors, wanted: Colors, ridge: float, alpha: float = 1.0) -> Move:
    """What moves colours (…, 3) from mean and covariance to others by the optimal map."""
    eye = np.eye(3)
    matrix = (1 - alpha) * eye + alpha * _optimal(own.cov + ridge * eye, wanted.cov + ridge * eye)
    mean = (1 - alpha) * own.mean + alpha * wanted.mean
    turned, center, goal = (x.astype(np.float32) for x in (matrix.T, own.mean, mean))
    return lambda colors: np.asarray((colors - center) @ turned + goal)


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


def _optimal(own: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The optimal transport between two covariances: (3, 3), symmetric."""
    root, inverse = _roots(own)
    return np.asarray(inverse @ _roots(root @ wanted @ root)[0] @ inverse)


def _roots(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Σ^½ and Σ^-½ of a symmetric matrix."""
    values, vectors = np.linalg.eigh(matrix)
    roots = np.sqrt(np.maximum(values, np.finfo(float).eps * values[-1]))
    return (vectors * roots) @ vectors.T, (vectors / roots) @ vectors.T
