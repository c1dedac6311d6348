"""A mean and how well it is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev

from ..errors import InputError


@dataclass(frozen=True)
class Estimate:
    """A mean of `count` values with its interval.

    Attributes:
        mean: of the values.
        low, high: the interval; that of `estimate` is symmetric about the mean.
        count: how many values.
    """

    mean: float
    low: float
    high: float
    count: int

    @property
    def margin(self) -> float:
        """Half the interval's width."""
        return (self.high - self.low) / 2


def estimate(values: Sequence[float], confidence: float = 0.95) -> Estimate:
    """Return the mean of independent values with Student's interval.

    Args:
        values: at least two numbers.
        confidence: how often such intervals hold the true mean.

    Raises:
        InputError: fewer than two values, or a confidence outside (0, 1).
    """
    if len(values) < 2:
        raise InputError(f"{len(values)} values: an interval needs at least 2")
    if not 0 < confidence < 1:
        raise InputError(f"confidence {confidence}: must be between 0 and 1")
    mean = fmean(values)
    quantile = _student(len(values) - 1, (1 + confidence) / 2)
    margin = quantile * stdev(values) / math.sqrt(len(values))
    return Estimate(mean, mean - margin, mean + margin, len(values))


def _student(freedom: int, probability: float) -> float:
    """Quantile of Student's t: exact for 1 and 2 degrees of freedom, else by its series.

    Abramowitz & Stegun 1964, 26.7.5, to the fourth order in 1/freedom.
    """
    if freedom == 1:
        return math.tan(math.pi * (probability - 0.5))
    if freedom == 2:
        spread = 2 * probability - 1
        return spread * math.sqrt(2 / (1 - spread * spread))
    z = NormalDist().inv_cdf(probability)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / float(freedom) ** power for power, term in enumerate(terms, 1))
