"""Mean and variance, whose gradient is written by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from normapps.norm.diagonal import mean_and_variance

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
