"""Instance moments of one picture's features in numpy, as `normapps.norm` has them in torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

EPS = 1e-5
"""Added to variances, as in `normapps.norm.adain`."""


@dataclass(frozen=True, eq=False)
class Level:
    """Moments of the C channels of one adaptive level.

    Attributes:
        count: number of positions behind them, or their sum of weights.
        mean, var: (C,) float32; the variance is the biased one.
    """

    count: float
    mean: np.ndarray
    var: np.ndarray

    @classmethod
    def of(cls, x: np.ndarray, weight: np.ndarray | None = None) -> Level:
        """Measure features, two-pass.

        Args:
            x: (1, C, H, W) float32.
            weight: (H, W) share with which a position counts; None: all alike.
        """
        values = x.reshape(x.shape[1], -1)
        share = None if weight is None else weight.ravel() / weight.sum()
        mean = values.mean(1) if share is None else values @ share
        values = values - mean[:, None]
        np.square(values, out=values)
        var = values.mean(1) if share is None else values @ share
        count = values.shape[1] if weight is None else weight.sum()
        return cls(float(count), mean, var)

    def std(self, eps: float = 0.0) -> np.ndarray:
        """Return sqrt(var + eps)."""
        return np.sqrt(self.var + np.float32(eps))

    def merge(self, other: Level) -> Level:
        """Return the moments of all positions together (Chan et al. 1983)."""
        count = self.count + other.count
        share = np.float32(other.count / count)
        shift = other.mean - self.mean
        between = share * (1 - share) * np.square(shift)
        return Level(
            count, self.mean + share * shift, self.var + share * (other.var - self.var) + between
        )


Levels = tuple[Level, Level]
"""Moments at ¼ and ⅛ resolution."""


def mix(parts: Sequence[Level], weights: Sequence[float]) -> Level:
    """Average means and deviations, as `normapps.norm.mix` does by its rule `std`.

    Args:
        parts: of equal shape; the counts are added.
        weights: one a part, of sum 1.
    """
    shares = [np.float32(weight) for weight in weights]
    mean = sum((w * part.mean for w, part in zip(shares, parts, strict=True)), np.float32(0))
    std = sum((w * part.std() for w, part in zip(shares, parts, strict=True)), np.float32(0))
    return Level(sum(part.count for part in parts), np.asarray(mean), np.square(std))


def adain(own: Level, wanted: Level) -> tuple[np.ndarray, np.ndarray]:
    """Return scale and shift, (1, C, 1, 1) each, that give features of moments `own` others."""
    scale = np.sqrt((wanted.var + np.float32(EPS)) / (own.var + np.float32(EPS)))
    shift = wanted.mean - own.mean * scale
    return scale.reshape(1, -1, 1, 1), shift.reshape(1, -1, 1, 1)


def numbers_of(style: Levels) -> np.ndarray:
    """Return what the network's modulation reads: (1, 2·(width + deep)) means and deviations."""
    return np.concatenate([x for part in style for x in (part.mean, part.std(EPS))])[None]
