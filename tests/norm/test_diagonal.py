"""Mean and variance, whose gradient is written by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from normapps.norm.diagonal import instance_norm, mean_and_variance, scale_and_shift

AXES = ([0], [2], [0, 2, 3], [1, 2])


def _values() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 2, 4, 2, dtype=torch.float64, generator=generator) * 2 + 5


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("trained", [True, False])
def test_values(axes: list[int], trained: bool) -> None:
    mean, var = mean_and_variance(_values().requires_grad_(trained), axes)
    expected = torch.var_mean(_values(), axes, correction=0, keepdim=True)
    torch.testing.assert_close((var, mean), expected)


@pytest.mark.parametrize("axes", AXES)
def test_gradients_of_every_order(axes: list[int]) -> None:
    values = _values().requires_grad_()
    assert torch.autograd.gradcheck(mean_and_variance, (values, axes))
    assert torch.autograd.gradgradcheck(mean_and_variance, (values, axes))


@pytest.mark.parametrize("which", [0, 1])
def test_one_of_the_two_may_be_unused(which: int) -> None:
    values = _values().requires_grad_()
    mean_and_variance(values, [0, 2])[which].square().sum().backward()
    reference = _values().requires_grad_()
    expected = torch.var_mean(reference, [0, 2], correction=0)[1 - which]
    expected.square().sum().backward()
    torch.testing.assert_close(values.grad, reference.grad)


def test_the_gradient_of_the_variance_loses_nothing_beside_a_large_mean() -> None:
    x = torch.randn(4, 3, 32, generator=torch.Generator().manual_seed(0)) + 1e4
    grads = []
    for values in (x.double().requires_grad_(), x.requires_grad_()):
        mean_and_variance(values, [0, 2])[1].sum().backward()
        grads.append(values.grad.double())
    exact, found = grads
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-3 * float(exact.abs().max()))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_samples_of_a_map_each_by_itself() -> None:
    def gradient(values: Tensor) -> Tensor:
        return torch.func.grad(lambda x: mean_and_variance(x, [0])[1].square().sum())(values)

    values = _values()
    found = torch.func.vmap(gradient)(values)
    torch.testing.assert_close(found, torch.stack([gradient(each) for each in values]))


def test_it_compiles_without_a_break() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(mean_and_variance, fullgraph=True, backend="eager")
    grads = []
    for function in (compiled, mean_and_variance):
        values = _values().requires_grad_()
        mean, var = function(values, [0, 2])
        (mean * var).sum().backward()
        grads.append(values.grad)
    torch.testing.assert_close(*grads)


FACTORS = [(1, 2, 1, 1), (3, 2, 1, 1), (3, 1, 1, 1), (1, 1, 1, 1), (3, 1, 4, 2)]
"""Of channels, of each sample's channels, of samples, of all, of positions."""


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", FACTORS)
def test_a_scale_and_shift_and_their_gradients(
    shape: tuple[int, ...], memory_format: torch.memory_format
) -> None:
    x = _values().to(memory_format=memory_format).requires_grad_()
    generator = torch.Generator().manual_seed(1)
    scale, shift = (torch.randn(shape, dtype=x.dtype, generator=generator) for _ in range(2))
    given = x, scale.requires_grad_(), shift.requires_grad_()
    torch.testing.assert_close(scale_and_shift(*given), scale * x + shift)
    assert scale_and_shift(*given).stride() == x.stride()
    assert torch.autograd.gradcheck(scale_and_shift, given)
    assert torch.autograd.gradgradcheck(scale_and_shift, given)


def test_one_scale_and_a_shift_a_sample() -> None:
    x, scale, shift = _values(), torch.full((1, 2, 1, 1), 3.0), torch.rand(3, 2, 1, 1)
    given = [each.double().requires_grad_() for each in (x, scale, shift)]
    torch.testing.assert_close(scale_and_shift(*given), (scale * x + shift).double())
    assert torch.autograd.gradcheck(scale_and_shift, given)


def test_the_gradient_of_a_scale_is_one_kernel() -> None:
    x = torch.rand(3, 2, 4, 2, requires_grad=True)
    for rows in (1, 3):
        y = scale_and_shift(x, torch.rand(rows, 2, 1, 1), torch.rand(rows, 2, 1, 1))
        assert not y._is_view()
        node, seen = y.grad_fn, []
        while node is not None:
            seen.append(node.name())
            node = node.next_functions[0][0] if node.next_functions else None
        assert any("BatchNorm" in name for name in seen)


def test_instance_norm_with_a_scale_a_sample() -> None:
    x = _values().requires_grad_()
    scale, shift = (torch.rand(3, 2, dtype=x.dtype, requires_grad=True) for _ in range(2))

    def normalized(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return instance_norm(x, scale, shift, 1e-3)

    var, mean = torch.var_mean(x, (2, 3), correction=0, keepdim=True)
    expected = (x - mean) / (var + 1e-3).sqrt() * scale[:, :, None, None] + shift[:, :, None, None]
    torch.testing.assert_close(normalized(x, scale, shift), expected)
    assert torch.autograd.gradcheck(normalized, (x, scale, shift))
