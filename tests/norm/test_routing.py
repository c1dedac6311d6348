"""Weighted sums in which a weight of 0 keeps out whatever is not finite."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from normapps.errors import InputError
from normapps.norm.moments import Moments
from normapps.norm.partition import INSTANCE
from normapps.norm.routing import Route, check_domain, mixture, pooled, weighted

BAD = [torch.nan, torch.inf, -torch.inf]


def _randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("bad", BAD)
def test_a_weight_of_zero_keeps_out_what_is_not_finite(bad: float) -> None:
    weights = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.5, 0.5], [0.25, 0.0, 0.75]]).double()
    values = _randn(3, 4)
    expected = weights @ values
    values[0, 1] = bad
    found = weighted(weights, values)
    assert not found[[0, 2], 1].isfinite().any()
    found[[0, 2], 1] = expected[[0, 2], 1]
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("bad", BAD)
def test_nor_do_gradients_pass_it(bad: float) -> None:
    weights = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.5]]).double()
    values = _randn(2, 4).requires_grad_()
    given = _randn(3, 4, seed=1)
    expected = weights.t() @ given
    given[0, 2] = bad
    (found,) = torch.autograd.grad(weighted(weights, values), values, given)
    assert not found[0, 2].isfinite()
    found[0, 2] = expected[0, 2]
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_gradients_of_first_and_second_order() -> None:
    inputs = _randn(3, 2).requires_grad_(), _randn(2, 4, seed=1).requires_grad_()
    torch.autograd.gradcheck(weighted, inputs)
    torch.autograd.gradgradcheck(weighted, inputs)


def test_under_vmap() -> None:
    weights, values = _randn(5, 3, 2), _randn(5, 2, 4, seed=1)
    torch.testing.assert_close(torch.vmap(weighted)(weights, values), weights @ values)


@pytest.mark.parametrize("is_soft", [False, True])
@pytest.mark.parametrize("bad", BAD)
def test_samples_and_domains_stay_apart(bad: float, is_soft: bool) -> None:
    membership = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]).double()
    x = _randn(3, 2, 5)
    expected = pooled(Moments.of(x, INSTANCE), membership, is_soft)
    x[0, 1, 2] = bad
    found = pooled(Moments.of(x, INSTANCE), membership, is_soft)
    torch.testing.assert_close(found.mean[1], expected.mean[1], rtol=0, atol=0)
    torch.testing.assert_close(found.var[1], expected.var[1], rtol=0, atol=0)
    assert not found.mean[0, 1].isfinite()
    for given, kept in zip(
        mixture(membership, found, is_soft), mixture(membership, expected, is_soft), strict=True
    ):
        torch.testing.assert_close(given[1:], kept[1:], rtol=0, atol=0)
        assert given[0].isfinite().tolist() == [True, False]


def test_a_domain_that_is_not_finite_is_never_the_nearest() -> None:
    mean = torch.tensor([[torch.nan], [9.0], [0.0]]).double()
    population = Moments(mean.new_zeros(3), mean, torch.ones_like(mean), None, INSTANCE)
    chosen = Route(None, 3).nearest(_randn(4, 1, 6), population, 1e-5)
    assert chosen.argmax(1).tolist() == [2, 2, 2, 2]


@pytest.mark.parametrize("domain", [True, False, "a", 1.0])
def test_only_integers_are_numbers_of_domains(domain: object) -> None:
    with pytest.raises(InputError, match=f"domain {domain!r}: must be an int, a tensor or None"):
        check_domain(domain, 2)
