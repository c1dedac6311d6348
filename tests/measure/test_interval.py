from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from normapps.errors import InputError
from normapps.measure.interval import estimate


@pytest.mark.parametrize(
    ("count", "rel"), [(2, 1e-9), (3, 1e-9), (4, 0.01), (5, 3e-3), (8, 3e-4), (30, 1e-6)]
)
def test_the_interval_is_students(count: int, rel: float) -> None:
    values = np.random.default_rng(count).normal(3, 2, count).tolist()
    got = estimate(values)
    want = stats.t.interval(0.95, count - 1, np.mean(values), stats.sem(values))
    assert got.mean == pytest.approx(np.mean(values))
    assert got.margin == pytest.approx((want[1] - want[0]) / 2, rel=rel)
    assert (got.low + got.high) / 2 == pytest.approx(got.mean)
    assert got.count == count


def test_more_confidence_is_a_wider_interval() -> None:
    values = [1.0, 2.0, 4.0, 8.0, 9.0, 3.0, 5.0]
    want = stats.t.interval(0.8, 6, np.mean(values), stats.sem(values))
    assert estimate(values, 0.8).low == pytest.approx(want[0], rel=1e-3)
    assert estimate(values, 0.8).margin < estimate(values, 0.99).margin


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=20))
def test_the_mean_lies_inside(values: list[float]) -> None:
    got = estimate(values)
    assert got.low <= got.mean <= got.high


def test_what_gives_no_interval_is_refused() -> None:
    with pytest.raises(InputError, match="1 values: an interval needs at least 2"):
        estimate([1.0])
    with pytest.raises(InputError, match=r"confidence 1\.0: must be between 0 and 1"):
        estimate([1.0, 2.0], 1.0)
