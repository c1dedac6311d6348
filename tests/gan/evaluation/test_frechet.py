"""The Fréchet distance against closed forms and numpy's covariances."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from normapps.errors import InputError
from normapps.gan.evaluation.frechet import feature_moments, frechet_distance
from normapps.norm.moments import Moments
from normapps.norm.partition import BATCH


def drawn(count: int, width: int, seed: int = 0, shift: float = 0.0) -> Tensor:
    """Correlated features of a few scales."""
    draws = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=draws) * torch.linspace(0.1, 3, width)
    return torch.randn(count, width, generator=draws) @ mixing + shift


def reference(x: Tensor, y: Tensor) -> float:
    """By numpy: the eigenvalues of the product of the two covariances, which is not symmetric."""
    a, b = x.double().numpy(), y.double().numpy()
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    roots = np.sqrt(np.linalg.eigvals(first @ second).astype(complex)).real.sum()
    shift = a.mean(0) - b.mean(0)
    return float(shift @ shift + np.trace(first) + np.trace(second) - 2 * roots)


def distance(x: Tensor, y: Tensor) -> float:
    return frechet_distance(feature_moments([x]), feature_moments([y]))


def test_equals_the_formula_on_covariances_that_do_not_commute() -> None:
    x, y = drawn(500, 24), drawn(400, 24, seed=1, shift=0.5)
    assert distance(x, y) == pytest.approx(reference(x, y), rel=1e-9)


def test_known_value_of_two_diagonal_gaussians() -> None:
    """For commuting covariances it is Σ(μ₁−μ₂)² + Σ(σ₁−σ₂)²: here 2·9 + (2−1)² + (5−1)²."""
    ones = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
    unit = ones * (3 / 4) ** 0.5  # of unbiased variance 1
    assert distance(unit, unit * torch.tensor([2.0, 5.0]) + 3) == pytest.approx(35, rel=1e-12)


def test_parts_give_what_the_whole_gives_whatever_their_sizes() -> None:
    x, y = drawn(300, 16), drawn(300, 16, seed=2)
    parts = frechet_distance(
        feature_moments(x.split([1, 2, 97, 200])), feature_moments(iter(y.split(64)))
    )
    assert parts == pytest.approx(distance(x, y), rel=1e-10)


def test_moments_are_in_float64_whatever_the_features() -> None:
    x = drawn(100, 4).to(torch.bfloat16)
    found = feature_moments([x])
    assert found.mean.dtype == torch.float64
    assert torch.equal(found.mean[0], x.double().mean(0))


def test_singular_covariances_give_the_distance_of_the_support() -> None:
    """Fewer pictures than features: the same features in a wider space are as far apart."""
    x, y = drawn(12, 6).double(), drawn(12, 6, seed=3).double()
    wide = torch.linalg.qr(drawn(40, 40, seed=4).double()).Q[:6]
    assert distance(x @ wide, y @ wide) == pytest.approx(distance(x, y), rel=1e-6)
    flat = torch.ones(5, 3)
    assert distance(flat, flat + 2) == pytest.approx(12)


@given(st.integers(2, 40), st.integers(1, 12), st.integers(0, 10_000))
def test_of_a_set_with_itself_is_nothing_and_of_two_is_symmetric(
    count: int, width: int, seed: int
) -> None:
    x, y = drawn(count, width, seed), drawn(count + 1, width, seed + 1)
    scale = float(x.double().var(0).sum())
    assert 0 <= distance(x, x) <= 1e-6 * scale
    # the roots of eigenvalues that are zero but for rounding are half as exact
    assert distance(x, y) == pytest.approx(distance(y, x), rel=1e-6, abs=1e-6 * scale)


def test_refusals_name_what_is_wrong() -> None:
    good = feature_moments([drawn(9, 4)])
    with pytest.raises(InputError, match="4 and 5"):
        frechet_distance(good, feature_moments([drawn(9, 5)]))
    with pytest.raises(InputError, match=r"1 picture.*more than 4"):
        frechet_distance(good, feature_moments([drawn(1, 4)]))
    with pytest.raises(InputError, match="covariance"):
        frechet_distance(good, Moments.of(drawn(9, 4), BATCH))
    with pytest.raises(InputError, match="not finite"):
        feature_moments([torch.full((2, 3), torch.nan)])
    with pytest.raises(InputError, match="must be"):
        feature_moments([torch.zeros(3)])
    with pytest.raises(InputError, match="at least one"):
        feature_moments([])
