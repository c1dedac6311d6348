"""Matrices on activations: values and gradients, whatever the memory format, without copies."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from normapps.errors import InputError
from normapps.norm import BATCH, INSTANCE, LAYER, POSITION, Partition, channel_groups, ghost, groups
from normapps.norm.matrix import covariance, multiply
from normapps.norm.registry import create_norm

ALL = [BATCH, INSTANCE, LAYER, POSITION, groups(3), ghost(2), channel_groups(3)]
by_kind = pytest.mark.parametrize("partition", ALL, ids=lambda partition: partition.kind)
# spatial sizes below and above the group's width, and none
SHAPES = [(4, 6, 3, 5), (2, 6, 2), (8, 6), (2, 6, 2, 3, 2)]
LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def _formats(x: Tensor) -> list[Tensor]:
    """x contiguous, with its channels last, and as a slice of something larger."""
    last = x.movedim(1, -1).contiguous().movedim(-1, 1)
    return [x, last, torch.cat([x, x], -1)[..., : x.shape[-1]]]


def _factors(x: Tensor, partition: Partition) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    number, width, _ = partition.shape(x.shape)
    matrix = torch.randn(number, width, width, generator=generator, dtype=x.dtype)
    return matrix, torch.randn(number, width, generator=generator, dtype=x.dtype)


@by_kind
@pytest.mark.parametrize("shape", SHAPES)
def test_each_group_is_multiplied(partition: Partition, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64)
    matrix, shift = _factors(x, partition)
    wanted = torch.einsum("gde,gem->gdm", matrix, partition.split(x))
    for each in _formats(x):
        got = multiply(each, partition, matrix, shift)
        torch.testing.assert_close(got, partition.join(wanted + shift.unsqueeze(2), x.shape))
        got = multiply(each, partition, matrix)
        torch.testing.assert_close(got, partition.join(wanted, x.shape))


@by_kind
def test_one_matrix_serves_every_group(partition: Partition) -> None:
    x = torch.randn(4, 6, 3, 5, dtype=torch.float64)
    number = partition.shape(x.shape)[0]
    matrix, shift = (each[:1].requires_grad_() for each in _factors(x, partition))
    got = multiply(x, partition, matrix, shift)
    many = multiply(x, partition, matrix.repeat(number, 1, 1), shift.repeat(number, 1))
    torch.testing.assert_close(got, many)
    found = torch.autograd.grad(got.square().sum(), (matrix, shift))
    torch.testing.assert_close(found, torch.autograd.grad(many.square().sum(), (matrix, shift)))


@by_kind
@pytest.mark.parametrize("shape", SHAPES)
def test_the_covariance_is_numpys(
    partition: Partition, shape: tuple[int, ...], reference: Callable[..., tuple[np.ndarray, ...]]
) -> None:
    x = torch.randn(shape, dtype=torch.float64) + 5
    _, mean, cov = reference(x, partition)
    for each in _formats(x):
        got = covariance(each, partition)
        np.testing.assert_allclose(got[0], mean, rtol=1e-12)
        np.testing.assert_allclose(got[1], cov, atol=1e-12)


@pytest.mark.parametrize("partition", [BATCH, channel_groups(2), INSTANCE], ids=lambda p: p.kind)
@pytest.mark.parametrize("shape", [(3, 4, 5), (4, 4, 1, 1), (2, 4, 2, 2)])
def test_first_and_second_derivatives(partition: Partition, shape: tuple[int, ...]) -> None:
    base = torch.randn(shape, dtype=torch.float64)
    matrix, shift = (each.requires_grad_() for each in _factors(base, partition))
    for x in _formats(base)[:2]:
        given = x.detach().requires_grad_()

        def product(x: Tensor, matrix: Tensor, shift: Tensor) -> Tensor:
            return multiply(x, partition, matrix, shift)

        def moments(x: Tensor) -> tuple[Tensor, Tensor]:
            return covariance(x, partition)

        for function, inputs in ((product, (given, matrix, shift)), (moments, (given,))):
            assert torch.autograd.gradcheck(function, inputs)
            assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("partition", [BATCH, channel_groups(3), INSTANCE], ids=lambda p: p.kind)
@pytest.mark.parametrize("shape", [(4, 6, 4, 5), (4, 6, 2, 1), (2, 6, 2, 3, 2)])
def test_results_and_gradients_keep_the_memory_format(
    partition: Partition, shape: tuple[int, ...]
) -> None:
    x = torch.randn(shape)
    matrix, shift = _factors(x, partition)
    for memory_format in (torch.contiguous_format, LAST[x.dim()]):
        given = x.to(memory_format=memory_format).requires_grad_()
        y = multiply(given, partition, matrix, shift)
        assert y.is_contiguous(memory_format=memory_format)
        _, cov = covariance(given, partition)
        gradient = torch.randn(shape)  # contiguous whatever x is
        for out, weight in ((y, gradient), (cov, torch.randn_like(cov))):
            (of_x,) = torch.autograd.grad(out, given, weight)
            assert of_x.is_contiguous(memory_format=memory_format)


def test_a_gradient_of_another_format_is_the_same_gradient() -> None:
    partition, gradient = channel_groups(3), torch.randn(2, 6, 4, 5, dtype=torch.float64)
    x = torch.randn(2, 6, 4, 5, dtype=torch.float64)
    matrix, shift = (each.requires_grad_() for each in _factors(x, partition))
    wanted = torch.einsum("gde,gem->gdm", matrix, partition.split(x.requires_grad_()))
    joined = partition.join(wanted + shift.unsqueeze(2), x.shape)
    expected = torch.autograd.grad(joined, (x, matrix, shift), gradient)
    for given in _formats(x.detach()):
        inputs = (given.requires_grad_(), matrix, shift)
        for weight in _formats(gradient):
            found = torch.autograd.grad(multiply(given, partition, matrix, shift), inputs, weight)
            torch.testing.assert_close(found, expected)
    expanded = torch.autograd.grad(multiply(x, partition, matrix).sum(), x)
    ones = torch.autograd.grad(multiply(x, partition, matrix), x, torch.ones_like(x))
    torch.testing.assert_close(expanded, ones)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_multiplied_in_float32(dtype: torch.dtype) -> None:
    x = torch.randn(2, 6, 4, 5).to(dtype)
    matrix, shift = _factors(x.float(), channel_groups(3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = multiply(x, channel_groups(3), matrix, shift)
    want = multiply(x.float(), channel_groups(3), matrix, shift).to(dtype)
    assert torch.equal(got, want)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="do not fit"):
        multiply(torch.zeros(2, 6, 4), channel_groups(3), torch.zeros(3, 2, 2))


@pytest.mark.parametrize("name", ["iternorm", "zca"])
def test_whitening_has_second_gradients(name: str) -> None:
    layer = create_norm(name, 4, group_size=2).double()
    x = torch.randn(8, 4, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(layer, (x,), fast_mode=True)
