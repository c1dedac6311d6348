"""Partitions: every element lands in its group, and comes back."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from normapps.errors import InputError
from normapps.norm import (
    BATCH,
    INSTANCE,
    LAYER,
    POSITION,
    Partition,
    channel_groups,
    ghost,
    groups,
)

ALL = [BATCH, INSTANCE, LAYER, POSITION, groups(3), ghost(2), channel_groups(3)]
by_kind = pytest.mark.parametrize("partition", ALL, ids=lambda partition: partition.kind)


def _numbered(*shape: int) -> torch.Tensor:
    return torch.arange(math.prod(shape), dtype=torch.float64).reshape(shape)


@by_kind
@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 5), (4, 6, 3, 5), (2, 3, 2, 3, 2)])
def test_split_follows_the_definition(
    partition: Partition, shape: tuple[int, ...], labels: Callable[..., Any]
) -> None:
    x = _numbered(*shape)
    want = labels(partition, shape)
    got = partition.split(x)
    assert got.shape == partition.shape(shape)
    flat = x.numpy().reshape(want.group.shape)
    for g in range(got.shape[0]):
        samples = []
        for d in range(got.shape[1]):
            inside = (want.group == g) & (want.dimension == d)
            row = got[g, d].numpy()
            assert sorted(row) == sorted(flat[inside])
            samples.append(want.sample.reshape(-1)[row.astype(int)])
        # the m-th sample of every dimension is one and the same
        assert all(np.array_equal(samples[0], other) for other in samples)


@st.composite
def _cases(draw: st.DrawFn) -> tuple[Partition, torch.Tensor]:
    size = draw(st.integers(1, 3))
    n, c = draw(st.integers(1, 3)) * size, draw(st.integers(1, 3)) * size
    space = draw(st.lists(st.integers(1, 4), max_size=3))
    kind = draw(st.sampled_from(["batch", "instance", "layer", "position"]))
    sized = draw(st.sampled_from([groups, ghost, channel_groups]))
    partition = draw(st.sampled_from([Partition(kind), sized(size)]))
    return partition, _numbered(n, c, *space)


@given(_cases())
def test_join_undoes_split(case: tuple[Partition, torch.Tensor]) -> None:
    partition, x = case
    assert torch.equal(partition.join(partition.split(x), x.shape), x)
    if x.dim() == 4:
        turned = x.to(memory_format=torch.channels_last)
        assert torch.equal(partition.join(partition.split(turned), x.shape), x)


@given(_cases())
def test_the_view_is_reduced_to_the_rows_in_order_without_a_copy(
    case: tuple[Partition, torch.Tensor],
) -> None:
    partition, whole = case
    x = whole[..., ::2] if whole.dim() > 2 else whole
    values, axes = partition.view(x)
    rows = partition.split(x).sum(2)
    assert torch.equal(values.sum(axes).reshape(rows.shape), rows)
    assert values.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()


@by_kind
def test_rows_reach_the_elements_of_their_row(partition: Partition) -> None:
    x = _numbered(4, 6, 3, 5)
    g, d, m = partition.shape(x.shape)
    rows = torch.rand(g, d)
    values, _ = partition.view(x)
    spread = partition.rows(rows, x.shape).expand(values.shape).reshape(x.shape)
    assert torch.equal(partition.split(spread), rows.unsqueeze(2).expand(g, d, m))


@by_kind
def test_rows_of_one_group_reach_every_group(partition: Partition) -> None:
    g, d, _ = partition.shape((4, 6, 3, 5))
    one = torch.rand(1, d)
    want = partition.rows(one.expand(g, d), (4, 6, 3, 5))
    assert torch.equal(partition.rows(one, (4, 6, 3, 5)), want)


@pytest.mark.parametrize("shape", [(3, 6), (4, 5), (4, 1), (1, 5)])
def test_rows_that_fit_nothing_are_refused(shape: tuple[int, int]) -> None:
    message = rf"moments of {shape[0]} x {shape[1]} .* 'instance' needs 4 x 6 or 1 x 6"
    with pytest.raises(InputError, match=message):
        INSTANCE.rows(torch.ones(shape), (4, 6, 3, 5))


@pytest.mark.parametrize(
    ("partition", "shape", "message"),
    [
        (groups(4), (2, 6, 3), "group size 4 does not divide 6 channels"),
        (channel_groups(4), (2, 6, 3), "channel_group size 4 does not divide 6 channels"),
        (ghost(2), (3, 6, 3), "ghost size 2 does not divide a batch of 3"),
        (BATCH, (5,), r"shape \(5,\): needs \(N, C, ...\)"),
        (INSTANCE, (0, 3, 4, 4), r"shape \(0, 3, 4, 4\): needs .* without an empty axis"),
        (INSTANCE, (2, 3, 0, 4), "without an empty axis"),
    ],
)
def test_shapes_that_do_not_split(
    partition: Partition, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        partition.split(torch.zeros(shape))


def test_partitions_that_make_no_sense() -> None:
    with pytest.raises(InputError, match="unknown partition 'bacth'; did you mean 'batch'"):
        Partition("bacth")
    with pytest.raises(InputError, match="size 0: must be at least 1"):
        groups(0)
    with pytest.raises(InputError, match="size 4: 'layer' takes none"):
        Partition("layer", 4)


def test_partitions_are_values() -> None:
    assert groups(2) == Partition("group", 2)
    assert len({groups(2), Partition("group", 2), ghost(2)}) == 2
