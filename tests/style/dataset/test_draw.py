from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from normapps.style.dataset.draw import number, order, share


def test_a_draw_is_a_published_number() -> None:
    """By `b2sum -l 64`; it may never change, or data sets could not be made again."""
    assert number(0, "style", "cat/a.jpg") == 0x6BE52F57C818E603
    assert number("a", "b") != number("ab")


@given(st.integers(1, 40), st.text())
def test_an_order_has_everything_once(size: int, word: str) -> None:
    assert sorted(order(size, word)) == list(range(size))
    assert list(order(size, word)) == list(order(size, word))


def test_first_draws_and_shares_are_even() -> None:
    firsts = Counter(next(order(4, 0, "style", f"p{i}")) for i in range(4000))
    assert all(abs(found - 1000) < 120 for found in firsts.values())  # 4.4 deviations
    shares = [share(0, "alpha", f"p{i}") for i in range(4000)]
    assert 0 <= min(shares) < 0.01
    assert 0.99 < max(shares) < 1
    assert abs(sum(shares) / 4000 - 0.5) < 0.02


def test_names_that_are_no_text_are_drawn_for() -> None:
    assert number("\udcff.jpg") != number("\udcfe.jpg")
