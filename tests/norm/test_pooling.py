"""Pooling instance moments: exactly the moments that the activation has."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from normapps.errors import InputError
from normapps.norm import BATCH, INSTANCE, LAYER, POSITION, Moments, Partition, groups
from normapps.norm.pooling import pool

both = pytest.mark.parametrize("partition", [BATCH, LAYER], ids=lambda partition: partition.kind)


@both
@given(
    shape=st.lists(st.integers(1, 5), min_size=2, max_size=5),
    mean=st.floats(-100, 100),
    seed=st.integers(0, 10**6),
)
def test_pooled_moments_are_the_measured_ones(
    partition: Partition, shape: list[int], mean: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64) + mean
    found, want = pool(Moments.of(x, INSTANCE), partition), Moments.of(x, partition)
    assert found.partition == partition
    for part in ("count", "mean", "var"):
        torch.testing.assert_close(getattr(found, part), getattr(want, part))


def test_samples_weigh_as_much_as_they_count() -> None:
    x = torch.randn(3, 2, 4, 5, dtype=torch.float64)
    weight = torch.rand(3, 1, 4, 5, dtype=torch.float64)
    weight[2] = 0  # a sample without a region counts for nothing
    own = Moments.of(x, INSTANCE, weight=weight)
    found, want = pool(own, BATCH), Moments.of(x, BATCH, weight=weight)
    for part in ("count", "mean", "var"):
        torch.testing.assert_close(getattr(found, part), getattr(want, part))
    none = pool(Moments.of(x, INSTANCE, weight=torch.zeros_like(weight)), BATCH)
    assert torch.equal(none.var, torch.zeros(1, 2, dtype=torch.float64))


@both
def test_nothing_is_lost_beside_a_large_mean(partition: Partition) -> None:
    x = torch.randn(4, 3, 16, 16) * 0.1 + 1000
    exact = Moments.of(x.double(), partition)
    found = pool(Moments.of(x, INSTANCE), partition)
    torch.testing.assert_close(found.var.double(), exact.var, rtol=1e-3, atol=0)


@both
def test_gradients_pass(partition: Partition) -> None:
    def pooled(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        moments = pool(Moments.of(x, INSTANCE), partition)
        return moments.mean, moments.var

    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(pooled, x)


def test_other_partitions_are_refused() -> None:
    x = torch.rand(2, 4, 3)
    for source, target in ((BATCH, LAYER), (INSTANCE, POSITION), (INSTANCE, groups(2))):
        with pytest.raises(InputError, match=f"'{source.kind}' moments to '{target.kind}'"):
            pool(Moments.of(x, source), target)
