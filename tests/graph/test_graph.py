"""ChannelGraph's queries, on a graph made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from normapps.graph.graph import Atoms, ChannelGraph, Cost, Cut, Group


def _ids(*values: int) -> Atoms:
    return np.array(values, np.int64)


@pytest.fixture
def graph() -> ChannelGraph:
    """A 3×3 conv 2 → 4, its batch norm, a 1×1 conv 4 → 3 that is the output, at 5×5 positions."""
    return ChannelGraph(
        count=7,
        slots={
            "a.weight": (_ids(0, 1, 2, 3), None, None, None),
            "bn.weight": (_ids(0, 1, 2, 3),),
            "bn.bias": (_ids(0, 1, 2, 3),),
            "bn.running_mean": (_ids(0, 1, 2, 3),),
            "b.weight": (_ids(4, 5, 6), _ids(0, 1, 2, 3), None, None),
        },
        shapes={
            "a.weight": (4, 2, 3, 3),
            "bn.weight": (4,),
            "bn.bias": (4,),
            "bn.running_mean": (4,),
            "b.weight": (3, 4, 1, 1),
        },
        scales={"bn": _ids(0, 1, 2, 3)},
        pinned={3: "is read elsewhere", 4: "an output", 5: "an output", 6: "an output"},
        costs=(
            Cost("a", "a.weight", 25, 4, 2, _ids(0, 1, 2, 3), None, kernel=9),
            Cost("b", "b.weight", 25, 3, 4, _ids(4, 5, 6), _ids(0, 1, 2, 3)),
        ),
        groups=(Group("bn", _ids(0, 1, 2), ("bn",)),),
        parameter_names=("a.weight", "bn.weight", "bn.bias", "b.weight"),
    )


def _keep(count: int, *gone: int) -> np.ndarray:
    keep = np.ones(count, bool)
    keep[list(gone)] = False
    return keep


def test_whole_network(graph: ChannelGraph) -> None:
    assert graph.macs() == 25 * (9 * 4 * 2 + 3 * 4)
    assert graph.parameters() == 4 * 2 * 9 + 4 + 4 + 3 * 4
    assert graph.layer_channels() == {"bn": 4}


def test_what_is_left(graph: ChannelGraph) -> None:
    keep = _keep(7, 0, 2)
    assert graph.macs(keep) == 25 * (9 * 2 * 2 + 3 * 2)
    assert graph.layer_macs(keep) == {"a": 25 * 36, "b": 25 * 6}
    assert graph.parameters(keep) == 2 * 2 * 9 + 2 + 2 + 3 * 2
    assert graph.layer_channels(keep) == {"bn": 2}
    assert graph.shape("b.weight", keep) == (3, 2, 1, 1)


def test_free_is_scaled_and_not_pinned(graph: ChannelGraph) -> None:
    assert graph.free().tolist() == [True, True, True, False, False, False, False]


def test_groups_narrow_or_go() -> None:
    narrow = Cost("c", "c.weight", 1, 4, 2, _ids(2, 3, 2, 3), _ids(0, 1), 1, 2, _ids(0, 1, 0, 1))
    assert narrow.kept_groups(_keep(4, 1)) == 2
    whole = Cost("c", "c.weight", 1, 4, 2, _ids(0, 0, 1, 1), None, 1, 2, _ids(0, 0, 1, 1))
    assert whole.kept_groups(_keep(2, 1)) == 1
    assert whole.macs(_keep(2, 1)) == 2 * 2


def test_cut_counts_its_pieces() -> None:
    cut = Cut("block", (2, 3), (_ids(0, 1), _ids(2, 3, 4)))
    assert cut.total == 5
