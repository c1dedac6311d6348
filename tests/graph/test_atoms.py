"""Ties as connected components, and axes, beside a plain union-find."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from normapps.graph.atoms import Axis, Ledger, joined


def _plain(count: int, edges: list[tuple[int, int]]) -> list[int]:
    """Component minima by repeated sweeps: slow and obvious."""
    label = list(range(count))
    for _ in range(count):
        for first, second in edges:
            label[first] = label[second] = min(label[first], label[second])
    return label


@given(
    st.lists(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=8), max_size=4)
)
def test_roots_are_connected_components(batches: list[list[tuple[int, int]]]) -> None:
    """Also where roots are asked for between ties, and atoms are added after them."""
    ledger = Ledger()
    ledger.fresh(12)
    for batch in batches:
        pairs = np.array(batch, np.int64).reshape(-1, 2)
        ledger.tie(pairs[:, 0], pairs[:, 1])
        ledger.roots()
    ledger.fresh(2)
    edges = [edge for batch in batches for edge in batch]
    assert ledger.roots().tolist() == [*_plain(12, edges), 12, 13]


def test_a_tie_broadcasts() -> None:
    ledger = Ledger()
    axis = ledger.fresh(6)
    rows = axis.ids.reshape(2, 3)
    ledger.tie(rows, rows[:1])
    assert ledger.roots().tolist() == [0, 1, 2, 0, 1, 2]


def test_axes_keep_silence_with_their_channels() -> None:
    first = Axis(np.array([4, 5, 6]), np.array([True, False, True]))
    second = Ledger().fresh(2, silent=True)
    both = joined([first.take(slice(1, None)), second])
    assert both.ids.tolist() == [5, 6, 0, 1]
    assert both.silent.tolist() == [False, True, True, True]
    assert first.quiet(np.array([True, True, False])).silent.tolist() == [True, False, False]
    assert not first.heard().silent.any()
