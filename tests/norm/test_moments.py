"""Moments: what they measure, that merging is exact, and how they mix."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from normapps.errors import InputError
from normapps.norm import (
    BATCH,
    INSTANCE,
    LAYER,
    POSITION,
    Moments,
    Partition,
    adain,
    channel_groups,
    ghost,
    groups,
    merge,
    mix,
)

ALL = [BATCH, INSTANCE, LAYER, POSITION, groups(3), ghost(2), channel_groups(3)]
by_kind = pytest.mark.parametrize("partition", ALL, ids=lambda partition: partition.kind)

Reference = Callable[..., tuple[np.ndarray, np.ndarray, np.ndarray]]


def _activation(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    return x * (1 + torch.arange(shape[1])).view(-1, *[1] * (len(shape) - 2)) + 2


def _same(a: Moments, b: Moments, tolerance: float = 1e-12) -> None:
    close = {"rtol": tolerance, "atol": tolerance}
    torch.testing.assert_close(a.count, b.count, check_dtype=False, **close)
    torch.testing.assert_close(a.mean, b.mean, check_dtype=False, **close)
    torch.testing.assert_close(a.var, b.var, check_dtype=False, **close)
    assert a.is_full == b.is_full
    if a.cov is not None and b.cov is not None:
        torch.testing.assert_close(a.cov, b.cov, check_dtype=False, **close)


# measuring


@by_kind
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("shape", [(4, 6, 3, 5), (2, 3, 7), (6, 12)])
def test_moments_are_those_of_numpy(
    partition: Partition,
    shape: tuple[int, ...],
    full: bool,
    weighted: bool,
    reference: Reference,
) -> None:
    x = _activation(*shape)
    weight = torch.rand(shape[0], 1, *shape[2:], dtype=torch.float64) + 0.1 if weighted else None
    count, mean, cov = reference(x, partition, weight)
    got = Moments.of(x, partition, full=full, weight=weight)
    assert got.partition == partition
    np.testing.assert_allclose(got.count, count, rtol=1e-12)
    np.testing.assert_allclose(got.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(got.var, np.diagonal(cov, axis1=1, axis2=2), atol=1e-12)
    if full:
        np.testing.assert_allclose(got.cov, cov, atol=1e-12)
    else:
        assert got.cov is None


@by_kind
def test_the_memory_format_does_not_matter(partition: Partition) -> None:
    x = _activation(4, 6, 3, 5)
    turned = x.to(memory_format=torch.channels_last)
    _same(Moments.of(turned, partition, full=True), Moments.of(x, partition, full=True))


@pytest.mark.parametrize("full", [False, True])
def test_a_large_mean_does_not_swallow_the_variance(full: bool) -> None:
    exact = _activation(2, 3, 100, 100) * 0.1 + 1e4
    x = exact.float()
    want = Moments.of(x.double(), full=full)
    got = Moments.of(x, full=full)
    # the mean is a float32, 5e-4 off at most by its own rounding: squared, 2.4e-5 of 1e-2
    assert ((got.var - want.var) / want.var).abs().max() < 1e-4
    assert (got.mean - want.mean).abs().max() <= 1e-3
    naive = x.square().mean((2, 3)) - x.mean((2, 3)).square()
    assert ((naive - want.var) / want.var).abs().max() > 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_measured_in_float32(dtype: torch.dtype) -> None:
    x = (_activation(2, 3, 40, 40) * 30).to(dtype)
    got = Moments.of(x, full=True)
    assert {t.dtype for t in (got.count, got.mean, got.var, got.cov) if t is not None} == {
        torch.float32
    }
    want = Moments.of(x.double(), full=True)
    _same(got, want, 1e-4)


def test_autocast_does_not_touch_the_measurement() -> None:
    x = _activation(2, 6, 9, 9).float()
    weight = torch.rand(2, 1, 9, 9)
    for given_weight in (None, weight):
        want = Moments.of(x, full=True, weight=given_weight)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert (x[0, 0] @ x[0, 0]).dtype == torch.bfloat16
            got = Moments.of(x, full=True, weight=given_weight)
        _same(got, want, 0)


def test_an_integer_image_is_refused() -> None:
    with pytest.raises(InputError, match=r"torch\.uint8: must be a floating dtype"):
        Moments.of(torch.zeros(1, 3, 4, 4, dtype=torch.uint8))


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(
    ("shape", "why"),
    [((2, 3, 1, 1), "1x1 map"), ((1, 8, 2, 2), "fewer samples than channels"), ((1, 3), "one")],
)
def test_degenerate_activations_are_measured(
    shape: tuple[int, ...], why: str, full: bool, reference: Reference
) -> None:
    x = _activation(*shape).float()
    got = Moments.of(x, full=full)
    _, mean, cov = reference(x, INSTANCE)
    np.testing.assert_allclose(got.mean, mean, rtol=1e-6, err_msg=why)
    np.testing.assert_allclose(got.var, np.diagonal(cov, axis1=1, axis2=2), rtol=1e-5, atol=1e-12)
    assert got.is_full == full


def test_a_constant_channel_has_no_variance_beyond_rounding() -> None:
    got = Moments.of(torch.full((1, 2, 37, 41), 0.1), full=True)
    assert got.var.max() <= 1e-15
    assert got.cov is not None
    assert got.cov.abs().max() <= 1e-15


@by_kind
def test_measuring_has_a_gradient(partition: Partition) -> None:
    x = _activation(2, 6, 2, 2).requires_grad_()
    weight = (torch.rand(2, 1, 2, 2, dtype=torch.float64) + 0.1).requires_grad_()

    def plain(x: Tensor) -> tuple[Tensor, ...]:
        diagonal, full = Moments.of(x, partition), Moments.of(x, partition, full=True)
        assert full.cov is not None
        return diagonal.mean, diagonal.var, full.mean, full.cov

    def weighted(x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        part = Moments.of(x, partition, full=True, weight=weight)
        assert part.cov is not None
        return part.count, part.mean, part.cov, Moments.of(x, partition, weight=weight).var

    assert torch.autograd.gradcheck(plain, x)
    assert torch.autograd.gradcheck(weighted, (x, weight))


# weighted regions


@by_kind
@pytest.mark.parametrize("full", [False, True])
def test_a_region_is_the_picture_cut_out(partition: Partition, full: bool) -> None:
    x = _activation(4, 6, 7, 9)
    weight = torch.zeros(4, 1, 7, 9)
    weight[..., 2:5, 3:9] = 1
    got = Moments.of(x, partition, full=full, weight=weight)
    inside = x[..., 2:5, 3:9]
    if partition == POSITION:  # a position is in the region or has no weight at all
        kept = weight.flatten().bool()
        want = Moments.of(inside, partition, full=full)
        torch.testing.assert_close(got.mean[kept], want.mean)
        torch.testing.assert_close(got.var[kept], want.var)
        assert not got.count[~kept].any()
    else:
        _same(got, Moments.of(inside, partition, full=full))


@given(repeats=st.lists(st.integers(0, 3), min_size=6, max_size=6).filter(any))
def test_a_weight_is_a_number_of_repetitions(repeats: list[int]) -> None:
    x = _activation(1, 3, 6)
    weight = torch.tensor(repeats, dtype=torch.float64)
    repeated = x.repeat_interleave(torch.tensor(repeats), dim=2)
    got = Moments.of(x, full=True, weight=weight.view(1, 1, 6))
    _same(got, Moments.of(repeated, full=True))


def test_only_the_count_knows_the_scale_of_the_weights() -> None:
    x, weight = _activation(2, 3, 4, 5), torch.rand(2, 1, 4, 5, dtype=torch.float64)
    one, ten = (Moments.of(x, full=True, weight=w) for w in (weight, 10 * weight))
    torch.testing.assert_close(ten.count, 10 * one.count)
    torch.testing.assert_close(ten.mean, one.mean)
    torch.testing.assert_close(ten.cov, one.cov)


def test_one_mask_serves_every_sample() -> None:
    x, weight = _activation(3, 2, 4, 5), torch.rand(1, 1, 4, 5)
    for partition in (INSTANCE, BATCH, groups(2)):
        got = Moments.of(x, partition, weight=weight)
        _same(got, Moments.of(x, partition, weight=weight.expand(3, 1, 4, 5)))


def test_what_is_below_zero_weighs_nothing() -> None:
    x, weight = _activation(1, 2, 4, 4), torch.randn(1, 1, 4, 4, dtype=torch.float64)
    assert weight.min() < 0
    _same(Moments.of(x, weight=weight), Moments.of(x, weight=weight.clamp_min(0)))


@by_kind
@pytest.mark.parametrize("full", [False, True])
def test_an_empty_region_has_no_moments_and_a_finite_gradient(
    partition: Partition, full: bool
) -> None:
    x = _activation(2, 6, 3, 3).float().requires_grad_()
    weight = torch.zeros(2, 1, 3, 3, requires_grad=True)
    got = Moments.of(x, partition, full=full, weight=weight)
    assert not got.count.any()
    assert not got.mean.any()
    assert not got.var.any()
    (got.mean.sum() + got.var.sum() + got.count.sum()).backward()
    assert x.grad is not None
    assert weight.grad is not None
    assert x.grad.isfinite().all()
    assert weight.grad.isfinite().all()


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (3, 1, 4, 5), (2, 1, 4, 4), (4, 5), (2, 1, 4)])
def test_a_weight_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"must be \(2, 1, 4, 5\), or 1 instead of N"):
        Moments.of(torch.zeros(2, 3, 4, 5), weight=torch.ones(shape))


# merging


def _parts(partition: Partition, x: Tensor, at: int) -> list[Tensor]:
    """Cut x along the axis whose pieces belong to the same groups."""
    axis = {"batch": 0, "channel_group": 0, "position": 1}.get(partition.kind, 2)
    return [x.narrow(axis, 0, at), x.narrow(axis, at, x.shape[axis] - at)]


@by_kind
@settings(max_examples=15)
@given(
    at=st.integers(1, 5),
    seed=st.integers(0, 1000),
    full=st.booleans(),
    height=st.integers(6, 8),
    batch=st.sampled_from([6, 8]),
)
def test_merging_the_parts_is_the_whole(
    partition: Partition, at: int, seed: int, full: bool, height: int, batch: int
) -> None:
    x = _activation(batch, 6, height, 3, seed=seed)
    whole = Moments.of(x, partition, full=full)
    first, second = (Moments.of(x, partition, full=full) for x in _parts(partition, x, at))
    _same(first.merge(second), whole, 1e-9)
    _same(second.merge(first), whole, 1e-9)


def test_merging_regions_that_share_out_the_weights_is_the_whole() -> None:
    x, weight = _activation(2, 3, 6, 6), torch.rand(2, 1, 6, 6, dtype=torch.float64)
    parts = [Moments.of(x, full=True, weight=w) for w in (weight, 1 - weight)]
    _same(merge(parts), Moments.of(x, full=True), 1e-10)


@given(st.permutations(range(5)), st.booleans())
def test_the_order_of_merging_does_not_matter(order: list[int], full: bool) -> None:
    x = _activation(1, 3, 25, 4)
    sizes = [1, 9, 4, 8, 3]
    parts = [Moments.of(part, full=full) for part in x.split(sizes, 2)]
    whole = Moments.of(x, full=full)
    _same(merge(parts[i] for i in order), whole)
    _same(parts[order[0]].merge(*(parts[i] for i in order[1:])), whole)


def test_merging_in_float32_keeps_a_large_mean_and_a_small_variance() -> None:
    x = (_activation(1, 3, 100, 64) * 0.1 + 1e4).float()
    want = Moments.of(x.double())
    got = merge(Moments.of(part) for part in x.split(1, 2))
    assert ((got.var - want.var) / want.var).abs().max() < 1e-3
    assert (got.mean - want.mean).abs().max() <= 2e-3


def test_a_part_without_samples_changes_nothing() -> None:
    x = _activation(2, 3, 4, 4)
    part = Moments.of(x, full=True)
    nothing = Moments.of(x, full=True, weight=torch.zeros(2, 1, 4, 4))
    _same(part.merge(nothing), part, 0)
    _same(nothing.merge(part), part)
    empty = nothing.merge(nothing)
    assert not empty.count.any()
    assert not empty.mean.any()
    assert not empty.var.any()


def test_a_stream_is_merged_as_it_comes() -> None:
    alive: list[weakref.ref[Moments]] = []
    most = 0

    def stream() -> Iterator[Moments]:
        nonlocal most
        for part in _activation(1, 2, 64, 3).split(1, 2):
            moments = Moments.of(part)
            alive.append(weakref.ref(moments))
            most = max(most, sum(each() is not None for each in alive))
            yield moments

    got = merge(stream())
    assert got.count.item() == 64 * 3
    assert most <= 4


def test_moments_that_do_not_belong_together_are_not_merged() -> None:
    x = torch.rand(2, 4, 3, 3)
    one = Moments.of(x)
    others = [
        Moments.of(x, full=True),
        Moments.of(x[:, :2]),
        Moments.of(x[:1]),
        Moments.of(x, BATCH),
    ]
    for other in others:
        with pytest.raises(InputError, match="do not fit together"):
            one.merge(other)
    with pytest.raises(InputError, match="no moments to merge"):
        merge([])


# mixing


def test_mixing_by_the_rules() -> None:
    a, b = (Moments.of(_activation(1, 3, 5, 5, seed=s) * (1 + s), full=True) for s in (1, 2))
    assert a.cov is not None
    assert b.cov is not None
    shift = (a.mean - b.mean)[0]
    linear, pooled, std = (mix([a, b], [3, 1], rule) for rule in ("linear", "pooled", "std"))
    for got in (linear, pooled, std):
        torch.testing.assert_close(got.mean, 0.75 * a.mean + 0.25 * b.mean)
        torch.testing.assert_close(got.count, a.count + b.count)
    torch.testing.assert_close(linear.cov, 0.75 * a.cov + 0.25 * b.cov)
    torch.testing.assert_close(linear.var, 0.75 * a.var + 0.25 * b.var)
    want = 0.75 * a.cov + 0.25 * b.cov + 0.1875 * torch.outer(shift, shift)
    torch.testing.assert_close(pooled.cov, want)
    torch.testing.assert_close(pooled.var, want.diagonal(dim1=1, dim2=2))
    torch.testing.assert_close(std.var.sqrt(), 0.75 * a.var.sqrt() + 0.25 * b.var.sqrt())
    assert std.cov is None
    assert mix([a.diagonal(), b.diagonal()], [1, 1], "pooled").cov is None


@pytest.mark.parametrize("full", [False, True])
def test_pooling_by_counts_is_merging(full: bool) -> None:
    parts = [Moments.of(x, full=full) for x in _activation(2, 3, 12, 3).split([2, 7, 3], 2)]
    _same(mix(parts, [2, 7, 3], "pooled"), merge(parts))


def test_mixing_deviations_is_mixing_stylized_features() -> None:
    content = _activation(1, 3, 5, 5)
    styles = [Moments.of(_activation(1, 3, 4, 4, seed=s)) for s in (1, 2, 3)]
    weights = [0.5, 0.2, 0.3]
    got = adain(content, mix(styles, weights, "std"), eps=0)
    want = sum(w * adain(content, s, eps=0) for w, s in zip(weights, styles, strict=True))
    torch.testing.assert_close(got, want)


def test_one_part_and_one_weight_of_all_are_that_part() -> None:
    a, b = (Moments.of(_activation(1, 3, 5, 5, seed=s)) for s in (1, 2))
    for rule in ("linear", "pooled", "std"):
        torch.testing.assert_close(mix([a], [7], rule).var, a.var)
        torch.testing.assert_close(mix([a, b], [0, 2], rule).var, b.var)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0], "1 weights for 2 parts"),
        ([1.0, -0.5], "must be non-negative"),
        ([0.0, 0.0], "positive sum"),
        ([math.nan, 1.0], "positive sum"),
        ([math.inf, 1.0], "positive sum"),
    ],
)
def test_weights_that_cannot_be_used(weights: list[float], message: str) -> None:
    part = Moments.of(torch.rand(1, 2, 3, 3))
    with pytest.raises(InputError, match=message):
        mix([part, part], weights)


def test_mixing_what_does_not_fit() -> None:
    a = Moments.of(torch.rand(1, 2, 3, 3))
    with pytest.raises(InputError, match="do not fit together"):
        mix([a, Moments.of(torch.rand(1, 3, 3, 3))], [1, 1])
    with pytest.raises(InputError, match="unknown rule 'pool'; did you mean 'pooled'"):
        mix([a, a], [1, 1], "pool")
    with pytest.raises(InputError, match="0 weights for 0 parts"):
        mix([], [])


# the value


def test_std_of_a_constant_channel_has_a_finite_gradient() -> None:
    x = torch.ones(1, 2, 3, 3, requires_grad=True)
    part = Moments.of(x)
    assert part.std().max() < 1e-18
    torch.testing.assert_close(part.std(0.25), torch.full((1, 2), 0.5))
    mix([part, part], [1, 1], "std").std().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_casting_detaching_and_dropping_the_covariance() -> None:
    x = torch.rand(2, 3, 4, 4, requires_grad=True)
    part = Moments.of(x, BATCH, full=True)
    cast = part.to(torch.float64)
    assert all(t.dtype == torch.float64 for t in _tensors(cast))
    assert cast.partition == BATCH
    assert all(t.device.type == "meta" for t in _tensors(part.to("meta")))
    assert part.mean.requires_grad
    assert not any(t.requires_grad for t in _tensors(part.detach()))
    assert part.diagonal().cov is None
    assert part.diagonal().var is part.var


def _tensors(part: Moments) -> list[Any]:
    assert part.cov is not None
    return [part.count, part.mean, part.var, part.cov]


@pytest.mark.parametrize(
    ("count", "mean", "var", "cov"),
    [
        ((2,), (3,), (3,), None),
        ((2,), (2, 3), (2, 4), None),
        ((3,), (2, 3), (2, 3), None),
        ((2, 1), (2, 3), (2, 3), None),
        ((2,), (2, 3), (2, 3), (3, 3)),
        ((2,), (2, 3), (2, 3), (2, 3, 4)),
    ],
)
def test_tensors_of_other_shapes_make_no_moments(
    count: tuple[int, ...],
    mean: tuple[int, ...],
    var: tuple[int, ...],
    cov: tuple[int, ...] | None,
) -> None:
    square = None if cov is None else torch.ones(cov)
    with pytest.raises(InputError, match="must be"):
        Moments(torch.ones(count), torch.ones(mean), torch.ones(var), square)
