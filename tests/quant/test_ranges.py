"""Histograms that do not depend on order, and ranges against quantiles and brute force."""

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from normapps.errors import InputError
from normapps.quant.ranges import METHODS, Histogram, limits_of, range_of

FLOATS = st.floats(-1e6, 1e6, width=32)
VALUES = arrays.arrays(np.float32, st.integers(1, 60), elements=FLOATS)


def histogram_of(*parts: np.ndarray) -> Histogram:
    found = Histogram()
    for part in parts:
        found.add(part)
    return found


def same(one: Histogram, other: Histogram) -> bool:
    ends = ("low", "high", "first", "level", "zeros")
    return all(getattr(one, each) == getattr(other, each) for each in ends) and np.array_equal(
        one.counts, other.counts
    )


@given(st.lists(VALUES, min_size=1, max_size=5), st.randoms())
def test_neither_order_nor_batches_matter(parts: list[np.ndarray], random: object) -> None:
    whole = histogram_of(np.concatenate(parts))
    shuffled = list(parts)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert same(histogram_of(*shuffled), whole)


@given(VALUES, VALUES)
def test_merging_halves_is_the_whole(one: np.ndarray, other: np.ndarray) -> None:
    a, b = histogram_of(one), histogram_of(other)
    kept = histogram_of(one)
    assert same(a.merge(b), histogram_of(one, other))
    assert same(a, kept)
    assert same(Histogram().merge(a), a)


@given(VALUES)
def test_every_value_lies_in_its_bin(values: np.ndarray) -> None:
    found = histogram_of(values)
    width = math.ldexp(1.0, found.level)
    edges = (found.first + np.arange(len(found.counts) + 1)) * width
    wanted, _ = np.histogram(values.astype(np.float64), edges)
    wanted[-1] -= np.count_nonzero(values == edges[-1])  # numpy's last bin is closed
    np.testing.assert_array_equal(found.counts, wanted)
    assert found.count == values.size
    assert found.zeros == np.count_nonzero(values == 0)
    assert (found.low, found.high) == (values.min(), values.max())
    assert len(found.counts) <= 4096


def test_bins_are_fine_enough_and_large_tensors_are_counted_whole() -> None:
    values = np.random.default_rng(0).standard_normal((3, 1 << 20)).astype(np.float32)
    found = histogram_of(values)
    assert found.count == values.size
    assert 2048 <= len(found.counts) <= 4096
    at = (found.counts @ found.centres()) / found.count
    assert at == pytest.approx(values.mean(dtype=np.float64), abs=1e-5)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int32, np.uint8])
def test_any_number_type_counts_alike(dtype: type) -> None:
    values = np.array([0, 1, 2, 3, 3, 100])
    assert same(histogram_of(values.astype(dtype)), histogram_of(values.astype(np.float32)))


@pytest.mark.parametrize("value", [0.0, 5.0, -3.0, 1e-42, 3e38, -3e38])
def test_one_value_and_extreme_ones_have_a_range(value: float) -> None:
    values = np.full(4, value, dtype=np.float32)
    exact = (float(values[0]), float(values[0]))
    assert range_of(histogram_of(values)) == exact
    assert range_of(histogram_of(values), "percentile") == exact
    low, high = range_of(histogram_of(values), "mse")
    assert low <= 0 <= high
    wide = histogram_of(values, np.array([-3e38, 3e38], dtype=np.float32))
    assert wide.count == 6
    assert all(math.isfinite(each) for name in METHODS for each in range_of(wide, name))


def test_the_percentile_is_numpys_within_a_bin() -> None:
    values = np.random.default_rng(1).standard_t(3, 200_000)
    found = histogram_of(values)
    for percentile in (99.99, 99.0, 80.0):
        beyond = (100 - percentile) / 2
        wanted = np.percentile(values, [beyond, 100 - beyond])
        got = range_of(found, "percentile", percentile)
        np.testing.assert_allclose(got, wanted, atol=1.5 * math.ldexp(1.0, found.level))
    assert range_of(found, "percentile", 100) == range_of(found, "min-max")


def squared_error(values: np.ndarray, times: np.ndarray, low: float, high: float) -> float:
    scale = (high - low) / 255
    zero = np.round(-low / scale)
    rounded = np.clip(np.round(values / scale) + zero, 0, 255)
    return float(times @ np.square((rounded - zero) * scale - values))


@pytest.mark.parametrize("kind", ["normal", "outlier", "heavy", "relu", "relu6", "one-sided"])
def test_the_least_squares_range_is_that_of_brute_force(kind: str) -> None:
    random = np.random.default_rng(2)
    values = {
        "normal": random.standard_normal(3000),
        "outlier": random.standard_normal(3000),
        "heavy": random.standard_t(4, 3000),
        "relu": np.maximum(random.standard_t(4, 3000), 0),
        "relu6": np.clip(3 * random.standard_normal(3000), 0, 6),
        "one-sided": -random.exponential(size=3000) - 0.2,
    }[kind]
    times = np.full(len(values), 300)
    if kind == "outlier":  # in a million values one far out
        values[0], times[0] = 12, 1
    low, high = range_of(histogram_of(np.repeat(values, times)), "mse")
    whole = (min(values.min(), 0), max(values.max(), 0))
    lows, highs = (np.unique(np.arange(1, 41) / 40 * each) for each in whole)
    best = min(squared_error(values, times, *each) for each in itertools.product(lows, highs))
    assert squared_error(values, times, low, high) <= 1.01 * best
    assert whole[0] <= low <= 0 <= high <= whole[1]
    if kind == "outlier":
        assert high < 8
        assert best < 0.6 * squared_error(values, times, *whole)


def test_zeros_do_not_move_the_least_squares_range() -> None:
    values = np.append(np.random.default_rng(3).exponential(size=100_000), 14.0)
    zeros = histogram_of(np.zeros(1 << 16))
    for _ in range(20):
        zeros = zeros.merge(zeros)
    assert zeros.zeros == zeros.count == 1 << 36
    alone = histogram_of(values, np.zeros(1))
    assert range_of(alone.merge(zeros), "mse") == range_of(alone, "mse")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_must_be_finite(value: float) -> None:
    values = np.array([0.0, value, 1.0])
    with pytest.raises(InputError, match="must be finite"):
        histogram_of(values)
    with pytest.raises(InputError, match="must be finite"):
        limits_of(values)


def test_what_cannot_be_asked_is_named() -> None:
    found = histogram_of(np.arange(3.0))
    with pytest.raises(InputError, match="unknown range method 'ms'; did you mean 'mse'"):
        range_of(found, "ms")
    with pytest.raises(InputError, match="percentile 0"):
        range_of(found, "percentile", 0)
    with pytest.raises(InputError, match="at least one"):
        range_of(Histogram())
    with pytest.raises(InputError, match="at least one"):
        range_of(histogram_of(np.zeros(0)), "mse")


def test_loads_no_torch() -> None:
    code = (
        "import sys, normapps.quant.ranges, normapps.quant.calibration, normapps.quant.int8,"
        " normapps.quant.kernels; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
