"""Ranges of activations: how the values of a tensor lie, and what of them an 8-bit grid covers.

Loads numpy only, so that torch's and onnxruntime's tensors are measured by the same code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from ..errors import InputError, unknown

METHODS = ("min-max", "percentile", "mse")
"""`min-max` covers all; `percentile` all but the outermost values; `mse` what costs least."""

_BINS = 4096
_CHUNK = 1 << 20
"""Values binned at a time: the work space stays some megabytes, however large the tensor."""

_FINEST = 20
"""A bin is no finer than 2^-20 of the largest value: a grid that holds 0 never needs it finer."""

_LOWEST = -200
"""The finest level of all: float32's smallest values are 2^-149."""

_CANDIDATES = 128
_ROUNDS = 8
_LEVELS = 255


@dataclass
class Histogram:
    """How often which values occur: streaming, and mergeable without loss of any kind.

    A bin is [i·2^level, (i+1)·2^level) for an integer i; the level is the finest at which 4096
    bins hold every value, so two bins become one when the range has grown too wide. Hence the
    histogram depends on the values alone, not on their order or batches: that of two halves,
    merged, is that of the whole, bin by bin.

    Attributes:
        low, high: smallest and largest value, exactly; inf and −inf while it is empty.
        counts: values a bin, (number of bins,) int64.
        first: the i of the first bin.
        level: the binary logarithm of a bin's width.
        zeros: values that are exactly 0 (of a ReLU, often half of them).
    """

    low: float = math.inf
    high: float = -math.inf
    counts: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    first: int = 0
    level: int = 0
    zeros: int = 0

    @property
    def count(self) -> int:
        """Number of values counted."""
        return int(self.counts.sum())

    def add(self, values: np.ndarray) -> None:
        """Count the values of an array of any shape and number type.

        Raises:
            InputError: a value is nan or infinite.
        """
        flat = np.asarray(values).reshape(-1)
        if flat.dtype == np.float16 or flat.dtype.kind != "f":
            flat = flat.astype(np.float64)
        if not flat.size:
            return
        low, high = limits_of(flat)
        self._widen(low, high)
        self.zeros += flat.size - int(np.count_nonzero(flat))
        for start in range(0, flat.size, _CHUNK):
            found = _bins_of(flat[start : start + _CHUNK], self.level) - self.first
            self.counts += np.bincount(found, minlength=len(self.counts))

    def merge(self, other: Histogram) -> Histogram:
        """Return the histogram of the values of both; neither is changed."""
        both = Histogram()
        for each in (self, other):
            if each.count:
                both._widen(each.low, each.high)
        for each in (self, other):
            both._take(each)
            both.zeros += each.zeros
        return both

    def centres(self) -> np.ndarray:
        """Return the middle of each bin, (number of bins,) float64, of the part that has values."""
        edges = (self.first + np.arange(len(self.counts) + 1)) * math.ldexp(1.0, self.level)
        edges = np.clip(edges, self.low, self.high)
        return np.asarray((edges[:-1] + edges[1:]) / 2)

    def _widen(self, low: float, high: float) -> None:
        """Make bins for values from low to high; what was counted is kept."""
        before = Histogram(self.low, self.high, self.counts, self.first, self.level)
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.level = _level_of(self.low, self.high)
        self.first = _bin_of(self.low, self.level)
        bins = _bin_of(self.high, self.level) - self.first + 1
        self.counts = np.zeros(bins, dtype=np.int64)
        self._take(before)

    def _take(self, other: Histogram) -> None:
        """Add the counts of a histogram whose range lies in this one's."""
        indices = other.first + np.arange(len(other.counts))
        coarse = (indices >> min(self.level - other.level, 62)) - self.first
        filled = other.counts > 0
        np.add.at(self.counts, coarse[filled], other.counts[filled])


def limits_of(values: np.ndarray) -> tuple[float, float]:
    """Return the smallest and the largest of at least one value.

    Raises:
        InputError: a value is nan or infinite.
    """
    low, high = float(values.min()), float(values.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise InputError(f"values from {low} to {high}: must be finite to have a range")
    return low, high


def range_of(
    histogram: Histogram, method: str = "min-max", percentile: float = 99.99
) -> tuple[float, float]:
    """Return the (low, high) that a uint8 grid should cover; what lies beyond is clipped.

    Args:
        histogram: of at least one value.
        method: one of `METHODS`. `mse` takes the range whose grid, 0 among its 256 values, gives
            the least squared error of rounding and clipping together; 0 lies in that range.
        percentile: how many of 100 values `percentile` keeps; of those beyond, half lie below the
            range and half above it.

    Raises:
        InputError: an unknown method, a percentile not in (0, 100], or an empty histogram.
    """
    if method not in METHODS:
        raise unknown("range method", method, METHODS)
    if not 0 < percentile <= 100:
        raise InputError(f"percentile {percentile}: must be above 0 and at most 100")
    if not histogram.count:
        raise InputError("no values: a range needs at least one")
    if method == "mse":
        return _least_error(histogram)
    if method == "percentile":
        beyond = (1 - percentile / 100) / 2
        return _quantile(histogram, beyond), _quantile(histogram, 1 - beyond)
    return histogram.low, histogram.high


def _level_of(low: float, high: float) -> int:
    """Find the finest level at which the bins suffice."""
    largest = max(abs(low), abs(high))
    spread = high / (_BINS - 1) - low / (_BINS - 1)
    level = max(_exponent(largest) - _FINEST, _exponent(spread) - 1, _LOWEST)
    while _bin_of(high, level) - _bin_of(low, level) >= _BINS:
        level += 1
    return level


def _exponent(value: float) -> int:
    return math.frexp(value)[1] if value else _LOWEST


def _bin_of(value: float, level: int) -> int:
    return math.floor(math.ldexp(value, -level))


def _bins_of(values: np.ndarray, level: int) -> np.ndarray:
    # exact: a power of two, in float64 that does not lose the sign of float32's smallest values
    scaled = np.multiply(values, math.ldexp(1.0, -level), dtype=np.float64)
    indices: np.ndarray = np.floor(scaled, out=scaled).astype(np.int32)  # at most 2^_FINEST
    return indices


def _quantile(histogram: Histogram, share: float) -> float:
    """Find the value below which a share of all lies, linearly within its bin."""
    below = np.concatenate([[0], np.cumsum(histogram.counts)])
    wanted = share * below[-1]
    index = int(np.clip(np.searchsorted(below, wanted, side="right") - 1, 0, len(below) - 2))
    inside = (wanted - below[index]) / max(histogram.counts[index], 1)
    value = math.ldexp(histogram.first + index + min(inside, 1.0), histogram.level)
    return min(max(value, histogram.low), histogram.high)


def _least_error(histogram: Histogram) -> tuple[float, float]:
    """Move one end of the range at a time to where the error is least, until neither moves."""
    weights = histogram.counts.astype(np.float64)
    if histogram.zeros:
        weights[-histogram.first] -= histogram.zeros  # 0 is on every grid
    centres, weights = histogram.centres()[weights > 0], weights[weights > 0]
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    shares = np.arange(1, _CANDIDATES + 1) / _CANDIDATES
    lows, highs = low * shares, high * shares
    for _ in range(_ROUNDS):
        before = (low, high)
        high = float(highs[np.argmin([_error(centres, weights, low, each) for each in highs])])
        low = float(lows[np.argmin([_error(centres, weights, each, high) for each in lows])])
        if (low, high) == before:
            break
    return low, high


def _error(centres: np.ndarray, weights: np.ndarray, low: float, high: float) -> float:
    """Squared error of rounding values to the uint8 grid over [low, high]."""
    scale = (high - low) / _LEVELS
    if not scale:
        return float(weights @ np.square(centres))
    zero = round(-low / scale)
    steps = np.clip(np.rint(centres / scale), -zero, _LEVELS - zero)
    return float(weights @ np.square(steps * scale - centres))
