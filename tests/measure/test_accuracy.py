"""Intervals of accuracies: textbook values, coverage by simulation, edge cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from normapps.errors import InputError
from normapps.measure.accuracy import accuracy, paired_difference


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [  # Newcombe 1998, Statistics in Medicine 17:857, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilsons_interval_has_the_published_values(
    correct: int, total: int, low: float, high: float
) -> None:
    found = accuracy(correct, total)
    assert found.mean == correct / total
    assert found.low == pytest.approx(low, abs=5e-5)
    assert found.high == pytest.approx(high, abs=5e-5)


@given(st.integers(1, 500), st.data())
def test_wilsons_ends_solve_the_score_equation(total: int, data: st.DataObject) -> None:
    correct = data.draw(st.integers(0, total))
    found = accuracy(correct, total)
    assert 0 <= found.low <= found.mean <= found.high <= 1
    for end in {found.low, found.high} - {0.0, 1.0, found.mean}:
        deviation = math.sqrt(end * (1 - end) / total)
        assert abs(found.mean - end) / deviation == pytest.approx(1.959964, rel=1e-4)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_a_paired_difference_is_the_difference_of_the_shares(
    answers: list[tuple[bool, bool]],
) -> None:
    before, after = (torch.tensor([pair[side] for pair in answers]) for side in (0, 1))
    found = paired_difference(before, after)
    assert found.mean == pytest.approx(float(after.double().mean() - before.double().mean()))
    assert -1 <= found.low <= found.mean <= found.high <= 1
    turned = paired_difference(after, before)
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low))


def test_the_paired_interval_is_bonetts_and_prices() -> None:
    before = torch.tensor([True] * 40 + [False] * 60)
    after = torch.tensor([True] * 35 + [False] * 5 + [True] * 15 + [False] * 45)
    up, down = 16 / 102, 6 / 102  # 15 gained and 5 lost of 100, one added to each
    half = 1.959964 * math.sqrt((up + down - (up - down) ** 2) / 102)
    found = paired_difference(before, after)
    assert found.mean == pytest.approx(0.10)
    assert (found.low, found.high) == pytest.approx((up - down - half, up - down + half), abs=1e-6)


def test_the_paired_interval_covers_what_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        drawn = torch.from_numpy(rng.choice(4, 120, p=[0.6, 0.2, 0.12, 0.08]))
        found = paired_difference((drawn == 0) | (drawn == 3), (drawn == 0) | (drawn == 2))
        hits += found.low <= 0.04 <= found.high
    assert 0.92 <= hits / 400 <= 0.98


def test_one_picture_decides_nothing() -> None:
    found = paired_difference(torch.tensor([False]), torch.tensor([True]))
    assert found.low < 0 < found.high


def test_what_fits_no_counts_is_refused() -> None:
    for correct, total in ((1, 0), (3, 2), (-1, 2)):
        with pytest.raises(InputError, match="answer"):
            accuracy(correct, total)
    with pytest.raises(InputError, match=r"confidence 1\.0"):
        accuracy(1, 2, 1.0)
    with pytest.raises(InputError, match="one length"):
        paired_difference(torch.ones(3).bool(), torch.ones(2).bool())
    with pytest.raises(InputError, match="one length"):
        paired_difference(torch.ones(0).bool(), torch.ones(0).bool())
